"""The mode of products is that for the number of products which is expected; with costs that are made up."""

import pytest
import torch
from torch import nn

import hesspec
from hesspec.backend.algebra import expect_products
from hesspec.krylov.basis import KrylovBasis
from hesspec.krylov.projected import ProjectedOperator
from hesspec.krylov.vectors import Space
from hesspec.operators.engine import passes, trace_cost
from hesspec.operators.engine.trace_cost import ForwardWork

TRACED, RETAINED = "traced", "double backward"


@pytest.fixture
def costs(monkeypatch):
    """Set the number of products for which a trace costs as much as it saves."""

    def costs_as_much_as(products):
        monkeypatch.setattr(passes, "count_work", lambda *_: ForwardWork(1, 1, 1, trace_seconds=float(products)))
        monkeypatch.setattr(trace_cost, "seconds_saved", lambda *_: 1.0)

    return costs_as_much_as


def problem(scale=1.0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        model[2].weight.mul_(scale)
    return model, nn.CrossEntropyLoss(), [(torch.randn(8, 4).double(), torch.arange(8) % 3) for _ in range(2)]


def hessian(**options):
    return hesspec.Hessian(*problem(), **options)


def product(operator):
    return operator @ torch.linspace(-1, 1, operator.shape[0], dtype=operator.dtype)


def mode(operator):
    return operator.attributes["mode"]


@pytest.mark.parametrize(
    ("expected", "costs_as", "chosen"),
    [
        ([], 63, TRACED),
        ([], 64, RETAINED),
        ([None], 63, TRACED),
        ([None], 64, RETAINED),
        ([10], 9, TRACED),
        ([10], 10, RETAINED),
        ([300], 299, TRACED),
        ([300], 300, RETAINED),
        ([10, None, 3], 76, TRACED),
        ([10, None, 3], 77, RETAINED),
        ([0], 0, RETAINED),
    ],
)
def test_a_trace_is_made_if_it_pays_for_the_expected_products(costs, expected, costs_as, chosen):
    costs(costs_as)
    operator = hessian()
    for number in expected:
        operator.expect_products(number)
    product(operator)
    assert mode(operator) == chosen


def test_checkpoints_multiply_the_expected_products(costs):
    costs(49)
    operator = hessian(graphs=hesspec.GraphCache(points=5))
    operator.expect_products(10)
    assert mode(operator) == TRACED


@pytest.mark.parametrize("number", [-1, 1.5, True, "10"])
def test_the_number_is_a_nonnegative_integer(number):
    with pytest.raises(ValueError, match="number of products is"):
        hessian().expect_products(number)


def pairs_of(operator):
    return hesspec.eigenpairs(operator, count=1, steps=12)


MEASUREMENTS = {
    "spectrum": (lambda matrix: hesspec.spectrum(matrix, steps=12), 12),
    "spectrum, more steps than parameters": (lambda matrix: hesspec.spectrum(matrix, steps=1000), 51),
    "spectrum, probes": (lambda matrix: hesspec.spectrum(matrix, steps=12, probes=3), 36),
    "spectrum, auto": (lambda matrix: hesspec.spectrum(matrix, steps="auto"), 64),
    "eigenpairs": (pairs_of, 12),
    "diagonal": (lambda matrix: hesspec.diagonal(matrix, probes=5), 5),
    "solve": (lambda matrix: hesspec.solve(matrix, torch.ones(51).double(), damping=1.0), 64),
    "solve after eigenpairs": (
        lambda matrix: hesspec.solve(matrix, torch.ones(51).double(), damping=1.0, preconditioner=pairs_of(matrix)),
        76,
    ),
    "blocks": (lambda matrix: hesspec.by_block(matrix, blocks="parameter", steps=3, progress=False), 6),
    "loss along": (lambda matrix: hesspec.loss_along(matrix, torch.eye(51, 2).double(), points=3), 2),
}


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_what_is_measured_says_how_many_products_it_takes(costs, name):
    measure, expected = MEASUREMENTS[name]
    for costs_as, chosen in ((expected - 1, TRACED), (expected, RETAINED)):
        costs(costs_as)
        operator = hessian()
        measure(operator)
        assert mode(operator) == chosen


def test_the_change_of_the_loss_in_a_step_says_how_many_products_it_takes(monkeypatch):
    told = []
    monkeypatch.setattr(hesspec.Hessian, "expect_products", lambda _, number: told.append(number))
    hesspec.noise.expected_loss_change(*problem(), batch_size=4, learning_rate=0.1, batches=6)
    assert told == [7]


COMBINED = {
    "sum": lambda matrix: matrix + 0.1 * hesspec.Identity.like(matrix),
    "block": lambda matrix: matrix[3:9],
    "block by name": lambda matrix: matrix["0.weight"],
    "preconditioned": lambda matrix: hesspec.Preconditioned(matrix, torch.ones(51)),
    "projected": lambda matrix: ProjectedOperator(
        matrix, KrylovBasis(Space(51), dtype=matrix.dtype, device=matrix.device)
    ),
}


@pytest.mark.parametrize("name", COMBINED)
def test_combined_operators_pass_the_number_on(costs, name):
    for costs_as, chosen in ((4, TRACED), (5, RETAINED)):
        costs(costs_as)
        operator = hessian()
        hesspec.spectrum(COMBINED[name](operator), steps=5)
        assert mode(operator) == chosen


def test_operators_of_others_need_not_be_told():
    expect_products(torch.eye(3), 10)


def test_a_trace_is_made_later_when_it_pays_and_is_verified(costs):
    costs(30)
    operator = hessian()
    hesspec.spectrum(operator, steps=20)
    before = product(operator)
    assert mode(operator) == RETAINED

    operator.expect_products(10)
    assert mode(operator) == RETAINED
    operator.expect_products(1)
    after = product(operator)

    assert mode(operator) == TRACED
    assert "verified" in operator.attributes["mode_reason"]
    assert operator.attributes["kept_batches"] == 2
    assert torch.equal(after, product(hessian(mode=TRACED)))
    assert torch.equal(before, product(hessian(mode=RETAINED)))
    # A trace that was made costs nothing any more.
    operator.expect_products(0)
    assert mode(operator) == TRACED


def test_a_wrong_trace_that_is_made_later_is_found(costs, monkeypatch):
    costs(70)
    operator = hessian()
    before = product(operator)
    cut = passes.cut

    def wrong(*arguments, **options):
        trace = cut(*arguments, **options)
        (tangent,) = trace.tangents
        return trace._replace(tangents=(lambda *given: tuple(2 * part for part in tangent(*given)),))

    monkeypatch.setattr(passes, "cut", wrong)
    operator.expect_products(71)

    assert torch.equal(product(operator), before)
    assert mode(operator) == RETAINED
    assert "not traced" in operator.attributes["mode_reason"]
    # It is not tried again.
    operator.expect_products(1000)
    assert mode(operator) == RETAINED


def test_a_mode_that_was_asked_for_stays(costs):
    costs(10)
    operator = hessian(mode=RETAINED)
    hesspec.spectrum(operator, steps=20)
    hesspec.spectrum(operator, steps=20)
    assert mode(operator) == RETAINED


def test_the_mode_does_not_change_within_a_run(costs):
    costs(30)
    operator, seen = hessian(), []
    for _ in range(2):
        hesspec.spectrum(operator, steps=20, on_step=lambda *_: seen.append(mode(operator)))
    assert seen == [RETAINED] * 20 + [TRACED] * 20


class StopError(Exception):
    pass


@pytest.mark.parametrize(("costs_as", "chosen"), [(10, TRACED), (17, TRACED), (30, RETAINED)])
def test_a_run_resumes_in_the_mode_in_which_it_began(costs, tmp_path, costs_as, chosen):
    """Also where a trace pays for the whole run and not for what is left of it."""
    costs(costs_as)

    def stop(done, _):
        if done == 5:
            raise StopError

    with pytest.raises(StopError):
        hesspec.spectrum(hessian(), steps=20, snapshot=tmp_path, every=0, on_step=stop)
    resumed = hesspec.spectrum(hessian(), steps=20, snapshot=tmp_path)
    whole = hesspec.spectrum(hessian(), steps=20)

    assert resumed.attributes["mode"] == whole.attributes["mode"] == chosen
    assert (resumed.nodes == whole.nodes).all()
    assert (resumed.weights == whole.weights).all()


def test_products_at_current_weights_count(costs):
    costs(30)
    operator, modes = hessian(), []
    for _ in range(3):
        hesspec.spectrum(operator, steps=12)
        modes.append(mode(operator))
        operator = operator.at_current_weights()
    assert modes == [RETAINED, RETAINED, TRACED]
    assert torch.equal(product(operator), product(hessian(mode=TRACED)))


@pytest.mark.parametrize("steps", [20, 40])
def test_a_plan_is_of_the_mode_that_the_spectrum_has(costs, steps):
    costs(30)
    operator = hessian()
    planned = hesspec.plan(operator, steps=steps)
    assert planned.mode == hesspec.spectrum(operator, steps=steps).attributes["mode"]
    assert planned.mode == (TRACED if steps > 30 else RETAINED)


def test_a_plan_for_an_accuracy_is_of_the_mode_for_its_steps(costs):
    """Of 8 steps, as those of the first batch find the whole spectrum; 64 are assumed before."""
    costs(30)
    planned = hesspec.plan(hessian(), accuracy=0.1)
    assert (planned.steps, planned.mode) == (8, RETAINED)
