"""Training: the schedule, what is recorded, determinism, and what goes wrong."""

import math

import pytest
import torch
from torch import nn

from hesspec.errors import NonFiniteError
from hesspec.study import (
    Dataset,
    TrainingSettings,
    evaluate,
    load_dataset,
    load_weights,
    save_checkpoint,
    small_cnn,
    train,
)
from hesspec.study.checkpoints import load_training_state, save_training_state


@pytest.fixture(scope="module")
def digits():
    return (
        load_dataset("digits", "train", samples_per_class=30),
        load_dataset("digits", "test", samples_per_class=10),
    )


def points(count, *, split="train"):
    """Give two linearly separable classes of points in the plane."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(count) % 2
    inputs = torch.randn(count, 2, generator=generator) + 6 * targets[:, None]
    return Dataset(name="points", split=split, inputs=inputs, targets=targets, class_names=("a", "b"))


def linear():
    torch.manual_seed(0)
    return nn.Linear(2, 2)


def with_batch_norm():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def settings(**changes):
    return TrainingSettings(**({"epochs": 3, "learning_rate": 0.05} | changes))


def test_training_learns_the_digits(digits):
    torch.manual_seed(0)
    network = small_cnn(1, 10, 8)
    history = train(network, *digits, settings(epochs=15, batch_size=32))
    assert [record.epoch for record in history] == list(range(16))
    assert history[0].test_error > 0.7
    assert history[-1].train_error == 0
    assert history[-1].test_error < 0.12
    assert history[-1].train_loss < 0.05 < history[0].train_loss


def test_the_learning_rate_falls_to_a_tenth_at_each_third():
    rates = [record.learning_rate for record in train(linear(), points(8), points(8), settings())]
    assert rates == pytest.approx([0, 0.05, 0.005, 0.0005])
    paper = TrainingSettings(epochs=200, learning_rate=0.1)
    falls = [e for e in range(2, 201) if paper.learning_rate_in(e) < paper.learning_rate_in(e - 1)]
    assert falls == [68, 135]


def test_one_step_is_that_of_sgd_with_weight_decay():
    network, data = linear(), points(6)
    weight = network.weight.detach().clone().requires_grad_()
    bias = network.bias.detach().clone()
    loss = nn.functional.cross_entropy(data.inputs @ weight.T + bias, data.targets)
    (gradient,) = torch.autograd.grad(loss, weight)
    train(network, data, data, settings(epochs=1, weight_decay=0.1))
    expected = weight - 0.05 * (gradient + 0.1 * weight)
    torch.testing.assert_close(network.weight, expected)


def test_the_record_is_that_of_the_network_in_evaluation_mode():
    network, data = with_batch_norm(), points(20)
    history = train(network, data, points(6, split="test"), settings())
    assert not any(module.training for module in network.modules())
    outputs = network(data.inputs)
    loss = nn.functional.cross_entropy(outputs, data.targets).item()
    error = (outputs.argmax(dim=1) != data.targets).double().mean().item()
    assert history[-1].train_loss == pytest.approx(loss, rel=1e-6)
    assert history[-1].train_error == error


def test_a_short_last_batch_weighs_by_its_samples():
    network, data = linear(), points(7)
    loss, error = evaluate(network, data, batch_size=3)
    outputs = network(data.inputs)
    assert loss == pytest.approx(nn.functional.cross_entropy(outputs, data.targets).item())
    assert error == pytest.approx((outputs.argmax(dim=1) != data.targets).double().mean().item())


def dropout_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))


def test_training_is_fixed_by_its_seed_whatever_the_global_generator_does():
    def run(seed, outer_seed):
        network = dropout_network()
        torch.manual_seed(outer_seed)
        history = train(
            network,
            points(20),
            points(6),
            settings(seed=seed, batch_size=5),
            on_epoch=lambda _: torch.rand(outer_seed),
        )
        return history, network[0].weight.detach()

    history, weight = run(0, 1)
    history_again, weight_again = run(0, 2)
    assert history == history_again
    assert torch.equal(weight, weight_again)
    assert not torch.equal(weight, run(1, 1)[1])


def test_the_global_generator_is_left_as_it_was():
    network = dropout_network()
    before = torch.random.get_rng_state()
    train(network, points(20), points(6), settings())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_callbacks_see_every_epoch_and_the_asked_checkpoints_in_evaluation_mode():
    seen, checkpoints = [], []

    def keep(network, record):
        checkpoints.append((record.epoch, network.training, network[0].weight.detach().clone()))
        network.train()

    network = with_batch_norm()
    initial = network[0].weight.detach().clone()
    history = train(
        network,
        points(20),
        points(6),
        settings(),
        checkpoint_epochs=[3, 0],
        on_epoch=seen.append,
        on_checkpoint=keep,
    )
    assert seen == history
    assert [(epoch, training) for epoch, training, _ in checkpoints] == [(0, False), (3, False)]
    assert torch.equal(checkpoints[0][2], initial)
    assert torch.equal(checkpoints[1][2], network[0].weight)
    assert not network.training


def test_a_checkpoint_epoch_outside_the_training_is_refused():
    with pytest.raises(ValueError, match=r"no epoch 4 for a checkpoint; .* to 3"):
        train(linear(), points(8), points(8), settings(), checkpoint_epochs=[1, 4])


def test_a_last_batch_of_one_sample_trains_with_batch_norm():
    history = train(with_batch_norm(), points(9), points(8), settings(batch_size=4))
    assert math.isfinite(history[-1].train_loss)


@pytest.mark.parametrize(("count", "batch_size"), [(1, 4), (8, 1)])
def test_batch_norm_on_single_samples_is_refused(count, batch_size):
    with pytest.raises(ValueError, match="batch norm cannot be trained on one sample at a time"):
        train(with_batch_norm(), points(count), points(8), settings(batch_size=batch_size))


def test_single_samples_train_without_batch_norm():
    history = train(linear(), points(4), points(4), settings(batch_size=1))
    assert history[-1].train_loss < history[0].train_loss


def test_divergence_names_epoch_and_learning_rate():
    data = points(8)
    with pytest.raises(NonFiniteError, match=r"epoch [123] at learning rate 1e\+30: .* Lower the"):
        train(dropout_network(), data, data, settings(learning_rate=1e30, batch_size=4))


def test_weights_that_are_not_finite_are_found_before_training():
    network = linear()
    with torch.no_grad():
        network.weight[0, 0] = math.nan
    with pytest.raises(NonFiniteError, match="is nan in epoch 0, before any step"):
        train(network, points(8), points(8), settings())


def test_outputs_that_do_not_fit_the_classes_are_refused():
    with pytest.raises(ValueError, match=r"shape \(8, 5\), but they must have shape \(8, 2\)"):
        train(nn.Linear(2, 5), points(8), points(8), settings())


@pytest.mark.parametrize(
    "bad",
    [
        {"epochs": 0},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"momentum": 1.0},
        {"weight_decay": -1e-4},
        {"batch_size": 0},
    ],
)
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))} must be"):
        settings(**bad)


@pytest.mark.parametrize("last", range(5))
def test_a_training_that_goes_on_after_an_epoch_ends_with_the_same_weights(digits, tmp_path, last):
    def network():
        torch.manual_seed(0)
        return nn.Sequential(*small_cnn(1, 10, 8), nn.Dropout(0.2))

    def keep(network, state):
        if state.history[-1].epoch == last:
            save_checkpoint(tmp_path / "weights.safetensors", network, {})
            save_training_state(tmp_path / "optimizer.safetensors", state)

    whole = network()
    how = settings(epochs=5, batch_size=64)
    history = train(whole, *digits, how, on_state=keep)
    torch.manual_seed(99)
    again = network()
    load_weights(again, tmp_path / "weights.safetensors")
    state = load_training_state(tmp_path / "optimizer.safetensors", history[: last + 1])
    seen = []
    resumed = train(again, *digits, how, resume=state, on_epoch=seen.append)

    assert resumed == history
    assert [record.epoch for record in seen] == list(range(last + 1, 6))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


def test_a_file_that_is_no_state_of_a_training_is_refused(tmp_path):
    save_checkpoint(tmp_path / "weights.safetensors", linear(), {})
    with pytest.raises(ValueError, match="does not contain the state of a training"):
        load_training_state(tmp_path / "weights.safetensors", [])


def test_the_learning_rate_falls_where_it_is_told_to():
    how = TrainingSettings(epochs=10, learning_rate=1.0, drops=(0.5,), drop_factor=4)
    assert [how.learning_rate_in(epoch) for epoch in (1, 5, 6, 10)] == [1, 1, 0.25, 0.25]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"drops": (0.0,)}, "drops must be fractions"),
        ({"drops": (0.5, 0.2)}, "that ascend"),
        ({"drop_factor": 1.0}, "drop_factor must be above 1"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        settings(**change)
