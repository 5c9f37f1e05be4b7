"""Protocol of symmetric operators, and their sums, multiples and blocks."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from numbers import Real
from typing import Any, Final, Protocol

import numpy as np
import scipy.sparse.linalg
import torch
from torch import Tensor, nn

from hesspec.backend.ranks import ALONE, Ranks
from hesspec.backend.text import kind_of

__all__ = ["Block", "Combination", "Composable", "Identity", "SymmetricOperator", "check_operator", "expect_products"]


class SymmetricOperator(Protocol):
    """Symmetric matrix given by its products: an operator of hesspec or curvlinops, or a dense symmetric tensor.

    An operator may have further attributes, which are used if present:

    - `attributes`: a mapping of names to strings and numbers, stored with the result of a measurement;
    - `product_error`: error of products relative to their norm, in addition to the rounding of their dtype: a constant,
      or that of the last product, never of products before it, which a resumed run has not computed;
    - `reference`: the same matrix computed in another way, to measure the error of products, or None;
    - `identity()`: a mapping to strings that identify the matrix by its content, for snapshots;
    - `ranks` and `sliced()`: the processes that share its data, and the operator on the slice of each vector that a
      process holds;
    - `expect_products(number)`: called before products with the number of them that will follow, or None if that is not
      known.
    """

    @property
    def shape(self) -> Any:
        """Shape (p, p)."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the operator and its vectors: float32 or float64."""

    @property
    def device(self) -> torch.device:
        """Device of the vectors."""

    def __matmul__(self, vector: Any, /) -> Any:
        """Product with a vector (p,)."""


def check_operator(operator: Any) -> int:
    """Check that the spectrum of an operator can be computed, and return its size p.

    Raises
    ------
    ValueError
        If an attribute is missing, the shape is not (p, p) with p > 0, or the dtype is neither float32 nor float64.
    """
    if isinstance(operator, np.ndarray):
        raise ValueError("The operator is a NumPy array; pass torch.from_numpy(matrix).")
    if isinstance(operator, nn.Module):
        raise ValueError(
            f"The operator is {kind_of(operator)}, a model; pass hesspec.Hessian(model, loss_fn, data), which "
            "is the Hessian of its loss."
        )
    for name in ("shape", "dtype", "device", "__matmul__"):
        if not hasattr(operator, name):
            raise ValueError(
                f"{kind_of(operator, first=True)} has no {name}; an operator needs shape, dtype, device and @ (a dense "
                "symmetric torch.Tensor has them all)."
            )
    shape = tuple(operator.shape)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 1:
        raise ValueError(f"The operator has shape {shape}; a spectrum needs (p, p) with p > 0.")
    if operator.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"The operator, {kind_of(operator)}, is {operator.dtype}; spectra are measured in torch.float32 or "
            "torch.float64."
        )
    if isinstance(operator, Tensor) and operator.requires_grad:
        raise ValueError("The operator is a tensor that requires a gradient; pass operator.detach().")
    return int(shape[0])


def expect_products(operator: Any, number: int | None) -> None:
    """Tell an operator how many products with vectors will follow, if it can be told: see `SymmetricOperator`."""
    tell = getattr(operator, "expect_products", None)
    if tell is not None:
        tell(number)


class Composable:
    """Base class of operators that can be added, subtracted, scaled, restricted to a block, and passed to SciPy.

    Combinations are lazy: each product is computed from products with the parts.

    Examples
    --------
    >>> import torch, hesspec
    >>> model = torch.nn.Linear(4, 3)
    >>> data = [(torch.randn(20, 4), torch.randint(3, (20,)))]
    >>> H, G = (M(model, torch.nn.CrossEntropyLoss(), data) for M in (hesspec.Hessian, hesspec.GaussNewton))
    >>> damped, residual = G + 0.1 * hesspec.Identity.like(G), H - G
    >>> weights = H["weight"]
    >>> damped.shape, weights.shape
    ((15, 15), (12, 12))
    """

    # NumPy's scalars leave multiplication to `__rmul__` instead of looking into the operator.
    __array_ufunc__: Final = None

    def __add__(self: Any, other: Any) -> Combination:
        """Sum with another operator."""
        return Combination([(1.0, self), (1.0, other)]) if _is_operator(other) else NotImplemented

    def __sub__(self: Any, other: Any) -> Combination:
        """Difference of this operator and another."""
        return Combination([(1.0, self), (-1.0, other)]) if _is_operator(other) else NotImplemented

    def __neg__(self: Any) -> Combination:
        """Operator multiplied by -1."""
        return Combination([(-1.0, self)])

    def __mul__(self: Any, factor: Any) -> Combination:
        """Operator multiplied by a number."""
        return Combination([(float(factor), self)]) if _is_number(factor) else NotImplemented

    __rmul__ = __mul__

    def __truediv__(self: Any, divisor: Any) -> Combination:
        """Operator divided by a number."""
        return Combination([(1 / float(divisor), self)]) if _is_number(divisor) else NotImplemented

    def __getitem__(self: Any, block: Any) -> Block:
        """Principal submatrix: see `Block`."""
        return Block(self, block)

    def to_scipy(self: Any) -> scipy.sparse.linalg.LinearOperator:
        """Return a `scipy.sparse.linalg.LinearOperator` that takes and returns NumPy arrays of the same precision."""

        def multiply(vectors: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            flat = vectors.reshape(-1) if vectors.shape[1:] == (1,) else vectors
            product: Tensor = self @ torch.as_tensor(flat, dtype=self.dtype, device=self.device)
            return product.cpu().numpy().reshape(vectors.shape)

        dtype = np.dtype(str(self.dtype).removeprefix("torch."))
        return scipy.sparse.linalg.LinearOperator(
            self.shape, matvec=multiply, rmatvec=multiply, matmat=multiply, rmatmat=multiply, dtype=dtype
        )


class Identity(Composable):
    """Identity operator, for damping: `H + 0.1 * hesspec.Identity.like(H)`.

    Parameters
    ----------
    dimension : int
        Size p.
    dtype, device
        Dtype and device of its vectors.
    """

    def __init__(
        self, dimension: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> None:
        self.shape, self.dtype, self.device = (dimension, dimension), dtype, torch.device(device)
        self.attributes: dict[str, Any] = {"matrix": "identity"}

    @classmethod
    def like(cls, operator: SymmetricOperator) -> Identity:
        """Return the identity with the size, dtype and device of an operator."""
        return cls(int(operator.shape[0]), dtype=operator.dtype, device=operator.device)

    def identity(self) -> dict[str, str]:
        """Content hashes of this operator."""
        return {"matrix": "identity"}

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Return the vector (p,) or matrix (p, k) unchanged."""
        return vectors.clone()


class Combination(Composable):
    """Linear combination of symmetric operators of one size, dtype and device: sum of c_i A_i.

    Parameters
    ----------
    terms : sequence of (float, SymmetricOperator)
        Coefficients c_i and operators A_i. A combination among them is replaced by its terms.

    Raises
    ------
    ValueError
        If a coefficient is not finite, or sizes, dtypes or devices differ.
    """

    def __init__(self, terms: Sequence[tuple[float, SymmetricOperator]]) -> None:
        self.terms: list[tuple[float, SymmetricOperator]] = []
        for factor, operator in terms:
            if not np.isfinite(factor):
                raise ValueError(f"An operator cannot be multiplied by {factor}; use a finite number.")
            inner = operator.terms if isinstance(operator, Combination) else [(1.0, operator)]
            self.terms += [(factor * own, each) for own, each in inner]
        p = check_operator(self.terms[0][1])
        self.shape, (self.dtype, self.device) = (p, p), _kind(self.terms[0][1])
        for _, operator in self.terms[1:]:
            if (check_operator(operator), *_kind(operator)) != (p, self.dtype, self.device):
                raise ValueError(
                    f"An operator of size {p}, {self.dtype} on {self.device} cannot be added to one of "
                    f"size {operator.shape[0]}, {operator.dtype} on {operator.device}."
                )
        self._error = 0.0
        # The ranks that hold slices of its vectors.
        self._lengths = ALONE

    @property
    def ranks(self) -> Ranks:
        """Processes that share the data of its operators."""
        shared = [ranks for _, operator in self.terms if (ranks := getattr(operator, "ranks", None)) is not None]
        return shared[0] if shared else ALONE

    def expect_products(self, number: int | None) -> None:
        """Tell its operators how many products will follow."""
        for _, operator in self.terms:
            expect_products(operator, number)

    def sliced(self) -> Combination:
        """Return the combination that acts on the slice of each vector that a rank holds."""
        if self.ranks.size == 1:
            return self
        parts = []
        for factor, operator in self.terms:
            if not hasattr(operator, "sliced") and not isinstance(operator, Identity):
                raise ValueError(
                    f"{kind_of(operator, first=True)} does not work on slices of vectors, and the data of another "
                    "operator in the sum is shared by several ranks; measure the sum on one rank."
                )
            parts.append((factor, operator.sliced() if hasattr(operator, "sliced") else operator))
        found = Combination(parts)
        found._lengths = self.ranks
        return found

    @property
    def product_error(self) -> float:
        """Error of the last product relative to its norm, from those that its operators state; largest of its columns.

        A difference of large matrices can have a larger relative error than either of them.
        """
        return self._error

    @functools.cached_property
    def reference(self) -> Combination | None:
        """The same combination of the operators' references; None if none of them has one."""
        found = [getattr(operator, "reference", None) for _, operator in self.terms]
        if all(each is None for each in found):
            return None
        pairs = zip(self.terms, found, strict=True)
        return Combination([(factor, operator if each is None else each) for (factor, operator), each in pairs])

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes that its operators share, and the formula."""
        every = [getattr(operator, "attributes", {}) for _, operator in self.terms]
        terms = zip(every, self.terms, strict=True)
        known = [each for each, (_, operator) in terms if not isinstance(operator, Identity)]
        first = known[0] if known else {}
        shared = {name: value for name, value in first.items() if all(each.get(name) == value for each in known)}
        if any(factor < 0 for factor, _ in self.terms):
            shared.pop("positive_semidefinite", None)
        return {**shared, "matrix": str(self)}

    def identity(self) -> dict[str, str]:
        """Content hashes of its terms."""
        found = {"matrix": str(self)}
        for place, (factor, operator) in enumerate(self.terms, 1):
            known = operator.identity() if hasattr(operator, "identity") else {"matrix": type(operator).__name__}
            found |= {f"term {place}, {name}": value for name, value in known.items()}
            found[f"term {place}, factor"] = factor.hex()
        return found

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Product with a vector (p,) or with the columns of a matrix (p, k)."""
        total = torch.zeros_like(vectors)
        errors = torch.zeros(vectors.shape[1:], dtype=torch.float64, device="cpu")
        for factor, operator in self.terms:
            part: Tensor = operator @ vectors
            error = float(getattr(operator, "product_error", 0.0))
            if error:
                errors += abs(factor) * error * _norms(part, self._lengths)
            total.add_(part, alpha=factor)
        self._error = _relative(errors, _norms(total, self._lengths)) if errors.any() else 0.0
        return total

    def __str__(self) -> str:
        """The formula, such as "Hessian - GaussNewton"."""
        text = ""
        for factor, operator in self.terms:
            name = str(getattr(operator, "attributes", {}).get("matrix", type(operator).__name__))
            sign = "-" if factor < 0 else "+"
            size = name if abs(factor) == 1 else f"{abs(factor):g} {name}"
            text += f" {sign} {size}" if text else size if factor >= 0 else f"-{size}"
        return text


class Block(Composable):
    """Principal submatrix A[i, i] of a symmetric operator, as `operator[i]` returns it.

    Parameters
    ----------
    operator : SymmetricOperator
        A, shape (p, p). A product with the block costs as much as one with A; an operator created with `params=` costs
        less.
    block : slice, str, sequence of str, or one-dimensional array or tensor of int or bool
        Entries of the flat vectors, each at most once; or names of the operator's parameters or patterns of them
        ("layers.0.*").

    Raises
    ------
    ValueError
        If nothing is selected, an entry is selected twice, or a name matches no parameter.
    """

    def __init__(self, operator: Any, block: Any) -> None:
        p = check_operator(operator)
        self.dtype, self.device = _kind(operator)
        self._operator, self._whole, self._named = operator, p, str(block)
        self._error = 0.0
        texts = [block] if isinstance(block, str) else block
        if isinstance(texts, list | tuple) and texts and all(isinstance(each, str) for each in texts):
            if not hasattr(operator, "entries_of"):
                raise ValueError(
                    f"{kind_of(operator, first=True)} does not name its parameters; select entries by index."
                )
            block = operator.entries_of(texts)
            self._named = ", ".join(texts)
        entries = torch.arange(p, device="cpu")[block if isinstance(block, slice) else torch.as_tensor(block).cpu()]
        if entries.dim() != 1 or not entries.numel():
            raise ValueError(f"The block {self._named} selects no entries of {p}.")
        selected = torch.zeros(p, dtype=torch.bool, device="cpu")
        selected[entries] = True
        if int(selected.count_nonzero()) < entries.numel():
            raise ValueError(f"The block {self._named} selects an entry more than once.")
        self.entries = entries.to(self.device)
        self.shape = (entries.numel(), entries.numel())

    @property
    def product_error(self) -> float:
        """Error of the last product; relative to the block's product it can be larger, see `Combination`."""
        return self._error

    def expect_products(self, number: int | None) -> None:
        """Tell the operator how many products will follow."""
        expect_products(self._operator, number)

    @functools.cached_property
    def reference(self) -> Block | None:
        """The same block of the operator's reference; None if it has none."""
        found = getattr(self._operator, "reference", None)
        return None if found is None else Block(found, self.entries.cpu())

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes of the whole operator, and the block."""
        return {**getattr(self._operator, "attributes", {}), "block": self._named}

    def identity(self) -> dict[str, str]:
        """Content hashes of the whole operator, and the entries."""
        known = self._operator.identity() if hasattr(self._operator, "identity") else {}
        return {**known, "block": hashlib.blake2b(self.entries.cpu().numpy().tobytes()).hexdigest()[:16]}

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Product with a vector (q,) or with the columns of a matrix (q, k)."""
        whole = vectors.new_zeros((self._whole, *vectors.shape[1:]))
        whole[self.entries] = vectors
        product: Tensor = self._operator @ whole
        part = product[self.entries]
        error = float(getattr(self._operator, "product_error", 0.0))
        self._error = _relative(error * _norms(product, ALONE), _norms(part, ALONE)) if error else 0.0
        return part


def _is_operator(other: Any) -> bool:
    return hasattr(other, "__matmul__") and hasattr(other, "dtype") and len(getattr(other, "shape", ())) == 2


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) or (isinstance(value, Tensor) and value.dim() == 0 and not value.is_complex())


def _kind(operator: SymmetricOperator) -> tuple[torch.dtype, torch.device]:
    return operator.dtype, torch.device(operator.device)


def _relative(errors: Tensor, lengths: Tensor) -> float:
    """Largest of several errors, relative to the norms of products."""
    return float((errors / lengths).nan_to_num(0.0).max())


def _norms(vectors: Tensor, ranks: Ranks) -> Tensor:
    """Euclidean norms of a vector, shape (), or of the columns of a matrix, (k,), on all ranks together."""
    squares = vectors.double().square().sum(0).cpu()
    if ranks.size > 1:
        squares = ranks.numbers(*squares.reshape(-1).tolist()).sum(0).reshape(squares.shape)
    return squares.sqrt()
