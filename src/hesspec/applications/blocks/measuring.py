"""`hesspec.by_block`: the spectra of all diagonal blocks of a matrix in one go, with shared passes over the data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor, nn

from hesspec.applications.blocks.partition import REST, Blocks, Spec, blocks_of, rest_of
from hesspec.applications.blocks.record import BlockSpectra
from hesspec.backend.algebra import SymmetricOperator, check_operator, expect_products
from hesspec.backend.bars import steps_of
from hesspec.backend.heap import returned_memory
from hesspec.backend.memory import parse_memory
from hesspec.backend.memory_shares import free_shares
from hesspec.backend.numbers import check_seed
from hesspec.backend.progress import OnStep
from hesspec.backend.ranks import ALONE
from hesspec.backend.text import kind_of
from hesspec.krylov.requests import in_lockstep
from hesspec.matrices import MATRICES, matrix_names
from hesspec.measure.runs import check_run, spectrum_requests
from hesspec.operators import CurvatureOperator
from hesspec.operators.block_diagonal import BlockDiagonal
from hesspec.operators.engine.trace_cost import PRODUCTS
from hesspec.operators.engine.within import BlockEntries
from hesspec.operators.risk.losses import LossFunction
from hesspec.operators.risk.parameters import ParameterSpec, select_parameters

__all__ = ["by_block", "diagonal_blocks"]

# Parameters that the text of a block's content names; others are counted.
NAMED: Final = 6
# Products of all blocks of a network of many layers cost that of several measurements of the whole matrix.
COST_OF_BLOCKS: Final = 3


@returned_memory()
def by_block(
    subject: nn.Module | SymmetricOperator,
    loss_fn: LossFunction | None = None,
    data: Iterable[Any] | None = None,
    *,
    blocks: Spec | Mapping[str, Any] = "layer",
    matrix: str = "hessian",
    params: ParameterSpec = None,
    rest: bool = True,
    steps: int | Literal["auto"] = 64,
    probes: int = 1,
    seed: int = 0,
    tolerance: float = 0.05,
    memory: str | int | None = None,
    products_memory: str | int | None = None,
    on_step: OnStep | None = None,
    progress: bool = True,
    **options: Any,
) -> BlockSpectra:
    """Measure the spectrum of each diagonal block of a curvature matrix: by layer, head, module or parameter.

    The block of some parameters is the matrix of the loss as a function of these, with all others held fixed. All
    blocks are measured together: one trace, one primal pass for each batch, and Lanczos runs that advance in lockstep,
    so that each pass over the data serves all of them. The product with a block begins where its first parameter is
    used, and ends at its gradients.

    Parameters
    ----------
    subject : torch.nn.Module or SymmetricOperator
        Model in evaluation mode, with its loss and data; or an operator, such as `hesspec.GaussNewton`.
    loss_fn, data
        See `hesspec.Hessian`; not for an operator.
    blocks : str, sequence of str, or mapping
        "parameter": each parameter tensor. "module": the parameters of each module, without those of its children.
        "layer": each layer of a model with repeated layers (children, of one class, of a `ModuleList` or `Sequential`),
        the embedding, and the other modules; in a model without repeated layers, each module with a weight matrix
        together with the normalisation after it. "projection": queries, keys, values and outputs of each attention
        ("layer 3, q"), and the other modules of each layer. "head": queries, keys, values and outputs of each head
        ("layer 3, head 1"); where heads share keys and values, these are blocks of their own ("layer 3, key-value head
        0"). Numbers start at 0.

        A sequence holds names of such blocks, or of parameters. A mapping gives for each name of a block: names or
        patterns of parameters ("encoder.*"), or a mapping of names of parameters to slices
        (`{"fc.weight": np.s_[:10]}`), or, for an operator that does not name its parameters, a slice or indices.
        Parameters with several names (tied weights) are in one block, by the first of their names.
    matrix : str
        Matrix of a model: "hessian", "gauss-newton", "residual" or another name or alias of `hesspec.matrices`.
    params : optional
        Parameters of a model with respect to which the matrix is taken; all that require a gradient by default.
    rest : bool
        Whether all other parameters form a block "rest", so that the trace of the whole is known. It costs as much as a
        spectrum of the whole matrix if `blocks` are only a few.
    steps, probes, tolerance : optional
        Of each block; see `hesspec.spectrum`.
    seed : int
        Seed of the probe of the first block; that of block i is `seed + i`.
    memory : str or int, optional
        Device memory for the Krylov bases of all blocks, which together need as much as that of the whole matrix.
    products_memory : str or int, optional
        Memory for products with the matrix of a model: `memory` of `CurvatureOperator`.
    on_step : callable, optional
        Called after each step with the number of steps of all blocks so far and their total (None with "auto").
    progress : bool
        See `hesspec.spectrum`.
    **options
        Further arguments of the matrix of a model: `terms`, `precision`, `mode`, `graphs`, `group` and others of
        `CurvatureOperator`.

    Returns
    -------
    BlockSpectra

    Raises
    ------
    ValueError
        If a block does not exist, is empty or overlaps with another; if the form of an attention module or its number
        of heads is not known; if loss and data are missing for a model, or given for an operator. See also
        `hesspec.spectrum`.
    NonFiniteError, MemoryError
        See `hesspec.spectrum`.

    Notes
    -----
    Products are exact: those of a block are computed from the graph of the whole product, of which linearity in the
    vector removes what is zero, and are compared with the whole product, for one batch, before they are used. With L
    layers, the tangent of block l runs forward through the layers after it and back: about a third of the work of these
    layers in a Hessian product where weight matrices dominate, and all of it for activations and attention. L blocks
    cost (5 + L)/6 to (1 + L)/2 whole products instead of the L that one product for each block takes.

    Examples
    --------
    >>> import torch, hesspec
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    >>> data = [(torch.randn(20, 4), torch.randint(3, (20,)))]
    >>> result = hesspec.by_block(model, torch.nn.CrossEntropyLoss(), data, blocks="module", steps=60)
    >>> list(result), result["0"].dimension
    (['0', '2'], 40)
    >>> bool(abs(result.trace_shares.sum() - 1) < 1e-6)
    True
    """
    check_run(steps, probes)
    seed = check_seed(seed)
    if not tolerance > 0:
        raise ValueError(f"tolerance is {tolerance!r}; it must be positive.")
    if products_memory is not None:
        options["memory"] = products_memory
    operator = _operator(subject, loss_fn, data, blocks, matrix, params, options)
    diagonal, contents = diagonal_blocks(operator, blocks, rest=rest)
    device, ranks = diagonal.device, getattr(operator, "ranks", ALONE)
    budget = int(ranks.least(free_shares(device, ranks).basis)) if memory is None else parse_memory(memory)
    names, sizes = list(diagonal.blocks), [diagonal.size(name) for name in diagonal.blocks]
    each = PRODUCTS if steps == "auto" else steps
    expect_products(operator, (1 + len(names) // COST_OF_BLOCKS) * each * probes)
    with steps_of(f"spectra of {len(names)} blocks", on_step, wanted=progress) as shown:
        counted = _Counted(shown, None if steps == "auto" else sum(min(steps, size) * probes for size in sizes))
        runs = [
            spectrum_requests(
                diagonal.blocks[name],
                steps=steps,
                probes=probes,
                seed=seed + place,
                tolerance=tolerance,
                budget=int(budget * (size / sum(sizes))),
                on_step=counted.of(place),
            )
            for place, (name, size) in enumerate(zip(names, sizes, strict=True))
        ]
        spectra = in_lockstep(runs, lambda pairs: diagonal.products([(names[i], vector) for i, vector in pairs]))
    attributes = {
        **getattr(operator, "attributes", {}),
        **{name: spectra[0].attributes[name] for name in ("seed", "dtype", "device", "created", "hesspec", "torch")},
        "seconds": max(float(each.attributes["seconds"]) for each in spectra),
        **({"by": blocks} if isinstance(blocks, str) else {}),
    }
    return BlockSpectra.of(
        dict(zip(names, spectra, strict=True)),
        [contents[name] for name in names],
        check_operator(operator),
        attributes,
    )


class _Counted:
    """Steps of all blocks together, for one bar."""

    def __init__(self, shown: OnStep | None, total: int | None) -> None:
        self._shown, self._total, self._done = shown, total, dict[int, int]()

    def of(self, place: int) -> OnStep:
        def on_step(done: int, _: int | None) -> None:
            self._done[place] = done
            if self._shown is not None:
                self._shown(sum(self._done.values()), self._total)

        return on_step


def _operator(
    subject: nn.Module | SymmetricOperator,
    loss_fn: LossFunction | None,
    data: Iterable[Any] | None,
    blocks: Spec | Mapping[str, Any],
    matrix: str,
    params: ParameterSpec,
    options: dict[str, Any],
) -> SymmetricOperator:
    if not isinstance(subject, nn.Module):
        if loss_fn is not None or data is not None or params is not None or options:
            given = [
                name for name, value in (("loss_fn", loss_fn), ("data", data), ("params", params)) if value is not None
            ]
            raise ValueError(
                f"by_block got an operator, {kind_of(subject)}, and {', '.join([*given, *options])}, which "
                "belong to a model; pass the operator alone, or a model."
            )
        check_operator(subject)
        return subject
    if loss_fn is None or data is None:
        raise ValueError("by_block needs the loss and the data of a model: by_block(model, loss_fn, data).")
    # Before data is read.
    blocks_of(blocks, subject, {name: value.shape for name, value in select_parameters(subject, params).items()})
    (name,) = matrix_names([matrix])
    kind: Callable[..., SymmetricOperator] = getattr(import_module(MATRICES[name].module), name)
    return kind(subject, loss_fn, data, params, **options)


def diagonal_blocks(
    operator: SymmetricOperator, blocks: Spec | Mapping[str, Any], *, rest: bool = True
) -> tuple[BlockDiagonal, dict[str, str]]:
    """Diagonal blocks of an operator, named as in `by_block`, and what each of them holds as text."""
    if not isinstance(operator, CurvatureOperator):
        return _by_index(operator, blocks, rest=rest)
    shapes = operator.shapes
    found: Blocks = blocks_of(blocks, operator.model, shapes)
    others = rest_of(found, shapes) if rest else {}
    if others:
        if REST in found:
            raise ValueError(f"A block is named {REST!r}, which is the name of all other parameters; rename it.")
        found = {**found, REST: others}
    sizes = {name: shape.numel() for name, shape in shapes.items()}
    entries = {name: _flat(part, sizes) for name, part in found.items()}
    return BlockDiagonal(operator, entries), {name: _content(part, sizes) for name, part in found.items()}


def _flat(part: Mapping[str, Tensor | None], sizes: Mapping[str, int]) -> BlockEntries:
    places = [place for place, name in enumerate(sizes) if name in part]
    names = [name for name in sizes if name in part]
    if all(part[name] is None for name in names):
        return BlockEntries(tuple(places), None, sum(sizes[name] for name in names))
    begins = itertools.accumulate([0, *(sizes[name] for name in names)])
    pieces = []
    for name, begin in zip(names, begins, strict=False):
        entries = part[name]
        pieces.append(begin + (torch.arange(sizes[name]) if entries is None else entries))
    inside = torch.cat(pieces)
    return BlockEntries(tuple(places), inside, inside.numel())


def _content(part: Mapping[str, Tensor | None], sizes: Mapping[str, int]) -> str:
    words = [
        name if entries is None else f"{name} ({entries.numel():,} of {sizes[name]:,})"
        for name, entries in part.items()
    ]
    more = f" and {len(words) - NAMED} more" if len(words) > NAMED else ""
    return ", ".join(words[:NAMED]) + more


def _by_index(
    operator: SymmetricOperator, blocks: Spec | Mapping[str, Any], *, rest: bool
) -> tuple[BlockDiagonal, dict[str, str]]:
    p = check_operator(operator)
    if not isinstance(blocks, Mapping) or not blocks:
        raise ValueError(
            f"{kind_of(operator, first=True)} does not name its parameters: pass blocks as a mapping of names to "
            f"slices or indices of its {p} entries."
        )
    owner, found = np.full(p, -1), dict[str, Tensor]()
    names = [str(name) for name in blocks]
    for number, (name, index) in enumerate(zip(names, blocks.values(), strict=True)):
        try:
            entries = np.arange(p)[index.cpu().numpy() if isinstance(index, Tensor) else index]
        except (IndexError, TypeError) as error:
            raise ValueError(f"The block {name!r} is not a slice or indices of {p} entries: {error}.") from None
        entries = np.unique(np.atleast_1d(entries))
        if not entries.size:
            raise ValueError(f"The block {name!r} selects no entries of {p}.")
        if (taken := owner[entries]).max() >= 0:
            raise ValueError(
                f"The blocks {names[int(taken.max())]!r} and {name!r} overlap in {int((taken >= 0).sum())} entries; "
                "blocks must be disjoint. Measure overlapping ones in separate calls."
            )
        owner[entries] = number
        found[name] = torch.from_numpy(entries)
    if rest and (owner < 0).any():
        if REST in found:
            raise ValueError(f"A block is named {REST!r}, which is the name of all other entries; rename it.")
        found[REST] = torch.from_numpy(np.flatnonzero(owner < 0))
    return BlockDiagonal(operator, found), {name: f"{part.numel():,} entries" for name, part in found.items()}
