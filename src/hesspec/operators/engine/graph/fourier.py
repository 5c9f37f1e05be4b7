"""Convolutions on small maps as batched matrix products of Fourier transforms."""

from __future__ import annotations

import functools
import math
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from hesspec.operators.engine.graph.kernels import call, direct_speed, plain, separate

__all__ = ["Bilinear", "bilinear", "prefer_fourier"]

aten: Any = torch.ops.aten

# Number of multiplications of a batched product in the time of writing and reading one number of a transformed tensor,
# for each convolution; six convolutions share six transforms (four for a Gauss-Newton matrix). Measured: 13 (maps of
# 8x8) to 28 (4x4) on two cores of an AMD EPYC (Zen 4).
TRANSFERRED = 25
# Number of the six transforms per convolution that multiply by all pixels.
TRANSFORMS = 1 / 3

DTYPES = (torch.float32, torch.float64)

Array = npt.NDArray[np.float64]
Side = Literal["inputs", "weights", "outputs"]


class Bilinear(NamedTuple):
    """Matrices of an algorithm for convolutions of one geometry, by the tensor to which they apply.

    Attributes
    ----------
    inputs : array (t, input pixels)
        B.
    weights : array (t, pixels of the kernel)
        G.
    outputs : array (t, output pixels)
        The transpose of A.
    """

    inputs: Array
    weights: Array
    outputs: Array


class Geometry(NamedTuple):
    """Height and width of input maps, kernel and padding of a convolution with stride 1."""

    maps: tuple[int, int]
    kernel: tuple[int, int]
    padding: tuple[int, int]


@functools.cache
def bilinear(geometry: Geometry) -> Bilinear:
    r"""Construct a Fourier algorithm for convolutions y[o] = sum_u w[u] x[o + u - padding] of small maps.

    As x is zero outside its map, y is a circular convolution of length L (map and padding) in each dimension: one
    product for each frequency. For real data, one of each pair of opposite frequencies is enough, and a complex product
    takes three real ones (Gauss):

    .. math:: y = A ((B x) \circ (G w)), \qquad t = (3 L_h L_w - s) / 2 \text{ products},

    where s frequencies are their own opposites. For a 3x3 kernel with padding one, these are 13, 37 and 121 products
    instead of 36, 144 and 576 on maps of 2x2, 4x4 and 8x8. As it is trilinear in y, x and w, gradients use the same
    three matrices: B^T ((A^T g) * (G w)) for the inputs and G^T ((A^T g) * (B x)) for the weights.

    Fourier matrices are multiples of isometries, so the algorithm is nearly as accurate as a direct convolution:
    relative errors (in the 2-norm) are 4e-7 in float32, compared with 2e-7. Interpolation at small integers needs even
    fewer products (36 for 4x4) but loses digits as the map grows.

    References
    ----------
    Winograd, Arithmetic Complexity of Computations (1980); Mathieu, Henaff and LeCun, "Fast training of
    convolutional networks through FFTs" (arXiv 1312.5851).
    """
    (height, width), kernel, padding = geometry
    lengths = height + padding[0], width + padding[1]
    outputs = tuple(size + 2 * pad - taps + 1 for size, pad, taps in zip(geometry.maps, padding, kernel, strict=True))
    every = [(a, b) for a in range(lengths[0]) for b in range(lengths[1])]
    opposite = [(-a % lengths[0], -b % lengths[1]) for a, b in every]
    own = [one for one, other in zip(every, opposite, strict=True) if one == other]
    pairs = [one for one, other in zip(every, opposite, strict=True) if one < other]
    frequencies = np.array([*own, *pairs])

    def waves(size: tuple[int, ...], first: tuple[int, int] = (0, 0)) -> npt.NDArray[np.complex128]:
        """Return exp(-2 pi i k.o / L) at all frequencies (rows) and pixels (columns), the first being o = `first`."""
        pixels = np.array([*np.ndindex(size)]) + first
        return np.asarray(np.exp(-2j * math.pi * ((frequencies / lengths) @ pixels.T)))

    x, y = waves(geometry.maps), waves(outputs).conj()
    w = waves(kernel, (-padding[0], -padding[1])).conj()
    y /= lengths[0] * lengths[1]
    y[len(own) :] *= 2
    real = slice(None, len(own))
    x2, w2, y2 = (part[len(own) :] for part in (x, w, y))
    # (a + ib)(c + id) = k1 - k3 + i (k1 + k2) with k1 = (a + b) c, k2 = a (d - c), k3 = b (c + d).
    return Bilinear(
        np.concatenate([x[real].real, x2.real + x2.imag, x2.real, x2.imag]),
        np.concatenate([w[real].real, w2.real, w2.imag - w2.real, w2.real + w2.imag]),
        np.concatenate([y[real].real, y2.real - y2.imag, -y2.imag, -y2.real]),
    )


def prefer_fourier(graph: fx.Graph, nodes: set[fx.Node]) -> None:
    """Use Fourier transforms for convolutions on small maps on the CPU, and their gradients, where it saves time.

    Every tensor is transformed once; sums of convolutions are formed before transforming back. Tensors that do not
    depend on the vector are transformed in the primal pass.

    Parameters
    ----------
    graph : torch.fx.Graph
        Graph of a module, traced with fake tensors (`meta["val"]`); both are modified.
    nodes : set of Node
        Nodes that may be changed, those that depend on the vector. The others keep the model's own arithmetic, so that
        activations at a kink stay on the side on which the model has them.
    """
    rewriting = _Rewriting(graph)
    for node in list(graph.nodes):
        if node not in nodes:
            continue
        if node.target is aten.convolution.default:
            rewriting.convolution(node)
        elif node.target is aten.convolution_backward.default:
            rewriting.gradients(node)
        elif node.target is aten.add.Tensor:
            rewriting.sum(node)
    graph.eliminate_dead_code()


class _Product(NamedTuple):
    """Batched product (t, ...) that is to be transformed back, with the terms added to its result."""

    product: fx.Node
    side: Side
    geometry: Geometry
    bias: Any


class _Rewriting:
    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph
        self._constants: dict[Any, fx.Node] = {}
        self._transforms: dict[Any, fx.Node] = {}
        self._products: dict[fx.Node, _Product] = {}

    def convolution(self, node: fx.Node) -> None:
        inputs, weight, bias = node.args[:3]
        geometry = _geometry(node, inputs, weight, node)
        if geometry is None:
            return
        with self._graph.inserting_before(node):
            product = call(
                self._graph,
                aten.bmm.default,
                self._transformed(inputs, "inputs", geometry),
                self._t(self._transformed(weight, "weights", geometry)),
            )
            self._replace(node, _Product(product, "outputs", geometry, bias), node)

    def gradients(self, node: fx.Node) -> None:
        gradient, inputs, weight = node.args[:3]
        geometry = _geometry(node, inputs, weight, gradient)
        if geometry is None:
            return
        for single in separate(self._graph, node):
            result = next(iter(single.users))
            if result.args[1] not in (0, 1):
                continue
            with self._graph.inserting_before(single):
                outputs = self._transformed(gradient, "outputs", geometry)
                if result.args[1] == 0:
                    factors = outputs, self._transformed(weight, "weights", geometry)
                    side: Side = "inputs"
                else:
                    factors = self._t(outputs), self._transformed(inputs, "inputs", geometry)
                    side = "weights"
                product = call(self._graph, aten.bmm.default, *factors)
                self._replace(result, _Product(product, side, geometry, None), result)

    def sum(self, node: fx.Node) -> None:
        """Sum before the transform, if both summands are transformed only for this sum."""
        summands: Any = node.args
        one, other = map(self._products.get, summands)
        if one is None or other is None or node.kwargs or one[1:3] != other[1:3] or summands[0] is summands[1]:
            return
        values = [part.product.meta["val"] for part in (one, other)]
        if values[0].shape != values[1].shape or values[0].dtype != values[1].dtype:
            return
        if any(len(summand.users) > 1 for summand in summands) or (one.bias is not None and other.bias is not None):
            return
        if one.product.target is aten.baddbmm.default and other.product.target is aten.baddbmm.default:
            return
        first, second = (other, one) if other.product.target is aten.baddbmm.default else (one, other)
        with self._graph.inserting_before(node):
            product = call(self._graph, aten.baddbmm.default, first.product, *second.product.args)
            bias = one.bias if one.bias is not None else other.bias
            self._replace(node, _Product(product, one.side, one.geometry, bias), node)

    def _replace(self, node: fx.Node, product: _Product, like: fx.Node) -> None:
        """Transform back the replacement of a node."""
        shape = list(like.meta["val"].shape)
        matrix = self._constant(product.side, product.geometry, node)
        flat = call(self._graph, aten.view.default, product.product, [len(product.product.meta["val"]), -1])
        pixels = call(self._graph, aten.mm.default, call(self._graph, aten.t.default, matrix), flat)
        last = call(self._graph, aten.t.default, pixels)
        last = call(self._graph, aten.clone.default, last, memory_format=torch.contiguous_format)
        result = call(self._graph, aten.view.default, last, shape)
        if product.bias is not None:
            bias = call(self._graph, aten.view.default, product.bias, [-1, 1, 1])
            result = call(self._graph, aten.add.Tensor, result, bias)
        node.replace_all_uses_with(result)
        self._products[result] = product

    def _transformed(self, tensor: Any, side: Side, geometry: Geometry) -> fx.Node:
        """Return the transform (t, a, b) of maps or kernels (a, b, h, w)."""
        key = tensor, side, geometry
        if key not in self._transforms:
            value = tensor.meta["val"]
            matrix = self._constant(side, geometry, tensor)
            if not value.is_contiguous():
                tensor = call(self._graph, aten.clone.default, tensor, memory_format=torch.contiguous_format)
            a, b, height, width = value.shape
            flat = call(self._graph, aten.view.default, tensor, [a * b, height * width])
            images = call(self._graph, aten.mm.default, matrix, call(self._graph, aten.t.default, flat))
            self._transforms[key] = call(self._graph, aten.view.default, images, [-1, a, b])
        return self._transforms[key]

    def _constant(self, side: Side, geometry: Geometry, like: fx.Node) -> fx.Node:
        value: Any = like.meta["val"]
        key = side, geometry, value.dtype
        if key not in self._constants:
            module: Any = self._graph.owning_module
            name = f"_fourier_{len(self._constants)}"
            matrix = torch.from_numpy(getattr(bilinear(geometry), side)).to(value.dtype)
            module.register_buffer(name, matrix)
            first = next(iter(self._graph.nodes))
            with self._graph.inserting_before(first):
                node = self._graph.get_attr(name)
            node.meta["val"] = value.fake_mode.from_tensor(matrix)
            self._constants[key] = node
        return self._constants[key]

    def _t(self, node: fx.Node) -> fx.Node:
        return call(self._graph, aten.transpose.int, node, 1, 2)


def _geometry(node: fx.Node, inputs: Any, weight: Any, outputs: Any) -> Geometry | None:
    """Return the geometry of a convolution or its gradients if transforms save time; otherwise None."""
    maps, kernel, result = (part.meta["val"].shape for part in (inputs, weight, outputs))
    if len(kernel) != 4 or not plain(node, outputs, math.inf) or outputs.meta["val"].dtype not in DTYPES:
        return None
    args: Any = node.args
    stride, padding, dilation = args[3:6] if node.target is aten.convolution.default else args[4:7]
    found = [outputs] if outputs is node else [outputs, *node.users]
    if {*stride, *dilation} != {1} or not all(part.meta["val"].is_contiguous() for part in found):
        return None
    height, width = maps[2:]
    geometry = Geometry((height, width), tuple(kernel[2:]), (padding[0], padding[-1]))
    products = 3 * (height + padding[0]) * (width + padding[-1]) // 2
    samples, channels, filters = maps[0], maps[1], kernel[0]
    sizes = samples * channels, samples * filters, channels * filters
    pixels = height * width, result[2:].numel(), kernel[2:].numel()
    multiplied = TRANSFORMS * sum(a * b for a, b in zip(pixels, sizes, strict=True))
    transformed = products * (samples * channels * filters + multiplied + TRANSFERRED * sum(sizes))
    return geometry if transformed < samples * channels * filters * pixels[1] * pixels[2] / direct_speed() else None
