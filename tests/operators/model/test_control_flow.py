"""Models with control flow operators have the products of those with Python's control flow."""

import pytest
import torch
import torch._higher_order_ops as operators
import torch.nn.functional as F
from torch import nn
from torch._higher_order_ops.cond import CondOp

import hesspec
from hesspec.operators.engine import passes
from hesspec.operators.model.control_flow import python_control_flow


class Branching(nn.Module):
    """The parameters of the layer are in the branches."""

    def __init__(self, functional, kind) -> None:
        super().__init__()
        self.functional, self.kind = functional, kind
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.b(getattr(self, self.kind)(x))

    def cond(self, x):
        if self.functional:
            return torch.cond(x.sum() > 0, lambda z: torch.tanh(self.a(z)), lambda z: torch.sigmoid(self.a(z)), (x,))
        return torch.tanh(self.a(x)) if x.sum() > 0 else torch.sigmoid(self.a(x))

    def while_loop(self, x):
        def body(n, z):
            return n + 1, torch.tanh(z @ self.a.weight.T @ self.a.weight + self.a.bias[:4])

        n = torch.tensor(0)
        if self.functional:
            _, z = operators.while_loop(lambda n, z: (n < 3) & (z.norm() < 1e9), body, (n, x))
        else:
            z = x
            for _ in range(3):
                n, z = body(n, z)
        return torch.tanh(self.a(z))

    def scan(self, x):
        def step(carry, z):
            state = torch.tanh(carry["h"] + self.a(z["x"]))
            return {"h": state}, (state * 2, z["x"].sum())

        h = torch.zeros(6, dtype=x.dtype)
        if self.functional:
            last, (states, sums) = operators.scan(step, {"h": h}, {"x": x}, reverse=True)
        else:
            last, found = {"h": h}, []
            for z in x.flip(0):
                last, out = step(last, {"x": z})
                found.append(out)
            states, sums = (torch.stack(parts).flip(0) for parts in zip(*found, strict=True))
        return states * sums[:, None] + last["h"]

    def map(self, x):
        def each(z, scale):
            return torch.tanh(self.a(z)) * scale

        scale = self.a.bias.sum()
        return operators.map(each, x, scale) if self.functional else torch.stack([each(z, scale) for z in x])

    def switch(self, x):
        branches = [lambda z: torch.tanh(self.a(z)), lambda z: self.a(z) ** 2, lambda z: torch.sigmoid(self.a(z))]
        which = (x.sum() > 0).long() + 1
        return operators.switch(which, branches, (x,)) if self.functional else branches[int(which)](x)


KINDS = [
    "cond",
    "while_loop",
    "scan",
    "map",
    pytest.param("switch", marks=pytest.mark.skipif(not hasattr(operators, "switch"), reason="PyTorch is older")),
]


def product(kind, matrix="Hessian", functional=True, **options):
    torch.manual_seed(0)
    model = Branching(functional, kind).double()
    # One batch for each branch.
    x = torch.randn(5, 4).double()
    data = [(sign * x.abs(), torch.randint(3, (5,))) for sign in (1, -1)]
    # In a model that mixes its samples, the loss is of whole batches.
    operator = getattr(hesspec, matrix)(model, F.cross_entropy, data, terms=len, **options)
    return operator @ torch.linspace(-1, 1, operator.shape[0], dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["auto", *passes.WAYS[1:]])
@pytest.mark.parametrize("matrix", ["Hessian", "GaussNewton"])
@pytest.mark.few(14)
def test_products(kind, matrix, mode):
    exact = product(kind, matrix, functional=False, mode="double backward")
    found = product(kind, matrix, mode=mode)
    assert exact.norm() > 0
    assert torch.allclose(found, exact, rtol=0, atol=(1e-6 if mode == "differences" else 1e-12) * float(exact.norm()))


def test_a_loop_of_known_length_is_traced():
    exact = product("scan", functional=False, mode="double backward")
    assert torch.allclose(product("scan", mode="traced"), exact, rtol=0, atol=1e-12 * float(exact.norm()))


def test_loops_that_do_nothing_and_graphs():
    """Results of graphs, as an exported program has them, are flat."""
    x = torch.ones(2)
    with python_control_flow():
        assert operators.while_loop(lambda z: z.sum() > 9, lambda z: (z + 1,), (x,))[0].equal(x)
        higher = torch.ops.higher_order
        assert higher.cond(torch.tensor(True), lambda z: [z + 1], lambda z: [z], (x,))[0].equal(x + 1)
        carry, out = higher.scan(lambda c, z: [c + z, c * z], [torch.zeros(2)], [torch.ones(3, 2)], ())
        assert carry.tolist() == [3, 3]
        assert out.tolist() == [[0, 0], [1, 1], [2, 2]]


def test_operators_are_what_they_were():
    before = CondOp.__call__
    with python_control_flow():
        assert CondOp.__call__ is not before
    assert CondOp.__call__ is before
