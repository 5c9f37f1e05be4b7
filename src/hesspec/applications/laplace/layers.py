r"""Products of Jacobians, layer by layer, for many inputs in one backward pass per output.

Let a layer compute z_s = W u_s at positions s (those of an image, or of a sequence), and let g_c be the gradient of
output c with respect to all z. Then the row of the Jacobian is G_c = g_c U^T, and for vectors V of the size of W

.. math:: \langle G_c, G_d \rangle = \langle g_c (U^\top U), g_d \rangle, \qquad
          \langle G_c, V_j \rangle = \langle g_c, V_j U \rangle .

The passes compute g only, for all inputs at once, as samples do not interact. The right-hand sides do not form G. They
are used where they take fewer operations than G, which has C p numbers for each input.

`Taps` follows the functions that a forward pass calls. Where a known one has a selected parameter as its weight, it is
called with a constant instead, and zeros are added to its result, with respect to which outputs are differentiated. The
rows of a parameter that is used several times are added up. If outputs still depend on a parameter after this, it has
other uses, and the Jacobian has to be computed in another way.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hesspec.krylov.vectors import CHUNK
from hesspec.operators.model.function_mode import FunctionMode

__all__ = ["NORMS", "SpatialUse", "Taps", "products_of"]

# Numbers of a temporary result.
PIECE = 1 << 26
# Matrix products with few rows and long sums run at about a third of the speed of others; a number that is written and
# read back takes the time of about a hundred multiplications. Both were measured on a CPU with AVX-512.
SLOWER, MOVED = 3, 100


class SpatialUse:
    """A use of a weight by a linear function of the input at each position: a convolution or a linear layer.

    Parameters
    ----------
    inputs : Tensor (m, channels, ...) of a convolution, or (m, S, K)
    options : dict, optional
        Stride, padding and dilation of a convolution of two dimensions, and its groups.
    shape : tuple of int
        That of the weight, (outputs, K) or (outputs, channels / groups, height, width).

    Attributes
    ----------
    gradients : list of Tensor
        Gradient of the sum of output c over all inputs, one for each c, in the shape of the layer's output.
    """

    def __init__(self, inputs: Tensor, shape: Sequence[int], options: Mapping[str, Any] | None = None) -> None:
        self._inputs, self._version = inputs, inputs._version  # noqa: SLF001 - there is no public name
        self._shape, self._options = tuple(shape), options
        self.gradients: list[Tensor] = []
        self.m = len(inputs)

    @property
    def changed(self) -> bool:
        """Whether the input has been overwritten since."""
        return self._inputs._version != self._version  # noqa: SLF001

    @property
    def groups(self) -> int:
        """Number of groups of channels."""
        return 1 if self._options is None else int(self._options["groups"])

    def _columns(self, inputs: Tensor) -> Tensor:
        """Inputs U (m, K, S) at all positions, over all groups."""
        if self._options is None:
            return inputs.mT
        geometry = {name: self._options[name] for name in ("dilation", "padding", "stride")}
        return F.unfold(inputs, self._shape[2:], **geometry)

    def _gradients(self, chosen: slice) -> Tensor:
        """Gradients g (m, C, outputs, S)."""
        found = torch.stack([part[chosen] for part in self.gradients], dim=1)
        return found.mT if self._options is None else found.flatten(3)

    def rows(self, chosen: slice) -> Tensor:
        """Rows G (m, C, size of the weight) of the Jacobian, of some of the inputs."""
        places = range(*chosen.indices(self.m))
        c, outputs = len(self.gradients), self._shape[0]
        found = self._inputs.new_empty(len(places), c, self.groups, outputs // self.groups, math.prod(self._shape[1:]))
        for place, rows in zip(places, found, strict=True):
            one = slice(place, place + 1)
            columns = self._columns(self._inputs[one])[0]
            columns = columns.reshape(self.groups, -1, columns.shape[-1])
            gradients = self._gradients(one)[0].reshape(c, self.groups, -1, columns.shape[-1])
            # A group has the same number of channels of each.
            for group in range(self.groups):
                product = _product(gradients[:, group].flatten(0, 1), columns[group])
                rows[:, group] = product.view(rows[:, group].shape)
        return found.flatten(2)

    def cheaper(self, vectors: int) -> bool:
        """Whether products without rows take fewer operations, in sums that are short enough for float32."""
        size, outputs, c = math.prod(self._shape), self._shape[0], len(self.gradients)
        s = self.gradients[0][0].numel() // outputs
        if self.groups > 1 or max(size // outputs, outputs * s) > CHUNK:
            return False
        with_rows = c * size * (s + SLOWER * (c + vectors) + MOVED)
        gram = s * s * (size // outputs + c * outputs) + c * c * outputs * s
        return gram + vectors * s * (size + c * outputs) < with_rows

    def products(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Products G G^T (m, C, C), and G V (m, C, k) with vectors (size of the weight, k), without rows."""
        gradients = self._gradients(slice(None))
        flat = gradients.flatten(2)
        gram = torch.empty(self.m, flat.shape[1], flat.shape[1], dtype=torch.float64, device=flat.device)
        for place, (one, g, row) in enumerate(zip(self._inputs, gradients, flat, strict=True)):
            columns = self._columns(one[None])[0]
            gram[place] = row @ (g @ (columns.T @ columns)).flatten(1).T
        seen = torch.empty(self.m, flat.shape[1], vectors.shape[1], dtype=torch.float64, device=flat.device)
        step = max(1, PIECE // (self.m * flat.shape[2]))
        for start in range(0, vectors.shape[1], step):
            few = vectors[:, start : start + step].T
            seen[:, :, start : start + step] = flat @ self._images(few).mT
        return gram, seen

    def _images(self, vectors: Tensor) -> Tensor:
        """Outputs (m, k, outputs x S) of the layer with each vector (k, size of the weight) as its weight."""
        k = len(vectors)
        weights = vectors.reshape(k * self._shape[0], *self._shape[1:])
        if self._options is not None:
            return F.conv2d(self._inputs, weights, **self._options).reshape(self.m, k, -1)
        found = _product(self._inputs.reshape(-1, self._shape[1]), weights)
        return found.reshape(self.m, -1, k, self._shape[0]).permute(0, 2, 3, 1).reshape(self.m, k, -1)


class Taps(FunctionMode):
    """Follows a forward pass of m inputs, and takes parameters out of the functions that are known.

    Parameters
    ----------
    leaves : sequence of Tensor
        The selected parameters, as the forward pass receives them.
    count : int
        Number m of inputs.

    Attributes
    ----------
    uses : list of (int, SpatialUse)
        Uses of weights, and the numbers of their parameters.
    kept : int
        Numbers of the gradients of one output that are kept.
    places : list of Tensor
        What outputs are differentiated with respect to: zeros that were added to the results.
    sums : list of (int, list of Tensor)
        Rows (m, size) of biases and weights of normalisations for each output, and the numbers of these parameters.
    known : bool
        Whether all uses could be followed, as far as the forward pass can tell: it does not differentiate by itself,
        and the first dimension of results is that of the inputs.
    """

    def __init__(self, leaves: Sequence[Tensor], count: int) -> None:
        super().__init__()
        self._number = {id(leaf): number for number, leaf in enumerate(leaves)}
        self.count = count
        self.uses: list[tuple[int, SpatialUse]] = []
        self.kept = 0
        self.places: list[Tensor] = []
        self.sums: list[tuple[int, list[Tensor]]] = []
        self.known = True
        self._takers: list[Callable[[Tensor], None]] = []

    def call(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Call a function, without the parameters if it is known."""
        if func in (torch.autograd.grad, torch.autograd.backward, Tensor.backward):
            self.known = False
        elif func is F.linear:
            return self._linear(func, *args, **kwargs)
        elif func in (F.conv1d, F.conv2d):
            return self._convolution(func, *args, **kwargs)
        elif func in NORMS:
            return self._norm(func, *args, **kwargs)
        return func(*args, **kwargs)

    def take(self, gradients: Sequence[Tensor | None]) -> None:
        """Take the gradients of one output with respect to `places`."""
        for place, taker, gradient in zip(self.places, self._takers, gradients, strict=True):
            taker(torch.zeros_like(place) if gradient is None else gradient)

    def _selected(self, tensor: Tensor | None) -> bool:
        return tensor is not None and id(tensor) in self._number

    def _divided(self, found: Tensor) -> bool:
        """Whether the first dimension of a result is that of the inputs."""
        self.known &= found.dim() > 1 and len(found) == self.count
        return self.known

    def _tapped(self, found: Tensor, take: Callable[[Tensor], None], *, kept: bool) -> Tensor:
        """Return a result, with a place where to differentiate."""
        self.kept += found.numel() * kept
        place = torch.zeros_like(found).requires_grad_()
        self.places.append(place)
        self._takers.append(take)
        return found + place

    def _sum(self, parameter: Tensor | None) -> list[Tensor]:
        """Return a list that takes rows (m, size) of a parameter for each output."""
        rows: list[Tensor] = []
        self.sums.append((self._number[id(parameter)], rows))
        return rows

    def _linear(self, func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: A002
        own = self._selected(weight), self._selected(bias)
        found: Tensor = func(input, _constant(weight, own[0]), _constant(bias, own[1]))
        if not any(own):
            return found
        if not self._divided(found):
            return found
        shape = self.count, -1
        use = None
        if own[0]:
            use = SpatialUse(input.detach().reshape(*shape, input.shape[-1]), weight.shape)
            self.uses.append((self._number[id(weight)], use))
        sums = self._sum(bias) if own[1] else None

        def take(gradient: Tensor) -> None:
            rows = gradient.reshape(*shape, gradient.shape[-1])
            if use is not None:
                use.gradients.append(rows)
            if sums is not None:
                sums.append(rows.sum(1))

        return self._tapped(found, take, kept=use is not None)

    def _convolution(
        self,
        func: Any,
        input: Tensor,  # noqa: A002
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        own = self._selected(weight), self._selected(bias)
        flat = func is F.conv1d
        if not any(own) or isinstance(padding, str) or input.dim() != (3 if flat else 4):
            plain: Tensor = func(input, weight, bias, stride, padding, dilation, groups)
            return plain
        found: Tensor = func(
            input, _constant(weight, own[0]), _constant(bias, own[1]), stride, padding, dilation, groups
        )
        if not self._divided(found):
            return found
        use = None
        if own[0]:
            options = {
                "stride": _pair(stride, flat, 1),
                "padding": _pair(padding, flat, 0),
                "dilation": _pair(dilation, flat, 1),
                "groups": groups,
            }
            given = input.detach().unsqueeze(2) if flat else input.detach()
            use = SpatialUse(given, weight.unsqueeze(2).shape if flat else weight.shape, options)
            self.uses.append((self._number[id(weight)], use))
        sums = self._sum(bias) if own[1] else None

        def take(gradient: Tensor) -> None:
            if use is not None:
                use.gradients.append(gradient.unsqueeze(2) if flat else gradient)
            if sums is not None:
                sums.append(gradient.flatten(2).sum(2))

        return self._tapped(found, take, kept=use is not None)

    def _norm(self, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: A002
        names = NORMS[func]
        given = dict(zip(names, args, strict=False)) | kwargs
        weight, bias = given.get("weight"), given.get("bias")
        own = self._selected(weight), self._selected(bias)
        values = given | {"weight": _constant(weight, own[0]), "bias": _constant(bias, own[1])}
        found: Tensor = func(input, **values)
        if not any(own) or not self._divided(found):
            return found
        with torch.no_grad():
            plain = func(input.detach(), **{**given, "weight": None, "bias": None})
        last = "normalized_shape" in given
        # Channels are the second dimension, unless the last dimensions are normalised.
        kept = list(range(found.dim() - len(given["normalized_shape"]), found.dim())) if last else [1]
        summed = [dim for dim in range(1, found.dim()) if dim not in kept]
        factors = [(self._sum(weight), plain)] if own[0] else []
        sums = self._sum(bias) if own[1] else None

        def take(gradient: Tensor) -> None:
            for rows, factor in factors:
                rows.append(_summed(gradient * factor, summed))
            if sums is not None:
                sums.append(_summed(gradient, summed))

        return self._tapped(found, take, kept=False)


NORMS: Mapping[Any, tuple[str, ...]] = {
    F.batch_norm: ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    F.layer_norm: ("normalized_shape", "weight", "bias", "eps"),
    F.group_norm: ("num_groups", "weight", "bias", "eps"),
}
"""Normalisations, with the names of their arguments after the input."""


def products_of(taps: Taps, sizes: Sequence[int], vectors: Tensor, outputs: int) -> tuple[Tensor, Tensor]:
    """Compute J J^T (m, C, C) and J V (m, C, k) of all inputs, in float64.

    Parameters
    ----------
    taps : Taps
        With the gradients of all outputs.
    sizes : sequence of int
        Sizes of the parameters.
    vectors : Tensor (p, k)
    outputs : int
        Number C of outputs.
    """
    m, k, device = taps.count, vectors.shape[1], vectors.device
    gram = torch.zeros(m, outputs, outputs, dtype=torch.float64, device=device)
    seen = torch.zeros(m, outputs, k, dtype=torch.float64, device=device)
    for number, part in enumerate(torch.split(vectors, list(sizes))):
        uses = [use for place, use in taps.uses if place == number]
        known = [torch.stack(rows, dim=1) for place, rows in taps.sums if place == number]
        if len(uses) == 1 and not known and uses[0].cheaper(k):
            one, other = uses[0].products(part)
            gram += one
            seen += other
            continue
        if not uses and not known:
            continue
        few = max(1, PIECE // (outputs * len(part)))
        for start in range(0, m, few):
            chosen = slice(start, start + few)
            each = [use.rows(chosen) for use in uses] + [one[chosen] for one in known]
            rows = functools.reduce(torch.add, each)
            # Sums of float32 numbers over more than a chunk lose digits.
            for piece, other in zip(torch.split(rows, CHUNK, dim=2), torch.split(part, CHUNK), strict=True):
                gram[chosen] += piece @ piece.mT
                seen[chosen] += _product(piece.flatten(0, 1), other.T).view(-1, outputs, k)
    return gram, seen


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Product left @ right.T of matrices (n, s) and (q, s).

    On the CPU it is a convolution with kernels of size one, whose library (oneDNN) takes half of the time of that of
    matrix products (MKL) on processors of AMD. On one thread, PyTorch uses oneDNN for 16 samples and more.
    """
    if left.device.type != "cpu" or left.shape[1] < 16 or len(right) < 16 or len(left) % 16:
        return left @ right.T
    found = F.conv2d(left.reshape(16, -1, 1, left.shape[1]).permute(0, 3, 1, 2), right[:, :, None, None])
    return found.permute(0, 2, 3, 1).reshape(len(left), len(right))


def _constant(tensor: Any, own: bool) -> Any:
    return tensor.detach() if own else tensor


def _pair(value: Any, flat: bool, other: int) -> tuple[int, int]:
    """Option of a convolution of two dimensions, from a number or a sequence; `other` is that of the missing one."""
    numbers = [value] if isinstance(value, int) else list(value)
    if flat:
        return other, numbers[0]
    return (numbers[0], numbers[-1])


def _summed(tensor: Tensor, dims: list[int]) -> Tensor:
    """Sum over dimensions, and flatten all but the first."""
    return (tensor.sum(dims) if dims else tensor).flatten(1)
