"""Studies of text: schedules of the learning rate, a whole small study, the presets, the command line."""

import json

import pytest
import torch
from typer.testing import CliRunner

import hesspec
from hesspec.cli.app import app
from hesspec.study import TrainingSettings, evaluate, gpt_tiny, load_dataset, load_study, run_study, train
from hesspec.study.digests import code_of
from hesspec.study.measuring import measure_structure
from hesspec.study.study_file import parse_study

STUDY = """
datasets: {name: "text:PLACE", size: 8}
networks: gpt_tiny
sequences: [6]
test_sequences: 4
optimizers: {name: adamw, learning_rates: 0.01}
training: {epochs: 2, learning_rates: 0.01, batch_size: 3, schedule: cosine, warmup: 1/4}
measure: {epochs: [0, end], matrices: [g], splits: [train], steps: 3, samples: 2}
"""


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("the quick brown fox jumps over the lazy dog. " * 20)
    return file


# Schedules


def test_warmup_and_cosine_are_those_of_the_formula():
    settings = TrainingSettings(epochs=4, learning_rate=1.0, schedule="cosine", warmup=0.25)
    rates = torch.tensor([settings.learning_rate_in(epoch, i, 5) for epoch in range(1, 5) for i in range(1, 6)])
    assert rates[:5].tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    along = torch.arange(1, 16) / 15
    assert rates[5:].tolist() == pytest.approx((0.1 + 0.9 * (1 + torch.cos(torch.pi * along)) / 2).tolist(), rel=1e-5)


def test_steps_may_be_warmed_up_and_are_unchanged_without():
    plain = TrainingSettings(epochs=3, learning_rate=1.0)
    assert [plain.learning_rate_in(epoch, 2, 7) for epoch in (1, 2, 3)] == pytest.approx([1, 0.1, 0.01])
    warmed = TrainingSettings(epochs=3, learning_rate=1.0, warmup=0.1)
    assert [warmed.learning_rate_in(1, step, 10) for step in (1, 2, 3, 4)] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert "warmup" not in plain.identity()
    assert warmed.identity()["warmup"] == 0.1


@pytest.mark.parametrize(("given", "message"), [({"schedule": "linear"}, "no schedule"), ({"warmup": 1.0}, "warmup")])
def test_other_schedules_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        TrainingSettings(epochs=1, learning_rate=1.0, **given)


def test_the_optimiser_gets_the_rate_of_each_step(text):
    data = load_dataset(f"text:{text}", "train", size=8, samples_per_class=6)
    seen = []

    class Look:
        def before(self, _network, stepper, step):
            seen.append((step, stepper.optimizers[0].param_groups[0]["lr"]))

        def after(self, *_arguments):
            pass

        def state(self):
            return {}

        def load(self, _tensors):
            pass

    settings = TrainingSettings(
        epochs=2, learning_rate=0.01, batch_size=3, schedule="cosine", warmup=0.25, optimizer="adamw"
    )
    history = train(gpt_tiny(256, 8), data, data, settings, observers={"look": Look()})
    expected = [settings.learning_rate_in(epoch, i, 2) for epoch in (1, 2) for i in (1, 2)]
    assert seen == list(enumerate(expected, start=1))
    assert [record.learning_rate for record in history] == [0, expected[1], expected[3]]
    assert history[-1].train_loss < history[0].train_loss


def test_loss_and_error_are_means_over_tokens(text):
    data = load_dataset(f"text:{text}", "train", size=8, samples_per_class=5)
    data.targets[0, :7] = -100
    network = gpt_tiny(256, 8)
    loss, error = evaluate(network, data, batch_size=2)
    with torch.no_grad():
        logits = network(data.inputs).transpose(1, 2)[data.targets != -100]
    targets = data.targets[data.targets != -100]
    assert len(targets) == data.terms == 33
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, targets).item(), rel=1e-5)
    assert error == pytest.approx((logits.argmax(1) != targets).double().mean().item())


# Studies


def test_a_study_of_text_runs_and_its_results_belong_to_the_text(text, tmp_path):
    config = parse_study(STUDY.replace("PLACE", str(text)), "study")
    assert config.samples_per_class == [6]
    run_study(config, tmp_path / "out")
    files = sorted((tmp_path / "out" / "runs").glob("*/*GaussNewton*.nc"))
    assert len(files) == 2
    for file in files:
        found = hesspec.load(file)
        assert {name: found.attributes[name] for name in ("sequences", "positions", "vocabulary", "terms")} == {
            "sequences": 2,
            "positions": 8,
            "vocabulary": 256,
            "terms": 16,
        }
    before = code_of(config)
    text.write_text("other words. " * 50)
    assert code_of(config) != before


def test_tokenizers_belong_to_text():
    with pytest.raises(ValueError, match="tokenizer belongs to text, but 'digits'"):
        parse_study(STUDY.replace('name: "text:PLACE", size: 8', "name: digits, tokenizer: some"), "study")


def test_text_needs_cross_entropy():
    with pytest.raises(ValueError, match="'text:PLACE' needs cross-entropy, but training.loss is 'mse'"):
        parse_study(STUDY.replace("training: {", "training: {loss: mse, "), "study")


def test_the_presets_are_of_text():
    for name, largest in (("language-quick", 2_048), ("language", 16_384)):
        config = load_study(name)
        assert (config.networks, max(config.samples_per_class)) == (["gpt_tiny"], largest)
        assert (config.training.schedule, config.optimizers[0].name) == ("cosine", "adamw")


# Command line


def test_measure_takes_text_and_sequences(text, tmp_path):
    words = f"measure gpt_tiny --data text:{text} --size 8 --sequences 2 --matrix g --steps 2 --out {tmp_path / 'out'}"
    done = CliRunner().invoke(app, words.split())
    assert done.exit_code == 0, done.output
    found = hesspec.load(tmp_path / "out" / "initialisation-train-GaussNewton.nc")
    assert found.attributes["terms"] == 16
    assert json.loads(found.attributes["command"])["--samples-per-class"] == "2"


def test_the_class_structure_of_text_is_that_of_frequent_tokens(text):
    data = load_dataset(f"text:{text}", "train", size=8, samples_per_class=6)
    found = measure_structure(gpt_tiny(256, 8), data, matrices=["g"], classes=2, cross=False, steps=4)
    assert found.classes == 3
    counts = torch.bincount(data.targets.flatten(), minlength=256)
    frequent = torch.argsort(counts, descending=True, stable=True)[:2].tolist()
    assert json.loads(found.attributes["tokens"]) == [data.class_names[token] for token in frequent]
    assert found.attributes["sequences"] == 6
