"""Verification evaluates gradients no more often than it has to, and misses nothing by that."""

from collections import OrderedDict, defaultdict

import pytest
import torch
from torch import nn

import hesspec
from hesspec.operators.engine.differences import length, settled
from hesspec.operators.engine.matrix_passes import MatrixPasses
from hesspec.operators.engine.verification import AT_THE_POINT, TELLS
from hesspec.operators.model.module import ModuleState


@pytest.fixture
def displacements(monkeypatch):
    """Displacements of all products by differences."""
    found = []

    def seen(self, differences, tangents, displacement):
        found.append(displacement)
        return self._form.difference(differences, tangents, displacement)

    monkeypatch.setattr(MatrixPasses, "trial_by_differences", seen)
    return found


def network(unit: type[nn.Module], *, bias: float | None = None) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), unit(), nn.Linear(6, 3)).double()
    if bias is not None:
        with torch.no_grad():
            model[0].bias.fill_(bias)
    return model


def samples(*, zeros: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(8, 4, dtype=torch.float64, generator=generator)
    inputs[:zeros] = 0
    return [(inputs, torch.arange(8) % 3)]


@pytest.mark.parametrize("matrix", ["Hessian", "GaussNewton", "Residual"])
@pytest.mark.parametrize("mode", ["traced", "double backward"])
def test_one_displacement_decides_for_a_smooth_loss(displacements, matrix, mode):
    operator = getattr(hesspec, matrix)(network(nn.Tanh), nn.CrossEntropyLoss(), samples(), mode=mode)
    operator @ torch.ones(operator.shape[0], dtype=torch.float64)
    # Near the parameters, and at them.
    assert displacements == [1e-6, 1e-8]


@pytest.mark.parametrize("matrix", ["Hessian", "GaussNewton", "Residual"])
def test_one_displacement_decides_in_float32_for_many_units_with_kinks(displacements, matrix):
    torch.manual_seed(0)
    # Of 8 x 20,000 units, hardly one switches between two points that are so near.
    model = nn.Sequential(nn.Linear(4, 20_000), nn.ReLU(), nn.Linear(20_000, 3))
    data = [(inputs.float(), targets) for inputs, targets in samples()]
    operator = getattr(hesspec, matrix)(model, nn.CrossEntropyLoss(), data, mode="traced")
    operator @ torch.ones(operator.shape[0])
    assert displacements == [1e-8] * 2


def test_three_displacements_decide_where_units_are_at_their_kinks(displacements):
    model = network(nn.ReLU, bias=0.0)
    operator = hesspec.Hessian(model, nn.CrossEntropyLoss(), samples(zeros=4), mode="traced")
    operator @ torch.ones(operator.shape[0], dtype=torch.float64)
    # Near the parameters, at them, and with the units moved off their kinks.
    assert displacements == [1e-6, 1e-8, 1e-9, 1e-8]


class LostCurvature(nn.Module):
    """Outputs with the square of a norm at zero, whose curvature PyTorch loses, and a unit near its kink."""

    def __init__(self) -> None:
        super().__init__()
        self.units = network(nn.ReLU, bias=0.5)
        with torch.no_grad():
            self.units[0].bias[0] = 2e-7
        self.weight = nn.Parameter(torch.zeros(3, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        norm = self.weight.norm().reshape(1)
        return self.units(x) + norm.dot(norm) * torch.arange(3)


def test_lost_curvature_is_noticed_where_a_unit_is_near_its_kink_but_not_at_it(displacements):
    operator = hesspec.Hessian(LostCurvature(), nn.CrossEntropyLoss(), samples(zeros=1), mode="traced")
    with pytest.raises(ValueError, match=r"at the parameters themselves .* smooth there"):
        operator @ torch.ones(operator.shape[0], dtype=torch.float64)
    # The unit switches between the two points at the largest displacement.
    once = displacements.index(1e-9)
    assert displacements[once - 1 : once + 4] == [1e-8, 1e-9, 1e-6, 1e-7, 1e-8]


@pytest.mark.parametrize("share", [0.0, 1.0, 100.0, 800.0])
@pytest.mark.parametrize("cosine", [-1.0, -0.5, 0.0, 0.5, 1.0])
def test_differences_of_gradients_that_jump_at_the_point_are_apart(share, cosine):
    """S + J / h with |S| = share |J| / 1e-8."""
    jump = AT_THE_POINT[0] * torch.tensor([1.0, 0.0], dtype=torch.float64)
    smooth = share * torch.tensor([cosine, (1 - cosine**2) ** 0.5], dtype=torch.float64)
    one, other = (smooth + jump / h for h in AT_THE_POINT)
    assert float((one - other).norm()) > TELLS * float(one.norm())


def test_arithmetic_between_evaluations_is_hidden_from_the_modes_that_the_module_runs_in():
    class Forbidden(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            raise AssertionError(func)

    vectors = [torch.ones(3), torch.ones(2, dtype=torch.complex64)]
    with Forbidden():
        assert length(vectors) == pytest.approx(5**0.5)
        settled(lambda h: vectors, torch.float64)


def test_contents_of_all_kinds_of_containers_are_restored():
    model = nn.Linear(2, 2)
    model.kept = OrderedDict(b=1, a=2)
    model.lists, model.sets, model.empty = [1, [2]], {1, 2}, defaultdict(list)
    state = ModuleState(model)
    model.kept.move_to_end("b")
    model.kept["c"] = 3
    model.lists[1].append(4)
    model.sets.clear()
    model.empty["new"].append(1)
    state.restore()
    assert list(model.kept.items()) == [("b", 1), ("a", 2)]
    assert model.lists == [1, [2]]
    assert model.sets == {1, 2}
    assert not model.empty
    assert isinstance(model.empty, defaultdict)
    assert not state.changed()
