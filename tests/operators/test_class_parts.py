"""The four parts of G by its class structure, entry by entry, against dense matrices of the definitions."""

import functools

import pytest
import torch
from cases import Case, batches, cnn, mlp, seeded
from class_structure import PARTS, reference
from sweeps import swept
from torch import nn

import hesspec

NAMES = {part: f"GaussNewton{part.capitalize()}" for part in PARTS}


class Spatial(nn.Module):
    """(N, 5) to logits (N, 3, 2): a class for each of two positions."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.layer(x)).view(-1, 3, 2) * 2


SHORT, EVEN = (8, 8, 3), (7, 7, 7)  # a trace for each shape


def every_class(count, classes, sizes=EVEN):
    def targets(size):
        return torch.arange(size) % classes if size >= classes else torch.randint(classes, (size,))

    return batches(count, targets, sizes)


CASES = {
    "mlp": lambda: Case(mlp(), nn.CrossEntropyLoss(), every_class((5,), 4, SHORT)),
    "cnn": lambda: Case(cnn(), nn.CrossEntropyLoss(), every_class((1, 4, 4), 4, SHORT)),
    "class weights": lambda: Case(
        mlp(), nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0, 0.7])), every_class((5,), 4)
    ),
    "sum": lambda: Case(mlp(), nn.CrossEntropyLoss(reduction="sum"), every_class((5,), 4, SHORT)),
    "label smoothing": lambda: Case(mlp(), nn.CrossEntropyLoss(label_smoothing=0.1), every_class((5,), 4)),
    "functional": lambda: Case(mlp(), nn.functional.cross_entropy, every_class((5,), 4)),
    "one batch": lambda: Case(mlp(), nn.CrossEntropyLoss(), every_class((5,), 4, sizes=(12,))),
    "parameter subset": lambda: Case(mlp(), nn.CrossEntropyLoss(), every_class((5,), 4), {"params": ["2.*"]}),
    "positions, some ignored": lambda: Case(
        seeded(Spatial), nn.CrossEntropyLoss(), [(x, positions(len(x))) for x, _ in every_class((5,), 3)]
    ),
}


def positions(size):
    targets = (torch.arange(2 * size) % 3).view(size, 2)
    targets[0, 0] = -100
    return targets


def operators(case):
    return {
        part: getattr(hesspec, name)(case.model, case.loss, case.data, **case.options) for part, name in NAMES.items()
    }


@functools.cache
def entries(name, mode):
    """The dense matrix of every part, and of G, in float64 and a mode that is set; what operators say of themselves."""
    case = CASES[name]().to(torch.float64)
    whole = hesspec.GaussNewton(case.model, case.loss, case.data, **case.options)
    built = {**operators(case), "full": whole}
    found = {part: operator @ torch.eye(whole.shape[0], dtype=torch.float64) for part, operator in built.items()}
    return found, {part: operator.attributes for part, operator in built.items()}


@pytest.mark.parametrize("name", CASES)
def test_entries_are_those_of_the_definition(name, mode):
    dense = reference(CASES[name]().to(torch.float64))
    found, attributes = entries(name, mode)
    for part, matrix in NAMES.items():
        assert (found[part] - dense[part]).abs().max() <= 1e-13 * dense["full"].abs().max()
        assert attributes[part]["mode"] == mode
        assert attributes[part]["matrix"] == matrix


@pytest.mark.parametrize("name", CASES)
def test_parts_sum_to_gauss_newton(name, mode):
    found, _ = entries(name, mode)
    difference = sum(found[part] for part in PARTS) - found["full"]
    assert (difference.norm(dim=0) <= 1e-12 * found["full"].norm(dim=0)).all()


@pytest.mark.parametrize("name", swept(["mlp", "cnn", "label smoothing", "positions, some ignored"], "mlp"))
def test_parts_sum_to_gauss_newton_in_float32(name, mode):
    case = CASES[name]().to(torch.float32)
    whole = hesspec.GaussNewton(case.model, case.loss, case.data, **case.options)
    vectors = torch.randn(whole.shape[0], 3, generator=torch.Generator().manual_seed(0))
    product = whole @ vectors
    total = sum(operator @ vectors for operator in operators(case).values())
    assert ((total - product).norm(dim=0) <= 1e-6 * product.norm(dim=0)).all()


@pytest.mark.parametrize("name", CASES)
def test_parts_are_positive_semidefinite_of_the_ranks_that_theory_gives(name, mode):
    classes = 3 if name.startswith("positions") else 4
    ranks = {"class": classes, "cross": classes * (classes - 2), "same": classes}
    found, _ = entries(name, mode)
    for part in PARTS:
        values = torch.linalg.eigvalsh(found[part])
        assert values.min() >= -1e-13 * values.max()
        if part in ranks:
            assert (values > 1e-12 * values.max()).sum() <= ranks[part]


@pytest.mark.parametrize("part", swept(PARTS, "cross"))
def test_memory_changes_what_is_kept_and_not_the_product(part, traced):
    case = CASES["cnn"]().to(torch.float64)
    plain = operators(case)[part]
    vector = torch.linspace(-1, 1, plain.shape[0], dtype=torch.float64)
    expected = plain @ vector
    peak = plain.attributes["predicted_peak_bytes"]
    cases = {}
    graphs = hesspec.GraphCache()
    for share in (2.0, 0.6, 0.3):
        memory = int(share * peak)
        operator = getattr(hesspec, NAMES[part])(case.model, case.loss, case.data, memory=memory, graphs=graphs)
        found = operator @ vector
        assert (found - expected).norm() <= 1e-13 * expected.norm()
        cases[share] = operator.attributes["kept_batches"], operator.attributes["mode_reason"]
    assert cases[2.0][0] == 3
    assert cases[0.6][0] < 3 or "parts" in cases[0.6][1]
    assert "parts" in cases[0.3][1]


@pytest.mark.parametrize("part", PARTS)
def test_spectrum_of_a_part_holds_its_bounds(part):
    case = CASES["mlp"]().to(torch.float64)
    truth = torch.linalg.eigvalsh(reference(case)[part]).flip(0).numpy()
    found = hesspec.spectrum(operators(case)[part], steps=24)
    count = len(found.eigenvalues)
    assert count >= 3
    assert (abs(found.eigenvalues - truth[:count]) <= found.error_bounds).all()


def test_a_plan_of_a_part_is_that_of_its_measurement():
    operator = operators(CASES["mlp"]().to(torch.float32))["cross"]
    plan = hesspec.plan(operator, steps=8)
    assert (plan.matrix, plan.matvecs, plan.kept) == ("GaussNewtonCross", 9, 1.0)


def test_a_network_that_fits_keeps_its_small_parts_in_float32():
    """At 1 - p = 1e-5 the parts are small differences of p and 1; rows are float64."""
    torch.manual_seed(0)
    x = torch.eye(4, dtype=torch.float64).repeat(3, 1) + 0.1 * torch.randn(12, 4, dtype=torch.float64)
    model = nn.Linear(4, 4, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(12 * torch.eye(4))
    case = Case(model, nn.CrossEntropyLoss(), [(x, torch.arange(12) % 4)])
    dense = reference(case)
    for part, operator in operators(case.to(torch.float32)).items():
        found = operator @ torch.eye(16)
        assert (found - dense[part]).norm() <= 2e-5 * dense[part].norm(), part


@pytest.mark.parametrize("name", NAMES.values())
@pytest.mark.parametrize(
    ("loss", "targets", "model", "message"),
    [
        (nn.MSELoss(), torch.zeros(6, 4), mlp(4), "The loss is MSELoss; the class structure requires softmax"),
        (
            nn.CrossEntropyLoss(),
            torch.full((6, 4), 0.25),
            mlp(4),
            "requires the true class of every sample as an integer",
        ),
        (nn.CrossEntropyLoss(), torch.tensor([0, 1, 3, 0, 1, 3]), mlp(4), r"1 of 4 classes have no samples .*\(2\)"),
        (nn.CrossEntropyLoss(), torch.zeros(6, dtype=torch.long), mlp(4), r"3 of 4 classes have no samples"),
        (nn.CrossEntropyLoss(), torch.zeros(6, dtype=torch.long), mlp(1), "There is only one class"),
    ],
)
def test_what_has_no_class_structure_is_refused(name, loss, targets, model, message, mode):
    def product():
        operator = getattr(hesspec, name)(model.float(), loss, [(torch.randn(6, 5), targets)])
        return operator @ torch.ones(operator.shape[0])

    with pytest.raises(ValueError, match=message):
        product()
