"""`hesspec study`: from a file to results and a page, interrupted or not."""

import pytest

from hesspec.study import presets

STUDY = """\
datasets: digits
networks: small_cnn
samples_per_class: [2, 3]
test_samples_per_class: 2
training: {epochs: 2, learning_rates: [0.01, 0.02], batch_size: 8}
measure: {epochs: [0, end], matrices: [hess, g], steps: 4}
"""


@pytest.fixture
def file(here):
    (here / "mine.yaml").write_text(STUDY)
    return "mine.yaml"


@pytest.mark.long
def test_a_study_is_run_shown_and_run_again(hesspec, here, file):
    first = hesspec("study", file)
    assert first.exit_code == 0
    assert "8 of 8" in first.output
    assert "hesspec report mine" in first.output
    files = {path: path.stat().st_mtime_ns for path in (here / "mine").rglob("*.nc")}
    assert len(files) == 16

    assert hesspec("study", file).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in (here / "mine").rglob("*.nc")} == files
    left = " ".join(hesspec("study", file, "--dry-run").output.split())
    assert "Left to do: 0 epochs of training and 0 measurements" in left
    # What is kept beside the results is the study, and can be started where it is.
    again = hesspec("study", "mine/study.yaml")
    assert again.exit_code == 0
    assert not (here / "study").exists()
    assert {path: path.stat().st_mtime_ns for path in (here / "mine").rglob("*.nc")} == files
    assert hesspec("report", "mine").exit_code == 0
    assert (here / "mine" / "report.html").is_file()


def test_a_users_own_file_among_the_results_is_left_as_it_is(hesspec, here):
    (here / "mine").mkdir()
    text = f"# For the paper.\n{STUDY.replace('[2, 3]', '[2]')}"
    (here / "mine" / "study.yaml").write_text(text)

    assert hesspec("study", "mine/study.yaml", "--out", "mine").exit_code == 0
    assert (here / "mine" / "study.yaml").read_text() == text


def test_a_file_in_the_place_of_the_folder_is_named(hesspec, here):
    (here / "study").write_text(STUDY)

    ended = hesspec("study", "study")
    assert ended.exit_code == 1
    assert "Error: The results would be written to a folder 'study', but that is a file" in ended.stderr


def test_a_dry_run_lists_what_is_left_and_writes_nothing(hesspec, here, file):
    listed = hesspec("study", file, "--dry-run")
    assert listed.exit_code == 0
    assert "small_cnn on digits" in listed.output
    assert "Left to do: 8 epochs of training and 16 measurements" in " ".join(listed.output.split())
    assert not (here / "mine").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("networks:", "network:"), "Error: mine.yaml, line 2: there is no key 'network'; did you mean 'networks'?"),
        (("[2, 3]", "[2, 3000]"), "Error: small_cnn on digits, n = 3000, seed 0: samples_per_class=3000 is too large"),
        (("digits", "cifar10"), "cifar10"),
        (("small_cnn", "torchvision:resnet19"), "resnet18"),
        (("small_cnn", "own:nothing"), "own"),
    ],
)
def test_a_fault_ends_in_one_line(hesspec, here, file, change, sentence):
    (here / "mine.yaml").write_text(STUDY.replace(*change))
    ended = hesspec("study", file)
    assert ended.exit_code == 1
    assert sentence in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (here / "mine").exists()


def test_a_dry_run_lists_what_cannot_be_run_too_and_says_why(hesspec, here, file):
    (here / "mine.yaml").write_text(STUDY.replace("digits", "[digits, {name: mnist, folder: data}]"))
    listed = hesspec("study", file, "--dry-run")
    assert listed.exit_code == 1
    said = " ".join(listed.stdout.split())
    assert "small_cnn on digits" in said
    assert "small_cnn on mnist" in said
    assert "Left to do: 16 epochs of training and 32 measurements" in said
    assert "2 of the 4 tasks, which cannot be run" in said
    assert "Error: small_cnn on mnist, n = 2, seed 0 (and 1 other task): The file t10k-images" in listed.stderr


def test_a_task_that_fails_is_named_after_the_others_are_done_each_time(hesspec, here, file):
    # At the second rate the loss overflows in the first steps.
    (here / "mine.yaml").write_text(STUDY.replace("[0.01, 0.02]", "[1e30]"))
    for _ in range(2):
        ended = hesspec("study", file)
        assert ended.exit_code == 1
        assert "0 of 8" in ended.stdout
        for count in (2, 3):
            assert f"Error: small_cnn on digits, n = {count}, seed 0: All trainings diverged; use" in ended.stderr
    listed = hesspec("study", file, "--dry-run")
    assert listed.exit_code == 1
    assert "Left to do: 0 epochs" in listed.stdout


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--ray-cpus", "2"], "Error: --ray-cpus 2 requires --ray; add --ray or drop --ray-cpus."),
        (
            ["--ray", "--dry-run"],
            "Error: --dry-run estimates a single process on this machine and cannot be combined with --ray",
        ),
        (["--ray", "--device", "cuda:1"], "Error: There is no device 'cuda:1'; did you mean 'cuda'?"),
    ],
)
def test_options_that_do_not_go_together_are_refused(hesspec, file, options, sentence):
    ended = hesspec("study", file, *options)
    assert ended.exit_code == 1
    assert sentence in ended.stderr


def test_a_misspelt_preset_is_named_with_the_right_one(hesspec):
    assert "did you mean the preset 'digits-quick'?" in hesspec("study", "digit-quick").stderr


def test_presets_are_in_the_help(hesspec):
    text = " ".join(hesspec("study", "--help").output.replace("│", " ").split())
    for name in presets():
        assert name in text
