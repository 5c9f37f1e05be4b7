"""`hesspec measure`: what it writes, what it prints, and what its options do."""

import json
import re
import sys

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import nn

import hesspec as package
from hesspec.cli import console
from hesspec.matrices import DEFAULT_MATRICES
from hesspec.study import DATASETS, NETWORKS, SPLITS, load_dataset, measuring, save_checkpoint, small_cnn

FILES = [f"initialisation-train-{matrix}.nc" for matrix in ("GaussNewton", "Hessian", "Residual")]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def row(text, name):
    """Cells of a row of the printed table."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"{name}  ")]
    return re.split(r"  +", line.strip())[1:]


def test_the_example_in_the_help_works(hesspec, example, here):
    result = hesspec(*example("measure"))
    assert result.exit_code == 0, result.output
    assert names(here / "spectra") == FILES
    spectra = {
        matrix: package.load(here / "spectra" / f"initialisation-train-{matrix}.nc") for matrix in DEFAULT_MATRICES
    }
    assert row(result.stdout, "outliers") == [str(spectrum.outliers.size) for spectrum in spectra.values()]
    assert row(result.stdout, "samples") == ["100"] * 3
    assert spectra["GaussNewton"].outliers.size >= 5
    for line in result.stdout.splitlines():
        assert len(line) <= 80
    assert [line for line in result.stdout.splitlines() if line.startswith("Saved")] == [
        f"Saved spectra/initialisation-train-{matrix}.nc" for matrix in DEFAULT_MATRICES
    ]


def test_it_is_what_the_library_measures(measured, here):
    measured("--seed", 3, "--batch-size", 20)
    data = load_dataset("digits", "train", samples_per_class=5, seed=3)
    torch.manual_seed(3)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval().double()
    for matrix in (package.Hessian, package.GaussNewton, package.Residual):
        operator = matrix(network, nn.CrossEntropyLoss(), data.batches(20))
        expected = package.spectrum(operator, steps=24, seed=3)
        found = package.load(here / "spectra" / f"initialisation-train-{matrix.__name__}.nc")
        np.testing.assert_array_equal(found.ritz_values, expected.ritz_values)
        assert found.attributes["risk"] == expected.attributes["risk"]


def test_the_files_say_what_they_are_of(measured, here):
    measured("--matrix", "hess", "--split", "test")
    attributes = package.load(here / "spectra" / "initialisation-test-Hessian.nc").attributes
    expected = {
        "matrix": "Hessian",
        "network": "own:linear",
        "dataset": "digits",
        "split": "test",
        "samples": 50,
        "samples_per_class": 5,
        "classes": 10,
        "checkpoint": "initialisation",
        "epoch": 0,
        "seed": 0,
        "dtype": "float64",
        "loss": "CrossEntropyLoss",
    }
    assert expected.items() <= attributes.items()
    json.dumps(dict(attributes))


@pytest.mark.parametrize("name", ["hess", "Hessian", "HESSIAN"])
def test_matrices_are_known_by_several_names(measured, here, name):
    result = measured("--matrix", name, "--matrix", "g", "--matrix", "gauss-newton")
    assert names(here / "spectra") == FILES[:2]
    assert "Hess" in result.stdout


def test_without_weights_it_says_so(measured):
    note = "No --weights: measuring own:linear at initialisation (seed 4)."
    assert note in measured("--seed", 4).stderr


def test_weights_of_a_checkpoint(hesspec, here):
    torch.manual_seed(1)
    network = small_cnn(1, 10, 8)
    save_checkpoint(here / "late.safetensors", network, {"epoch": "12"})
    torch.save(network.state_dict(), here / "plain.pt")
    for file in ("late.safetensors", "plain.pt"):
        options = ("--weights", file, "--matrix", "g", "--samples-per-class", 1, "--steps", 3)
        result = hesspec("measure", "small_cnn", "--data", "digits", *options)
        assert result.exit_code == 0, result.output
        assert "No --weights" not in result.stderr
    late, plain = (package.load(here / "spectra" / f"{name}-train-GaussNewton.nc") for name in ("late", "plain"))
    assert (late.attributes["checkpoint"], late.attributes["epoch"]) == ("late", 12)
    assert plain.attributes["checkpoint"] == "plain"
    assert "epoch" not in plain.attributes
    np.testing.assert_array_equal(late.ritz_values, plain.ritz_values)


def test_some_parameters_only(measured, here):
    measured("--params", "*.bias", "--matrix", "hess")
    spectrum = package.load(here / "spectra" / FILES[1])
    assert spectrum.dimension == 10
    assert spectrum.exact
    assert spectrum.attributes["params"] == "*.bias"


def test_a_network_and_data_of_ones_own(hesspec, here):
    result = hesspec("measure", "own:linear", "--data", "own:points", "--matrix", "hess", "--out", "deep/down")
    assert result.exit_code == 0, result.output
    spectrum = package.load(here / "deep" / "down" / FILES[1])
    assert spectrum.dimension == 10
    assert spectrum.attributes["samples_per_class"] == 6
    assert spectrum.attributes["dataset"] == "own:points"


def test_steps_may_be_left_to_the_measurement(measured, here):
    measured("--steps", "auto", "--matrix", "g")
    assert "moved by" in package.load(here / "spectra" / FILES[0]).stopped


def test_more_probes(measured, here):
    result = measured("--probes", 2, "--matrix", "hess")
    assert package.load(here / "spectra" / FILES[1]).probes == 2
    assert row(result.stdout, "Lanczos steps") == ["24, 2 probes"]


def test_nothing_is_replaced(hesspec, measured, here):
    measured("--matrix", "g")
    file = here / "spectra" / FILES[0]
    before = file.read_bytes()
    result = hesspec("measure", "own:linear", "--data", "digits", "--seed", 5)
    assert result.exit_code == 1
    assert (
        f"The file 'spectra/{FILES[0]}' already exists, and its --samples-per-class was 5, where it is" in result.stderr
    )
    assert file.read_bytes() == before
    assert names(here / "spectra") == FILES[:1]


def test_a_pipe_gets_a_line_for_each_matrix(measured):
    lines = measured().stderr.splitlines()
    assert [line for line in lines if line.endswith(" ...")] == [
        "Hess, train set ...",
        "G, train set ...",
        "H, train set ...",
    ]
    assert lines[-1].startswith("Next: hesspec report ")


def test_a_wide_terminal_gets_more_columns(measured, hesspec, monkeypatch):
    for split in ("train", "test"):
        measured("--split", split)
    monkeypatch.setattr(console, "output", Console(width=160, markup=False, highlight=False))
    files = [f"spectra/initialisation-{s}-{m}.nc" for s in SPLITS for m in DEFAULT_MATRICES]
    wide = hesspec("show", *files).stdout
    assert len(row(wide, "outliers")) == 6
    monkeypatch.setattr(console, "output", Console(width=80, markup=False, highlight=False))
    narrow = hesspec("show", *files).stdout
    assert sum(line.startswith("outliers") for line in narrow.splitlines()) == 2


def test_the_help_names_all_there_is(hesspec):
    text = " ".join(hesspec("measure", "--help").output.replace("│", " ").split())
    for name in (*NETWORKS, *DATASETS, *SPLITS):
        assert name in text


@pytest.mark.filterwarnings("default")
def test_a_warning_is_a_line(measured):
    result = measured("--matrix", "g", network="own:unused")
    assert "Warning: These parameters do not influence the loss; their curvature is zero: spare." in result.stderr


def test_of_two_commands_that_write_one_file_none_loses_its_result(here, measured, hesspec, monkeypatch):
    """The second one begins before the first has written, and writes after it."""
    options = ("--matrix", "g")
    save = measuring.save_result

    def later(result, file, **how):
        with monkeypatch.context() as patch:
            patch.setattr(measuring, "save_result", save)
            measured(*options, "--seed", 1)
        save(result, file, **how)

    monkeypatch.setattr(measuring, "save_result", later)
    result = hesspec(
        "measure", "own:linear", "--data", "digits", "--samples-per-class", 5, "--steps", 24, "--dtype", "float64",
        *options, "--seed", 2,
    )  # fmt: skip
    assert result.exit_code == 1
    one, two = "spectra/initialisation-train-GaussNewton.nc", "spectra/initialisation-train-GaussNewton-2.nc"
    sentence = f"The file {one!r} was written by another process meanwhile, and was not replaced."
    assert f"Error: {sentence} The result of this one was saved to {two!r}.\n" in result.stderr
    assert [package.load(here / name).attributes["seed"] for name in (one, two)] == [1, 2]


def test_a_finished_measurement_is_skipped_and_the_rest_is_measured(measured, here):
    measured("--matrix", "g")
    file = here / "spectra" / FILES[0]
    before = file.read_bytes()
    result = measured()
    assert f"Already measured: spectra/{FILES[0]}" in result.stderr
    assert [line for line in result.stdout.splitlines() if line.startswith("Saved")] == [
        f"Saved spectra/{FILES[1]}",
        f"Saved spectra/{FILES[2]}",
    ]
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--seed", 5), "its --seed was 0, where it is 5 now"),
        (("--steps", 12), "its --steps was 24, where it is 12 now"),
        (("--trace", "2%"), "its --trace was not given, where it is 0.02 now"),
    ],
)
def test_a_measurement_with_other_options_is_refused_and_the_option_named(measured, hesspec, here, option, words):
    measured("--matrix", "g")
    arguments = ("--samples-per-class", 5, "--steps", 24, "--dtype", "float64", "--matrix", "g")
    result = hesspec("measure", "own:linear", "--data", "digits", *arguments, *option)
    assert result.exit_code == 1
    assert words in result.stderr
    assert "delete it, or choose another folder with --out" in result.stderr
    assert names(here / "spectra") == FILES[:1]


@pytest.mark.filterwarnings("default")
def test_a_folder_holds_several_networks_and_choices_of_parameters(measured, here):
    measured("--matrix", "g")
    for _ in range(2):
        measured("--matrix", "g", network="own:unused")
        measured("--matrix", "g", "--params", "*.bias")
    expected = ["own_linear-digits-_.bias", "own_unused-digits"]
    assert names(here / "spectra") == [FILES[0], *(f"{name}-{FILES[0]}" for name in expected)]
    found = package.load(here / "spectra" / f"own_unused-digits-{FILES[0]}")
    assert found.attributes["network"] == "own:unused"


def test_a_trace_is_measured_to_the_wanted_error(measured, hesspec, here):
    measured("--matrix", "g", "--trace", "2%", "--steps", 4)
    spectrum = package.load(here / "spectra" / FILES[0])
    assert 2 * spectrum.trace_standard_error <= 0.02 * spectrum.trace
    assert spectrum.xtrace_matvecs > 0
    for text in ("2", "x%", "0", "150%"):
        result = hesspec("measure", "own:linear", "--data", "digits", "--trace", text, "--out", "other")
        assert f"--trace is {text!r}; it must be a share between 0 and 100%" in result.stderr


def test_losses_by_name_and_of_ones_own(measured, hesspec, here):
    (here / "losses.py").write_text(
        "from torch.nn import CrossEntropyLoss\n"
        "class Smooth(CrossEntropyLoss):\n"
        "    def __init__(self):\n"
        "        super().__init__(label_smoothing=0.2)\n"
        "def smooth(outputs, targets):\n"
        "    return Smooth()(outputs, targets)\n"
        "class Needs:\n"
        "    def __init__(self, width): ...\n"
    )
    data = load_dataset("digits", "train", samples_per_class=5, seed=0)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval().double()
    operator = package.GaussNewton(network, nn.CrossEntropyLoss(label_smoothing=0.2), data.batches(256))
    expected = package.spectrum(operator, steps=24)
    for name, folder in (("losses:smooth", "function"), ("losses:Smooth", "class")):
        measured("--matrix", "g", "--loss", name, "--out", folder)
        found = package.load(here / folder / "initialisation-train-GaussNewton.nc")
        assert np.allclose(found.ritz_values, expected.ritz_values, rtol=0, atol=1e-12 * expected.norm)
    for name, message in (
        ("huber", "There is no loss 'huber'; there are 'cross-entropy', 'mse'. One of your own"),
        ("losses:Needs", "is a class that needs arguments"),
    ):
        result = hesspec("measure", "own:linear", "--data", "digits", "--loss", name, "--out", "none")
        assert result.exit_code == 1
        assert message in " ".join(result.stderr.split())
    sys.modules.pop("losses", None)
    same = ("--samples-per-class", 5, "--steps", 24, "--dtype", "float64", "--matrix", "g", "--out", "class")
    again = hesspec("measure", "own:linear", "--data", "digits", *same, "--loss", "mse")
    assert "its --loss was losses:Smooth, where it is mse now" in " ".join(again.stderr.split())


def test_weights_in_a_folder_with_an_index(measured, here):
    torch.manual_seed(1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    folder = here / "trained"
    folder.mkdir()
    for number, (name, value) in enumerate(network.state_dict().items()):
        save_file({name: value}, folder / f"{number}.safetensors")
    places = {name: f"{number}.safetensors" for number, name in enumerate(network.state_dict())}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    for _ in range(2):  # the second finds it measured already
        measured("--matrix", "hess", "--weights", folder)
    data = load_dataset("digits", "train", samples_per_class=5, seed=0)
    operator = package.Hessian(network.eval().double(), nn.CrossEntropyLoss(), data.batches(256))
    found = package.load(here / "spectra" / "trained-train-Hessian.nc")
    assert np.allclose(found.ritz_values, package.spectrum(operator, steps=24).ritz_values)


def test_a_text_that_has_changed_is_not_taken_as_measured(hesspec, here):
    (here / "text.txt").write_bytes(b"the spectrum of text " * 40)
    command = ("measure", "gpt_tiny", "--data", "text:text.txt", "--sequences", "2", "--size", "8", "--matrix", "g")
    assert hesspec(*command, "--steps", "4").exit_code == 0
    assert "Already measured" in hesspec(*command, "--steps", "4").stderr
    (here / "text.txt").write_bytes(b"the text of a spectrum " * 40)
    changed = hesspec(*command, "--steps", "4")
    assert changed.exit_code == 1
    assert "its --data was text:text.txt " in changed.stderr
