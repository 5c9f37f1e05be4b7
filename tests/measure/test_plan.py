"""What a plan says is what then happens, as far as no clock is asked."""

import pytest
import torch
from scipy.stats import wasserstein_distance
from torch import nn

import hesspec


def network(channels=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, channels, 3), nn.Tanh(), nn.Flatten(), nn.Linear(36 * channels, 10)).eval()


def batches(*sizes):
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(size, 1, 8, 8, generator=generator), torch.randint(10, (size,), generator=generator))
        for size in sizes
    ]


def operator(kind=hesspec.Hessian, sizes=(60, 60, 30), channels=8, **options):
    return kind(network(channels), nn.CrossEntropyLoss(), batches(*sizes), **options)


@pytest.mark.parametrize("kind", [hesspec.Hessian, hesspec.GaussNewton, hesspec.Residual])
@pytest.mark.parametrize("mode", ["traced", "double backward"])
@pytest.mark.few(3)
def test_mode_basis_and_number_of_products_are_those_of_the_measurement(kind, mode, monkeypatch):
    monkeypatch.setattr(
        "hesspec.operators.engine.passes.trace_pays", lambda *_, **__: (mode == "traced", "as the test asks")
    )
    plan = hesspec.plan(operator(kind), steps=12, probes=2)
    spectrum = hesspec.spectrum(operator(kind), steps=12, probes=2)
    assert (plan.mode, plan.basis, plan.matvecs) == (mode, spectrum.attributes["basis"], spectrum.matvecs)
    assert (plan.samples, plan.batches, plan.dimension) == (150, 3, spectrum.dimension)
    assert plan.kept == 1


def test_passes_take_the_memory_that_the_measurement_predicts(monkeypatch):
    monkeypatch.setattr("hesspec.operators.engine.passes.trace_pays", lambda *_, **__: (True, "as the test asks"))
    measured = operator()
    hesspec.spectrum(measured, steps=4)
    predicted = measured.attributes["predicted_peak_bytes"]
    assert operator().forecast().peak_bytes == pytest.approx(predicted, rel=0.25)


def test_less_memory_streams_and_then_splits():
    whole = operator().forecast()
    assert (whole.kept, whole.parts) == (1, 1)
    streamed = operator().forecast(int(1.5 * whole.size.streamed))
    assert streamed.kept < 1
    assert streamed.parts == 1
    split = operator().forecast(int(0.6 * whole.size.streamed))
    assert split.parts > 1
    with pytest.raises(MemoryError, match="One sample is predicted to need"):
        operator().forecast(1000)


def test_data_spread_over_devices_takes_less_memory_on_each():
    one, four = (hesspec.plan(operator(sizes=(40,) * 8), devices=devices) for devices in (1, 4))
    assert operator(sizes=(40,) * 8).forecast(devices=4).pieces == 2
    assert four.flops_matvec == one.flops_matvec
    assert "4, each as fast as this one" in repr(four)


def test_floating_point_operations_are_counted(monkeypatch):
    monkeypatch.setattr("hesspec.operators.engine.passes.trace_pays", lambda *_, **__: (True, "as the test asks"))
    # J v: twice the forward pass; the curvature of the outputs: none that counts; J^T u: weight gradients, and what the
    # convolution's output passes back.
    images = 150
    convolution, linear = images * 2 * 36 * 8 * 9, images * 2 * 288 * 10
    plan = hesspec.plan(operator(hesspec.GaussNewton))
    assert plan.flops_matvec == pytest.approx(2 * convolution + 4 * linear, rel=1e-6)


def test_a_better_accuracy_takes_more_steps_and_says_what_is_expected():
    rough, fine = (hesspec.plan(operator(), accuracy=accuracy) for accuracy in (0.2, 0.01))
    assert rough.matvecs < fine.matvecs
    assert rough.accuracy <= 0.2
    assert fine.accuracy <= 0.01
    assert "Wasserstein-1 distance" in repr(fine)


@pytest.mark.long
def test_the_planned_steps_reach_the_accuracy():
    small = {"sizes": (150,), "channels": 3}  # all of its 1,120 eigenvalues are computed
    exact = hesspec.spectrum(operator(**small), steps=10**6)
    assert exact.exact
    plan = hesspec.plan(operator(**small), accuracy=0.05)
    spectrum = hesspec.spectrum(operator(**small), steps=plan.steps, probes=plan.probes)
    distance = wasserstein_distance(spectrum.nodes, exact.nodes, spectrum.weights, exact.weights)
    assert distance <= 0.05 * float(exact.weights @ abs(exact.nodes))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0; it must be a positive integer"),
        ({"probes": 1.5}, "probes is 1.5; it must be"),
        ({"devices": -1}, "devices is -1; it must be"),
        ({"accuracy": 0.0}, "accuracy is 0.0; it must be positive"),
        ({"memory": "8XB"}, "memory='8XB' is not a valid size"),
        ({"basis": "hall"}, "no basis 'hall'"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        hesspec.plan(operator(), **options)
