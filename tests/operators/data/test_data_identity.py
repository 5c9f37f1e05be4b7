"""The matrix is of the data that was read, whatever happens to its memory later and whatever the model does to it."""

import pytest
import torch
import torch.nn.functional as F
from cases import batches, labels, mlp
from reference import hessian_of, whole
from sweeps import swept
from torch import nn

import hesspec

CE = nn.CrossEntropyLoss()
MATRICES = ("Hessian", "GaussNewton", "Residual")


class Static:
    """Gives every batch in the same memory, as prefetchers do."""

    def __init__(self, data, in_dict=False):
        self.data, self._in_dict = data, in_dict
        self.x, self.y = torch.empty_like(data[0][0]), torch.empty_like(data[0][1])

    def __iter__(self):
        for x, y in self.data:
            self.x.copy_(x)
            self.y.copy_(y)
            yield ({"input": self.x} if self._in_dict else self.x), self.y


@pytest.fixture
def data():
    return batches((5,), labels(4), sizes=(6, 6, 6))


LOADED = [("Hessian", in_dict, memory) for in_dict in (False, True) for memory in (None, "30kB")]
LOADED += [("GaussNewton", True, "30kB"), ("Residual", True, "30kB")]


@pytest.mark.parametrize(("matrix", "in_dict", "memory"), swept(LOADED, LOADED[0], LOADED[3]))
def test_a_loader_may_give_every_batch_in_the_same_memory(matrix, in_dict, memory, data, mode):
    model, make = mlp().double(), getattr(hesspec, matrix)
    expected = whole(make(model, CE, data))
    operator = make(model, CE, Static(data, in_dict), memory=memory)
    torch.testing.assert_close(whole(operator), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("matrix", [*MATRICES, "GaussNewtonClass"])
def test_data_changed_in_place_between_products_has_no_effect_on_what_is_kept(matrix, data, mode):
    data = [(x, torch.arange(6) % 4) for x, _ in data]
    operator = getattr(hesspec, matrix)(mlp().double(), CE, data)
    v = torch.randn(operator.shape[0], dtype=torch.float64)
    before = operator @ v
    assert operator.attributes["kept_batches"] == 3
    for x, y in data:
        x.mul_(3)
        y.zero_()
    assert torch.equal(operator @ v, before)


def test_data_changed_in_place_is_named_where_it_is_read_again(data, mode):
    operator = hesspec.Hessian(mlp().double(), CE, data, memory="6kB")
    v = torch.randn(operator.shape[0], dtype=torch.float64)
    _ = operator @ v
    assert operator.attributes["kept_batches"] < 3
    data[1][1][2] = (data[1][1][2] + 1) % 4
    with pytest.raises(ValueError, match=r"batch 1 has other values .*\(targets had shape \(6,\) and the checksum"):
        _ = operator @ v


def test_the_checksums_of_a_change_differ(data):
    operator = hesspec.Hessian(mlp().double(), CE, data)
    data[2][0][3, 1] += 1e-9
    with pytest.raises(ValueError, match=r"inputs had shape \(6, 5\) and the checksum") as caught:
        whole(operator)
    first, second = (
        words.partition("the checksum ")[2].split(" ")[0].strip(",);") for words in str(caught.value).split(", and now")
    )
    assert first != second


class InPlace(nn.Module):
    """Normalises its inputs in their own memory."""

    def __init__(self, place):
        super().__init__()
        self.body, self._place = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)), place

    def forward(self, x=None, y=None):
        x = x["x"] if isinstance(x, dict) else x
        if self._place == "input":
            x.sub_(0.5).div_(0.25)
        elif self._place == "slice":
            x[:, 0] *= 2
        return self.body(x)

    def expected(self, x):
        if self._place == "input":
            x = (x - 0.5) / 0.25
        elif self._place == "slice":
            x = torch.cat([2 * x[:, :1], x[:, 1:]], 1)
        return self.body(x)


def in_place_loss(out, y):
    y.clamp_(max=2)
    return F.cross_entropy(out, y)


MAKES = [lambda x: x, lambda x: {"x": x}, lambda x: ({"x": x},)]


# How inputs are given does not depend on the matrix.
WAYS = [("Hessian", make) for make in MAKES] + [("GaussNewton", MAKES[2]), ("Residual", MAKES[0])]


@pytest.mark.parametrize(("matrix", "make"), swept(WAYS, WAYS[2]))
@pytest.mark.parametrize("place", ["input", "slice", "targets"])
def test_models_and_losses_may_work_in_place(matrix, place, make, data, mode):
    torch.manual_seed(0)
    model = InPlace(place).double()
    given = [(make(x), y) for x, y in data]
    kept = [(x.clone(), y.clone()) for x, y in data]
    loss = in_place_loss if place == "targets" else CE
    graphs = hesspec.GraphCache()
    operators = [getattr(hesspec, name)(model, loss, given, graphs=graphs) for name in ("Hessian", matrix)]
    x, y = (torch.cat(parts) for parts in zip(*kept, strict=True))
    y = y.clamp(max=2) if place == "targets" else y
    expected = hessian_of(model, lambda: F.cross_entropy(model.expected(x), y))
    torch.testing.assert_close(whole(operators[0]), expected, rtol=1e-10, atol=1e-12)
    first = whole(operators[1])
    assert torch.equal(first, whole(operators[1]))
    if matrix == "GaussNewton":
        rest = whole(hesspec.Residual(model, loss, given))
        torch.testing.assert_close(first + rest, expected, rtol=1e-10, atol=1e-12)
    for (x, y), (given_x, given_y) in zip(kept, data, strict=True):
        assert torch.equal(x, given_x)
        assert torch.equal(y, given_y)


def test_inputs_that_require_a_gradient_stay_what_the_loss_knows():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = torch.rand(6, 2, dtype=torch.float64, requires_grad=True)

    def slope(u, y):
        (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        return (du[:, 0] - y).square().mean()

    y = torch.randn(6, dtype=torch.float64)
    operator = hesspec.Hessian(model, slope, [(x, y)])
    with pytest.warns(UserWarning, match="2.bias"):
        found = whole(operator)
    torch.testing.assert_close(found, hessian_of(model, lambda: slope(model(x), y)), rtol=1e-9, atol=1e-11)


def test_data_made_in_inference_mode_can_be_used(mode):
    model = mlp().double()
    data = batches((5,), labels(4))
    with torch.inference_mode():
        inside = [(x.clone(), y.clone()) for x, y in data]
    expected = whole(hesspec.Hessian(model, CE, data))
    torch.testing.assert_close(whole(hesspec.Hessian(model, CE, inside)), expected, rtol=1e-12, atol=1e-14)
