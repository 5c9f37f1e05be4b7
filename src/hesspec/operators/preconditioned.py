r"""Preconditioned operators P^(-1/2) A P^(-1/2), and the preconditioners of adaptive optimisers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adagrad, Adam, Optimizer, RMSprop

from hesspec.backend.algebra import Combination, Composable, check_operator, expect_products
from hesspec.backend.ranks import ALONE, Ranks
from hesspec.backend.text import kind_of
from hesspec.operators.base import CurvatureOperator
from hesspec.operators.risk.parameters import ParameterSelection

__all__ = ["Preconditioned", "preconditioner"]


class Preconditioned(Composable):
    r"""Preconditioned operator P^(-1/2) A P^(-1/2) for a symmetric operator A and a positive diagonal P.

    If an optimiser divides its step by P, :math:`\theta \leftarrow \theta - \eta P^{-1} m`, this is the Hessian in the
    coordinates :math:`P^{1/2} \theta`. Its eigenvalues are those of :math:`P^{-1} A`, and the largest one determines
    whether the optimiser is stable (see `hesspec.stability`).

    Parameters
    ----------
    operator : SymmetricOperator
        A: an operator of hesspec, or any symmetric operator with `shape` (p, p), `dtype`, `device` and `@`.
    diagonal : Tensor (p,) or torch.optim.Optimizer
        P, positive and finite, on any device and in any precision; or an optimiser (Adam, AdamW, RMSprop, Adagrad) of
        the operator's parameters, from whose current state P is computed, see `preconditioner`.

    Attributes
    ----------
    shape, dtype, device
        Those of A.
    diagonal : Tensor (p,)
        P, in the dtype of the operator.

    Raises
    ------
    ValueError
        If the diagonal has another shape or is not positive and finite, or the optimiser has no state yet, does not
        train all of the operator's parameters, or is of another class.

    Examples
    --------
    >>> import torch, hesspec
    >>> hessian = torch.tensor([[4.0, 2.0], [2.0, 9.0]])
    >>> operator = hesspec.Preconditioned(hessian, torch.tensor([4.0, 1.0]))
    >>> operator @ torch.eye(2)
    tensor([[1., 1.],
            [1., 9.]])
    """

    def __init__(self, operator: Any, diagonal: Tensor | Optimizer) -> None:
        p, name = check_operator(operator), type(diagonal).__name__
        if isinstance(diagonal, Optimizer):
            chosen = _parameters(operator)
            if chosen is None:
                raise ValueError(
                    f"{kind_of(operator, first=True)} does not know its parameters; pass the diagonal itself, for "
                    "example hesspec.operators.preconditioner(optimizer, model.named_parameters())."
                )
            diagonal = preconditioner(diagonal, zip(chosen.names, chosen.parameters, strict=True))
        if not isinstance(diagonal, Tensor) or diagonal.shape != (p,) or not diagonal.is_floating_point():
            seen = f"{tuple(diagonal.shape)} {diagonal.dtype}" if isinstance(diagonal, Tensor) else kind_of(diagonal)
            raise ValueError(f"The diagonal must be a real tensor of shape ({p},), or an optimiser; it is {seen}.")
        diagonal = diagonal.detach().to(operator.device, torch.float64)
        wrong = ~((diagonal > 0) & diagonal.isfinite())
        if wrong.any():
            place = int(wrong.nonzero()[0])
            raise ValueError(
                f"The diagonal must be positive and finite; entry {place} is {float(diagonal[place])!r}, one of "
                f"{int(wrong.sum())} such entries. Set eps > 0 in the optimiser to keep the diagonal above zero."
            )
        self.operator, self.preconditioner = operator, name
        # Rounded to the operator's precision once, so that the matrix is exactly symmetric.
        self.diagonal = diagonal.to(operator.dtype)
        self._scale = diagonal.rsqrt().to(operator.dtype)
        self.shape, self.dtype, self.device = (p, p), operator.dtype, torch.device(operator.device)

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Product with a vector (p,) or with the columns of a matrix (p, k), of this dtype and on this device.

        Raises
        ------
        ValueError
            If the argument is not a tensor of such a shape.
        """
        if not isinstance(vectors, Tensor) or vectors.dim() not in (1, 2) or len(vectors) != len(self._scale):
            seen = tuple(vectors.shape) if isinstance(vectors, Tensor) else kind_of(vectors)
            raise ValueError(
                f"The operator takes tensors of shape ({len(self._scale)},) or with k columns, not {seen}."
            )
        scale = self._scale if vectors.dim() == 1 else self._scale[:, None]
        product: Tensor = scale * (self.operator @ (scale * vectors))
        return product

    def expect_products(self, number: int | None) -> None:
        """Tell A how many products will follow."""
        expect_products(self.operator, number)

    @property
    def matvecs(self) -> int:
        """Number of products with vectors so far, as counted by A; 0 if A does not count them."""
        return int(getattr(self.operator, "matvecs", 0))

    @property
    def ranks(self) -> Ranks:
        """Processes that share the data of A."""
        found: Ranks = getattr(self.operator, "ranks", ALONE)
        return found

    @property
    def product_error(self) -> float:
        """Error of products relative to their norm: that of A times the condition number of P^(1/2).

        ||S e|| <= max(S) error ||A u||, and ||S A u|| >= min(S) ||A u||, with S = P^(-1/2).
        """
        error = float(getattr(self.operator, "product_error", 0.0))
        return error * float(self._scale.max() / self._scale.min()) if error else 0.0

    @property
    def reference(self) -> Preconditioned | None:
        """The same operator with the reference of A, see `CurvatureOperator.reference`; None if A has none."""
        reference = getattr(self.operator, "reference", None)
        return None if reference is None else self._of(reference, self._scale, self.diagonal)

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes of A, and the kind of preconditioner: "Tensor", or the class of the optimiser."""
        known: dict[str, Any] = dict(getattr(self.operator, "attributes", {}))
        matrix = known.get("matrix", type(self.operator).__name__)
        return {**known, "matrix": f"preconditioned {matrix}", "preconditioner": self.preconditioner}

    def identity(self) -> dict[str, str]:
        """Content hashes that identify this operator."""
        known: Callable[[], dict[str, str]] = getattr(self.operator, "identity", dict)
        content = self._scale.cpu().contiguous().numpy().tobytes()
        if isinstance(self.operator, Tensor):
            content += self.operator.cpu().contiguous().numpy().tobytes()
        return {**known(), "preconditioner": hashlib.blake2b(content).hexdigest()[:16]}

    def sliced(self) -> Preconditioned:
        """Return the operator on slices of vectors, one for each rank; with one rank, the operator itself."""
        if self.ranks.size == 1:
            return self
        begin, end = self.ranks.part(self.shape[0])
        return self._of(self.operator.sliced(), self._scale[begin:end], self.diagonal[begin:end])

    def _of(self, operator: Any, scale: Tensor, diagonal: Tensor) -> Preconditioned:
        other = Preconditioned.__new__(Preconditioned)
        other.operator, other.preconditioner = operator, self.preconditioner
        other.diagonal, other._scale = diagonal, scale  # noqa: SLF001 - it is of this class
        other.shape, other.dtype, other.device = self.shape, self.dtype, self.device
        return other

    def __repr__(self) -> str:
        """Operator and kind of preconditioner."""
        return f"Preconditioned({self.operator!r}, by {self.preconditioner})"


def _parameters(operator: Any) -> ParameterSelection | None:
    """Parameters of an operator, or of the first term of a sum that has them."""
    terms = [term for _, term in operator.terms] if isinstance(operator, Combination) else [operator]
    known = [term for term in terms if isinstance(term, CurvatureOperator)]
    return known[0]._risk.parameters if known else None  # noqa: SLF001 - of the same package


def preconditioner(optimizer: Optimizer, parameters: Iterable[tuple[str, nn.Parameter]]) -> Tensor:
    r"""Compute the diagonal P by which an optimiser divided its last step, from its state.

    P is such that the step was :math:`\theta \leftarrow \theta - \eta P^{-1} m`, with the optimiser's learning rate and
    its stored first moment (the gradient, if it stores none):

    - Adam and AdamW: :math:`(1 - \beta_1^t) (\sqrt{v_t / (1 - \beta_2^t)} + \epsilon)`, with the running maximum of
      v_t for `amsgrad`;
    - RMSprop: :math:`\sqrt{v_t} + \epsilon`, with the squared mean gradient subtracted under the root if `centered`;
    - Adagrad: :math:`(1 + (t - 1) \, lr\_decay) (\sqrt{s_t} + \epsilon)`.

    Parameters
    ----------
    optimizer : torch.optim.Adam, AdamW, RMSprop or Adagrad
        Optimiser, after at least one step.
    parameters : iterable of (str, Parameter)
        Parameters, with their names for error messages, as from `model.named_parameters()`.

    Returns
    -------
    Tensor (p,)
        P in float64, in the order of `parameters`; two entries for each number of a complex parameter.

    Raises
    ------
    ValueError
        If the optimiser is of another class, has not made a step, or does not train one of the parameters.
    """
    kind = next((kind for kind in _FROM_STATE if isinstance(optimizer, kind)), None)
    if kind is None:
        raise ValueError(
            f"{kind_of(optimizer, first=True)} has no known preconditioner; Adam, AdamW, RMSprop and "
            "Adagrad are supported. Pass the diagonal as a tensor (p,)."
        )
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    parts = []
    for name, parameter in parameters:
        if id(parameter) not in groups:
            raise ValueError(
                f"The optimiser does not train parameter {name!r}; select those that it trains with params=[...]."
            )
        state = optimizer.state.get(parameter, {})
        if not state or not float(state["step"]) > 0:
            raise ValueError(
                f"The {type(optimizer).__name__} has no state for parameter {name!r} yet: make a step first. A "
                "parameter that never receives a gradient has none; exclude it with params=[...]."
            )
        diagonal = _FROM_STATE[kind](groups[id(parameter)], state, float(state["step"]))
        parts.append(diagonal.reshape(-1))
    return torch.cat(parts)


def _moment(state: Mapping[str, Any], name: str) -> Tensor:
    """Return a second moment in float64, with complex numbers as pairs of reals."""
    moment: Tensor = state[name].detach()
    return (torch.view_as_real(moment) if moment.is_complex() else moment).double()


def _adam(group: Mapping[str, Any], state: Mapping[str, Any], step: float) -> Tensor:
    beta1, beta2 = map(float, group["betas"])
    second = _moment(state, "max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq")
    diagonal: Tensor = (1 - beta1**step) * ((second / (1 - beta2**step)).sqrt() + float(group["eps"]))
    return diagonal


def _rmsprop(group: Mapping[str, Any], state: Mapping[str, Any], _: float) -> Tensor:
    second = _moment(state, "square_avg")
    if group["centered"]:
        second = second - _moment(state, "grad_avg") ** 2
    return second.sqrt() + float(group["eps"])


def _adagrad(group: Mapping[str, Any], state: Mapping[str, Any], step: float) -> Tensor:
    return (1 + (step - 1) * float(group["lr_decay"])) * (_moment(state, "sum").sqrt() + float(group["eps"]))


# AdamW is a subclass of Adam.
_FROM_STATE: dict[type[Optimizer], Callable[[Mapping[str, Any], Mapping[str, Any], float], Tensor]] = {
    Adam: _adam,
    torch.optim.AdamW: _adam,
    RMSprop: _rmsprop,
    Adagrad: _adagrad,
}
