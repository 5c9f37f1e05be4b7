"""What hesspec does not do by itself: networks in channels_last, and tangent passes compiled by torch.compile."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import hesspec
from _turns import in_turn
from gpu_parts import Given, seconds_of, synchronised
from gpu_parts.graphs import graphs
from gpu_parts.networks import of_torchvision, tiny, vgg

TITLE = "Variants"
NOTE = (
    "Products with a network whose weights and images are channels_last, and tangent passes compiled by "
    "`torch.compile`, relative to the plain traced product (without CUDA graphs), in turn; first: seconds of the "
    "first call, which compiles."
)
COLUMNS = ("network", "matrix", "variant", "ms", "times", "first, s", "difference")


def compiled(operator: Any, device: torch.device) -> Callable[[Tensor], Sequence[Tensor]]:
    """Products of the only batch by its compiled tangent pass."""
    (kept,) = operator._build()._kept.values()  # noqa: SLF001 - there is no public way to a part of a product
    (tangent,) = kept.apply.trace.tangents
    # Without a card, what is tried is that the graph can be captured, not the compilation of kernels for minutes.
    run = torch.compile(tangent.__self__, backend="inductor" if device.type == "cuda" else "aot_eager", dynamic=False)

    def product(vector: Tensor) -> Tensor:
        with torch.no_grad():
            parts = run(*kept.apply.residuals, *operator._risk.parameters.split(vector))  # noqa: SLF001 - likewise
            return torch.cat([part.reshape(-1) for part in parts])

    return product


def run(given: Given) -> None:
    """Measure."""
    real = {"VGG11-BN": (vgg, 32, 2048), "ResNet18": (of_torchvision("resnet18", num_classes=10), 64, 512)}
    for name, (build, side, samples) in ({"tiny": (tiny, 32, 2)} if given.quick else real).items():
        for matrix in ("Hessian", "GaussNewton"):
            with given.step(f"{name}, {matrix}"), graphs(given.device, on=False):
                one(given, name, build, samples, side, matrix)


def one(given: Given, name: str, build: Callable[[], nn.Module], samples: int, side: int, matrix: str) -> None:
    """One network and matrix."""
    torch.manual_seed(0)
    model, inputs = build().eval().to(given.device), torch.randn(samples, 3, side, side, device=given.device)
    targets, loss = torch.arange(samples, device=given.device) % 10, nn.CrossEntropyLoss()
    operator = getattr(hesspec, matrix)(model, loss, [(inputs, targets)], mode="traced")
    vector = torch.randn(operator.shape[0], generator=torch.Generator().manual_seed(0)).to(given.device)
    expected = operator @ vector
    last = getattr(hesspec, matrix)(
        build().eval().to(given.device, memory_format=torch.channels_last),
        loss,
        [(inputs.to(memory_format=torch.channels_last), targets)],
        mode="traced",
    )
    last.model.load_state_dict(model.state_dict())
    last = last.at_current_weights()
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "plain": lambda v: operator @ v,
        "channels_last": lambda v: last @ v,
    }
    first, apart = {}, {}
    with given.step(f"{name}, {matrix}, torch.compile"):
        ways["torch.compile"] = compiled(operator, given.device)
    for way, product in list(ways.items()):
        with given.step(f"{name}, {matrix}, {way}"):
            results: list[Tensor] = []
            first[way] = seconds_of(lambda p=product, r=results: r.append(p(vector)), given.device)
            apart[way] = float((results[0] - expected).norm() / expected.norm())
    calls = {way: synchronised(lambda p=ways[way]: p(vector), given.device) for way in apart}
    taken = in_turn(calls, 3 if given.quick else 5, 0.0 if given.quick else 1.0)
    for way, seconds in taken.items():
        ratio = statistics.median(a / b for a, b in zip(taken["plain"], seconds, strict=True))
        given.keep(
            name,
            matrix,
            way,
            f"{1e3 * statistics.median(seconds):.2f}",
            f"{ratio:.2f}",
            f"{first[way]:.1f}",
            f"{apart[way]:.0e}",
            failed=not apart[way] < 1e-4,
        )
