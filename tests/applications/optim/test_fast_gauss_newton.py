"""Fast Gauss-Newton: steps against dense solves, gain ratios, acceptance, and state of the model."""

import math

import pytest
import torch
from gauss_newton_steps import CLASSES, CURVATURES, dense, flat, problem
from torch import nn

import hesspec
from hesspec import optim
from hesspec.applications.optim.systems import WRONG, FullSystem, TrueVsRestSystem, loss_of, warm
from hesspec.operators.engine.jacobian import LinearisedModel
from hesspec.operators.risk.empirical_risk import EmpiricalRisk


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_a_step_is_that_of_the_dense_system_and_its_gain_ratio_that_of_the_quadratic_model(curvature, dtype, tolerance):
    model, loss, x, y = problem(dtype)
    matrices, g = dense(model, loss, x, y)
    matrix, damping, lr, start = matrices[curvature], 0.05, 0.5, flat(model)
    truth = torch.linalg.solve(matrix + damping * torch.eye(len(g), dtype=torch.float64), g)
    optimizer = optim.FastGaussNewton(
        model, loss, damping=damping, lr=lr, curvature=curvature, iterations=200, tolerance=tolerance / 10
    )
    before = loss(model(x), y).item()
    step = optimizer.step(x, y)
    # The condition number is (||G|| + damping)/damping < 20.
    assert (flat(model) - start + lr * truth).norm() <= 20 * tolerance * lr * truth.norm()
    assert step.loss == pytest.approx(before, rel=1e-6)
    assert step.accepted
    after = loss(model.double()(x.double()), y).item()
    predicted = float(lr * (g @ truth) - lr**2 / 2 * (truth @ matrix @ truth))
    assert step.gain_ratio == pytest.approx((before - after) / predicted, rel=100 * tolerance)
    assert step.damping == damping
    assert optimizer.damping == damping * (0.5 if step.gain_ratio > 0.75 else 1)


def test_the_prediction_of_an_exact_solve_is_half_of_gx_and_damped_x():
    model, loss, x, y = problem()
    linearised = LinearisedModel(EmpiricalRisk(model, loss, [(x, y)]), 1 << 30)
    for system in (TrueVsRestSystem(linearised), FullSystem(linearised)):
        found = system.solve(0.1, 1e-13, 200)
        assert found.slope > 0
        predicted = found.slope - found.curvature / 2
        assert predicted == pytest.approx((found.slope + 0.1 * float(found.x @ found.x)) / 2, rel=1e-11)


def test_gradients_and_losses_of_systems_are_those_of_autograd():
    model, loss, x, y = problem()
    _, g = dense(model, loss, x, y)
    linearised = LinearisedModel(EmpiricalRisk(model, loss, [(x, y)]), 1 << 30)
    for system in (TrueVsRestSystem(linearised), FullSystem(linearised)):
        assert (system.gradient() - g).abs().max() <= 1e-15
        assert loss_of(system.rows) == pytest.approx(loss(model(x), y).item(), rel=1e-14)


def test_error_identity_and_its_bound():
    model, loss, x, y = problem()
    matrices, g = dense(model, loss, x, y)
    identity, damping = torch.eye(len(g), dtype=torch.float64), 0.03
    fast, full = (torch.linalg.solve(matrices[name] + damping * identity, g) for name in CURVATURES)
    within = matrices["full"] - matrices["true-vs-rest"]
    error = torch.linalg.solve(matrices["true-vs-rest"] + damping * identity, within @ full)
    assert (fast - full - error).norm() <= 1e-13 * full.norm()
    assert (fast - full).norm() <= torch.linalg.matrix_norm(within, 2) * full.norm() / damping


def test_two_classes_have_no_competitors():
    steps = {}
    for curvature in CURVATURES:
        model, loss, x, y = problem(classes=2)
        start = flat(model)
        optim.FastGaussNewton(model, loss, damping=0.1, curvature=curvature, iterations=100, tolerance=1e-12).step(x, y)
        steps[curvature] = flat(model) - start
    assert (steps["full"] - steps["true-vs-rest"]).norm() <= 1e-10 * steps["full"].norm()


@pytest.mark.parametrize("scale", [1.0, 30.0, 3000.0])
def test_samples_that_are_fitted_very_wrongly_do_not_spoil_the_step(scale):
    # One sample's logits are wrong by up to 3,000, with p_y down to zero in float64.
    model = nn.Linear(6, CLASSES, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.linspace(-1, 1, 24).reshape(CLASSES, 6) * torch.tensor([1, -1, 1, -1, 1, -1]))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 6, dtype=torch.float64, generator=generator)
    x[0] *= scale
    y = model(x).argmax(1)
    y[0] = model(x[0]).argmin()
    matrices, g = dense(model, nn.CrossEntropyLoss(), x, y)
    linearised = LinearisedModel(EmpiricalRisk(model, nn.CrossEntropyLoss(), [(x, y)]), 1 << 30)
    system, damping = TrueVsRestSystem(linearised), 0.1
    found = system.solve(damping, 1e-12, 100)
    # In rows of q, whose entries underflow to zero, the dense matrix is exact, too.
    truth = torch.linalg.solve(matrices["true-vs-rest"] + damping * torch.eye(24, dtype=torch.float64), g)
    assert (found.x - truth).norm() <= 1e-9 * truth.norm()
    assert (system.gradient() - g).norm() <= 1e-14 * g.norm()
    assert found.slope == pytest.approx(float(g @ truth), rel=1e-9)
    assert found.curvature == pytest.approx(float(truth @ matrices["true-vs-rest"] @ truth), rel=1e-9)
    wrong = torch.softmax(model(x), 1)[0, y[0]].item() < WRONG
    assert wrong == (scale > 1)
    assert math.isfinite(loss_of(system.rows))


def test_a_start_saves_iterations_and_a_bad_start_is_not_used():
    model, loss, x, y = problem()
    linearised = LinearisedModel(EmpiricalRisk(model, loss, [(x, y)]), 1 << 30)
    system = TrueVsRestSystem(linearised)
    cold = system.solve(1e-3, 1e-8, 200)
    near = system.solve(1.1e-3, 1e-8, 200, cold.unknown)
    assert near.iterations < system.solve(1.1e-3, 1e-8, 200).iterations
    bad = system.solve(1e-3, 1e-8, 200, -1e6 * cold.unknown)
    assert (bad.x - cold.x).norm() <= 1e-12 * cold.x.norm()
    other = system.solve(1e-3, 1e-8, 200, torch.ones(3, dtype=torch.float64))
    assert torch.equal(other.x, cold.x)
    zero, residual, _ = warm(lambda v: v, torch.zeros(3, dtype=torch.float64), 1e-8, 9, None)
    assert not zero.any()
    assert not residual.any()


def test_a_step_that_increases_the_loss_is_undone_and_the_damping_grows():
    model, loss, x, y = problem()
    start = flat(model)
    # 200 times the step of a nearly undamped system.
    optimizer = optim.FastGaussNewton(model, loss, damping=1e-6, lr=200.0, iterations=100)
    step = optimizer.step(x, y)
    assert not step.accepted
    assert step.gain_ratio < 0
    assert torch.equal(flat(model), start)
    assert optimizer.damping == 1.5e-6
    constant = optim.FastGaussNewton(model, loss, damping=1e-6, lr=200.0, iterations=100, policy="constant")
    taken = constant.step(x, y)
    assert taken.accepted
    assert taken.gain_ratio == pytest.approx(step.gain_ratio, rel=1e-6)
    assert constant.damping == 1e-6
    assert not torch.equal(flat(model), start)


@pytest.mark.parametrize("curvature", CURVATURES)
def test_training_converges_and_every_accepted_step_decreases_the_loss(curvature):
    model, loss, x, y = problem(torch.float32, samples=60)
    y = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
    optimizer = optim.FastGaussNewton(model, loss, damping=0.1, curvature=curvature)
    steps = [optimizer.step(x, y) for _ in range(25)]
    losses = [step.loss for step in steps]
    for step, following in zip(steps, losses[1:], strict=False):
        assert (following < step.loss) == step.accepted
    assert losses[-1] < 0.02 < losses[0]


def test_later_steps_use_what_the_first_found_out(monkeypatch):
    model, loss, x, y = problem()
    optimizer = optim.FastGaussNewton(model, loss)
    optimizer.step(x, y)

    def never(*_, **__):
        raise AssertionError("found out again")

    monkeypatch.setattr("hesspec.operators.engine.passes.verify", never)
    monkeypatch.setattr("hesspec.operators.engine.passes.trace_linear", never)
    monkeypatch.setattr("hesspec.applications.optim.fast_gauss_newton.EmpiricalRisk", never)
    fresh = optim.FastGaussNewton(problem()[0], loss)
    with pytest.raises(AssertionError):
        fresh.step(x, y)
    shuffled = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    assert optimizer.step(x[shuffled] + 1, y[shuffled]).accepted


def test_the_second_step_is_that_of_a_new_optimiser_at_the_same_point():
    model, loss, x, y = problem()
    options = {"damping": 0.2, "policy": "constant", "iterations": 100, "tolerance": 1e-12}
    optimizer = optim.FastGaussNewton(model, loss, **options)
    optimizer.step(x, y)
    other = problem()[0]
    other.load_state_dict(model.state_dict())
    for each in (optimizer, optim.FastGaussNewton(other, loss, **options)):
        each.step(x.flip(0) + 0.1, y.flip(0))
    assert (flat(model) - flat(other)).norm() <= 1e-10 * flat(other).norm()


def test_little_memory_splits_batches_and_changes_nothing(caplog):
    found = []
    # The passes of all 24 samples take 6.5 kB.
    for memory in (None, 4_000):
        model, loss, x, y = problem()
        optimizer = optim.FastGaussNewton(model, loss, damping=0.1, policy="constant", memory=memory)
        steps = [optimizer.step(x, y), optimizer.step(x + 0.1, y)]
        found.append((flat(model), [step.loss for step in steps]))
    assert "parts of 1 batches" in caplog.text
    assert (found[0][0] - found[1][0]).norm() <= 1e-12 * found[0][0].norm()
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-13)


def test_batches_of_several_shapes_modes_and_parameters():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, CLASSES))
    _, loss, x, y = problem(torch.float32)
    model(x)
    statistics, first = model[1].running_mean.clone(), model[0].weight.detach().clone()
    optimizer = optim.FastGaussNewton(model, loss, params="3.*", damping=0.1)
    for size in (24, 10, 24):
        assert optimizer.step(x[:size], y[:size]).accepted
    assert model.training
    assert model[2].training
    assert torch.equal(model[1].running_mean, statistics)
    assert torch.equal(model[0].weight, first)
    # Another architecture under the same name is examined again.
    model[2] = nn.Identity()
    assert optimizer.step(x, y).loss > 0
    assert optim.FastGaussNewton(model, loss).state_dict() == {"damping": 1.0, "start": None}
    optimizer.load_state_dict({"damping": 3.0, "start": None})
    assert optimizer.damping == 3.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"damping": 0.0}, "damping is 0.0; it must be a positive number"),
        ({"damping": math.nan}, "damping is nan"),
        ({"lr": -1}, "lr is -1; it must be a positive number"),
        ({"iterations": 0}, "iterations is 0"),
        ({"tolerance": 2}, "tolerance is 2"),
        ({"policy": "trust"}, "policy='trust' is unknown; use one of 'gain ratio', 'constant'"),
        ({"curvature": "half"}, "curvature='half' is unknown; use one of 'true-vs-rest', 'full'"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    model, loss, _, _ = problem()
    with pytest.raises(ValueError, match=message):
        optim.FastGaussNewton(model, loss, **options)


def test_losses_and_values_without_a_step_are_refused():
    model, _, x, y = problem()
    with pytest.raises(ValueError, match="label_smoothing=0.1, with which its gradient is outside"):
        optim.FastGaussNewton(model, nn.CrossEntropyLoss(label_smoothing=0.1)).step(x, y)
    with pytest.raises(ValueError, match="The loss is MSELoss"):
        optim.FastGaussNewton(model, nn.MSELoss()).step(x, torch.zeros(24, CLASSES, dtype=torch.float64))
    start = flat(model)
    with pytest.raises(hesspec.NonFiniteError, match="loss of batch 0 is nan"):
        optim.FastGaussNewton(model, nn.CrossEntropyLoss()).step(x * torch.nan, y)
    assert torch.equal(flat(model), start)
