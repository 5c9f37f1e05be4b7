"""Applications on a pretended device and on the CPU: `python device_applications.py NAME ...`, which prints JSON.

One row for each application: how far its numbers are from those of the CPU, relative to the largest, and for those that
repeat something, how often the host waits for the device each time.
"""

import json
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from cases import mlp
from pretended_device import counts, on_device, put
from torch import Tensor, nn

import hesspec

Place = Callable[[Any], Any]
LOSS = nn.CrossEntropyLoss()
# One trace of each matrix for all.
TRACES = {True: hesspec.GraphCache(), False: hesspec.GraphCache()}


def on_cpu(given: Any) -> Any:
    """Leave a structure where it is."""
    return given


def network(place: Place) -> nn.Module:
    """The network, in float64."""
    model = mlp().double()
    return model if place is on_cpu else put(model)


def data(place: Place, batches: int = 2) -> list[Any]:
    """Random batches of eight."""
    generator = torch.Generator().manual_seed(1)
    return [
        place((torch.randn(8, 5, generator=generator, dtype=torch.float64), torch.arange(8) % 4))
        for _ in range(batches)
    ]


def of(kind: str, place: Place, **options: Any) -> Any:
    """A matrix of the network."""
    graphs = TRACES[place is on_cpu]
    return getattr(hesspec, kind)(network(place), LOSS, data(place), mode="traced", graphs=graphs, **options)


def numbers(*found: Any) -> np.ndarray:
    """All numbers of results, in one array."""
    parts = [part.detach().cpu().numpy() if isinstance(part, Tensor) else np.asarray(part) for part in found]
    return np.concatenate([np.ravel(part).astype(float) for part in parts])


def weights(model: nn.Module) -> list[Tensor]:
    """Parameters of a model."""
    return list(model.parameters())


def eigenpairs(place: Place) -> np.ndarray:
    found = hesspec.eigenpairs(of("Hessian", place), count=3, steps=20)
    return numbers(found.spectrum.eigenvalues[:3], found.vectors.abs())


def largest(place: Place) -> np.ndarray:
    return numbers(hesspec.eigenpairs(of("GaussNewton", place), count=2, steps=20).spectrum.eigenvalues[:2])


def diagonal(place: Place, times: int = 8) -> np.ndarray:
    return numbers(hesspec.diagonal(of("Hessian", place), probes=times).values)


def trace(place: Place) -> np.ndarray:
    found = hesspec.spectrum(of("GaussNewton", place), steps=20, seed=0, trace=0.2)
    return numbers(found.trace)


def solved(place: Place, kind: str, times: int, **options: Any) -> np.ndarray:
    """Iterations of a solver, which do not end by themselves."""
    operator = of(kind, place)
    rhs = place(torch.linspace(-1, 1, operator.shape[0], dtype=torch.float64))
    return numbers(hesspec.solve(operator, rhs, tolerance=1e-15, max_iterations=times, **options).solution)


def conjugate_gradients(place: Place, times: int = 5) -> np.ndarray:
    return solved(place, "GaussNewton", times, damping=0.5)


def minres(place: Place, times: int = 5) -> np.ndarray:
    return solved(place, "Hessian", times, damping=0.01)


def class_structure(place: Place) -> np.ndarray:
    found = hesspec.class_structure(network(place), LOSS, data(place))
    return numbers(found.class_eigenvalues, found.same_eigenvalues, found.cross_eigenvalues, found.outliers)


def attribution(place: Place) -> np.ndarray:
    pairs = hesspec.eigenpairs(of("GaussNewton", place), count=3, steps=20)
    means = hesspec.ClassMeans(network(place), LOSS, data(place))
    return numbers(hesspec.attribute_outliers(means, pairs).shares)


def by_block(place: Place) -> np.ndarray:
    found = hesspec.by_block(network(place), LOSS, data(place), blocks="module", steps=30)
    return numbers(*(found[name].eigenvalues[:2] for name in found))


def along(place: Place) -> np.ndarray:
    hessian = of("Hessian", place)
    return numbers(hesspec.loss_along(hessian, hesspec.eigenpairs(hessian, count=2, steps=20)).losses)


def noise(place: Place) -> np.ndarray:
    pairs = hesspec.eigenpairs(of("Hessian", place), count=2, steps=20)
    found = hesspec.noise.gradient_noise(network(place), LOSS, data(place), pairs, batch_size=4, count=6, bulk=2)
    return numbers(np.abs(found.along_eigenvectors), np.abs(found.in_bulk))


def angles(place: Place) -> np.ndarray:
    one, other = (hesspec.eigenpairs(of(kind, place), count=2, steps=20) for kind in ("Hessian", "GaussNewton"))
    return numbers(hesspec.principal_angles(one, other).cosines)


def amuse(place: Place, times: int = 3) -> np.ndarray:
    model, ((inputs, targets), *_) = network(place), data(place)
    optimizer = hesspec.optim.AMUSE(hesspec.optim.muon_groups(model), lr=0.02, warmup_steps=2)
    for _ in range(times):
        optimizer.zero_grad()
        LOSS(model(inputs), targets).backward()
        optimizer.step()
    optimizer.eval()
    return numbers(*weights(model))


def fast_gauss_newton(place: Place, times: int = 2) -> np.ndarray:
    model, ((inputs, targets), *_) = network(place), data(place)
    optimizer = hesspec.optim.FastGaussNewton(model, LOSS, damping=0.1)
    for _ in range(times):
        optimizer.step(inputs, targets)
    return numbers(*weights(model))


def trained(place: Place, monitor: Callable[..., Any], times: int) -> Any:
    """Train while a monitor looks."""
    model, batches = network(place), data(place)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    watch = monitor(model, LOSS, batches, optimizer)
    for step in range(times):
        optimizer.zero_grad()
        LOSS(model(batches[0][0]), batches[0][1]).backward()
        watch(step)
        optimizer.step()
    return watch.result()


def shares(place: Place) -> np.ndarray:
    found = trained(place, lambda *given: hesspec.optim.monitor_shares(*given, every=2, k=2, steps=20), 3)
    return numbers(found.values)


def stability(place: Place) -> np.ndarray:
    found = trained(place, lambda *given: hesspec.stability.monitor(*given, every=2), 3)
    return numbers(found.thresholds, found.sharpness)


def exponents(place: Place) -> np.ndarray:
    steps = [hesspec.stability.StepJacobian(of("Hessian", place), learning_rate=0.1)] * 12
    return numbers(hesspec.stability.lyapunov_exponents(steps, count=2, discard=4).exponents)


def laplace(place: Place) -> np.ndarray:
    found = hesspec.laplace.Laplace(network(place), LOSS, data(place), steps=30)
    inputs = data(place)[0][0][:3]
    return numbers(
        found.log_evidence().value,
        found.covariance(inputs).values,
        found.covariance(inputs, exact=True).values,
        found.predict(inputs).mean,
        found.predict(inputs, method="network samples", samples=4).mean,
    )


APPLICATIONS = {
    function.__name__: function
    for function in (
        eigenpairs,
        largest,
        diagonal,
        trace,
        conjugate_gradients,
        minres,
        class_structure,
        attribution,
        by_block,
        along,
        noise,
        angles,
        amuse,
        fast_gauss_newton,
        shares,
        stability,
        exponents,
        laplace,
    )
}


def waits_of(function: Callable[..., Any], *times: int) -> int:
    """Number of waits for the device."""
    counts.clear()
    function(on_device, *times)
    return counts.waits.total()


def row(name: str) -> dict[str, Any]:
    """Compare an application."""
    function = APPLICATIONS[name]
    expected, found = function(on_cpu), function(on_device)
    made = {"what": name, "apart": float(np.abs(found - expected).max() / np.abs(expected).max())}
    if defaults := function.__defaults__:
        (times,) = defaults
        made["waits"] = (waits_of(function, 2 * times) - waits_of(function, times)) / times
    return made


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    sys.stdout.write(json.dumps([row(each) for each in sys.argv[1:] or APPLICATIONS]))
