"""Study files: what they may say, and that faults are named with their line."""

import pytest

from hesspec.study.study_file import load_study, parse_study, presets

GOOD = """\
datasets: digits
networks: small_cnn
samples_per_class: [3, 5]
training:
  epochs: 6
  learning_rates: [0.01]
measure:
  epochs: [0, end]
"""


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


def test_a_name_stands_for_a_list_of_one_and_what_is_left_out_has_the_papers_values() -> None:
    study = parse_study(GOOD, "study.yaml")

    assert [data.name for data in study.datasets] == ["digits"]
    assert study.networks == ["small_cnn"]
    assert (study.training.momentum, study.training.weight_decay, study.training.batch_size) == (0.9, 5e-4, 128)
    assert study.measure.matrices == ["Hessian", "GaussNewton", "Residual"]
    assert study.measure.splits == ["train", "test"]


@pytest.mark.parametrize(
    ("written", "rates"),
    [
        ("0.1", [0.1]),
        ("[1e-4, 0.1]", [1e-4, 0.1]),  # which YAML 1.1 takes for a word
        ("{low: 1e-4, high: 1, count: 5}", [1e-4, 1e-3, 1e-2, 0.1, 1.0]),
    ],
)
def test_learning_rates_are_one_or_a_list_or_a_logarithmic_grid(written: str, rates: list[float]) -> None:
    study = parse_study(changed("[0.01]", written), "study.yaml")

    assert study.training.rates == pytest.approx(rates)


def test_every_preset_can_be_read_and_papyan2019_is_the_protocol_of_the_paper() -> None:
    assert {"digits", "digits-quick", "fashion-vgg11", "papyan2019"} <= set(presets())
    for name in presets():
        load_study(name)
    paper = load_study("papyan2019")
    assert [data.name for data in paper.datasets] == ["mnist", "fashion-mnist", "cifar10", "cifar100"]
    assert [data.epochs or paper.training.epochs for data in paper.datasets] == [200, 200, 350, 350]
    assert len(paper.samples_per_class) == 20
    assert (paper.training.rates[0], paper.training.rates[-1]) == (1e-4, 0.25)
    assert paper.training.drops == [1 / 3, 2 / 3]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (changed("samples_per", "sample_per"), r"line 3: there is no key 'sample_per_class'; did you mean 'samples_"),
        (changed("epochs: 6", "epoch: 6"), r"line 5: there is no key 'epoch'; did you mean 'epochs'\?"),
        (changed("[0.01]", "{low: 1, hihg: 2, count: 3}"), r"line 6: there is no key 'hihg'; did you mean 'high'\?"),
        (changed("[0.01]", "{low: 2, high: 1, count: 3}"), "line 6: .*low is 2 and high is 1"),
        (changed("[0.01]", "[]"), "line 6: .*at least one learning rate"),
        (changed("[0.01]", "[fast]"), "line 6: training.learning_rates.0 is 'fast': .*valid number"),
        (changed("small_cnn", "small_cn"), r"line 2: .*there is no network 'small_cn'; did you mean 'small_cnn'\?"),
        (changed("digits", "digit"), r"line 1: .*there is no data set 'digit'; did you mean 'digits'\?"),
        (changed("[3, 5]", "[3, 3]"), "line 3: .*3 is among the samples_per_class twice"),
        (changed("[0, end]", "[0, 7]"), "measure.epochs has 7, but digits is trained for 6 epochs only"),
        (changed("[0, end]", "[]"), "line 8: measure.epochs: .*at least 1 item"),
        (GOOD + "  matrices: [hes]\n", r"line 9: .*there is no matrix 'hes'; did you mean 'hess'\?"),
        (GOOD + "  splits: [trian]\n", "line 9: measure.splits.0 is 'trian': .*'train' or 'test'"),
        (GOOD + "  steps: 0\n", "line 9: measure.steps is 0: it must be an integer of at least 1, or 'auto'"),
        (GOOD + "  steps: autoo\n", "^[^:]*line 9: measure.steps is 'autoo': it must be [^:]*'auto'\\.$"),
        (changed("[0, end]", "[0, ent]"), "^[^:]*line 8: measure.epochs.1 is 'ent': it must be [^:]*'end'\\.$"),
        (changed("[0.01]", "[0.01]\n  drops: [1/0]"), "line 7: training.drops.0 is '1/0': it is not a fraction"),
        (changed("[0.01]", "[0.01]\n  drops: [one/two]"), "training.drops.0 is 'one/two': it is not a fraction"),
        (changed("[0.01]", "[0.01]\n  drops: [2/3, 1/3]"), "line 7: training.drops: they must ascend, but are 0.66"),
        (changed("[3, 5]", "[1:30]"), "line 3: samples_per_class.0 is '1:30': .*valid integer"),
        (changed("[3, 5]", "[yes]"), "line 3: samples_per_class.0 is 'yes': .*valid integer"),
        (changed("[3, 5]", "[0x10]"), "line 3: samples_per_class.0 is '0x10': .*valid integer"),
        (changed("[3, 5]", "[2020-01-01]"), "line 3: samples_per_class.0 is '2020-01-01': .*valid integer"),
        (changed("[3, 5]", "[true, 5]"), "line 3: .*true and false are not numbers"),
        (changed("[0, end]", "[true]"), "line 8: .*true and false are not numbers"),
        (changed("epochs: 6", "epochs: true"), "line 5: .*true and false are not numbers"),
        (changed("[0.01]", "true"), "line 6: .*true and false are not numbers"),
        (GOOD + "  steps: true\n", "line 9: .*true and false are not numbers"),
        (GOOD + "  structure: ent\n", "^[^:]*line 9: measure.structure is 'ent': it must be true, false or 'end'\\.$"),
        (GOOD + "  seed: false\n", "line 9: .*true and false are not numbers"),
        (changed("[0.01]", "[.inf]"), "line 6: training.learning_rates.0 is inf: .*finite"),
        (changed("training:", "epochs: 3\ntraining:"), "line 4: .*; it belongs under training or measure or data"),
        (changed("digits", "[digits, {name: digits, size: 12}]"), "line 1: .*'digits' is among the datasets twice"),
        (changed("digits", "[{name: mnist, folder: a}, {name: mnist, folder: b}]"), "'mnist' is among the data"),
        (GOOD + "  memory: much\n", "line 9: .*'much'"),
        (GOOD + "datasets: mnist\n", "line 9: the key 'datasets' occurs twice"),
        ("- digits\n", "is not a mapping"),
        ("a: [", "study.yaml cannot be read: it is not YAML"),
        ("", "it is empty"),
    ],
)  # fmt: skip
def test_a_fault_is_named_with_its_line(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parse_study(text, "study.yaml")


def test_numbers_are_what_they_look_like() -> None:
    study = parse_study(changed("[3, 5]", "[010, 5]").replace("[0.01]", "[1e-3, 2.5E-3, .5, 1]"), "study.yaml")
    assert study.samples_per_class == [10, 5]
    assert study.training.rates == [1e-3, 2.5e-3, 0.5, 1.0]
    assert parse_study(GOOD + "  structure: true\n", "study.yaml").measure.structure is True
    assert parse_study(GOOD + "  structure: end\n", "study.yaml").measure.structure == "end"
    # A country, and not a truth value.
    with pytest.raises(ValueError, match="there is no data set 'no'"):
        parse_study(changed("digits", "no"), "study.yaml")


def test_all_faults_are_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"line 2: .*line 5: "):
        parse_study(changed("small_cnn", "cnn").replace("epochs: 6", "epochs: six"), "study.yaml")


def test_yaml_that_would_run_code_is_not_read() -> None:
    with pytest.raises(ValueError, match="it is not YAML"):
        parse_study("datasets: !!python/object/apply:os.getcwd []", "study.yaml")


def test_a_missing_file_is_named_with_the_nearest_preset() -> None:
    with pytest.raises(FileNotFoundError, match=r"'digitz'; did you mean the preset 'digits'\?"):
        load_study("digitz")
