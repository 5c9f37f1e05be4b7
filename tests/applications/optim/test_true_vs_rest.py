"""The damped true-vs-rest solve, against dense solves of plain autograd."""

import pytest
import torch
from cases import Case, batches, cnn, mlp
from torch import nn
from torch.func import functional_call, grad, jacrev

import hesspec

LOSSES = {
    "mean": {},
    "sum": {"reduction": "sum"},
    "class weights": {"weight": torch.tensor([0.2, 1.0, 3.0, 0.7])},
    "ignored": {"ignore_index": 1},
}


def case(dtype=torch.float64, **loss):
    data = batches((1, 4, 4), lambda size: torch.arange(size) % 4, (9, 7, 4))
    return Case(cnn(), nn.CrossEntropyLoss(**loss), data).to(dtype)


def dense(problem):
    """G_1, the Gauss-Newton matrix of softplus(-s), margin s = f_y - logsumexp of the others, and the gradient."""
    theta = {name: value.detach() for name, value in problem.model.named_parameters()}
    x, y = (torch.cat(parts) for parts in zip(*problem.data, strict=True))

    def margins(named):
        logits = functional_call(problem.model, named, (x,))
        true = logits.gather(1, y[:, None])
        return (true - logits.scatter(1, y[:, None], -torch.inf).logsumexp(1, keepdim=True)).squeeze(1)

    jacobian = torch.cat([part.flatten(1) for part in jacrev(margins)(theta).values()], 1)
    s = margins(theta)
    weight = torch.ones(4, dtype=s.dtype) if problem.loss.weight is None else problem.loss.weight
    scale = weight[y] * (y != problem.loss.ignore_index)
    scale = scale / (scale.sum() if problem.loss.reduction == "mean" else 1)
    curvature = scale * torch.sigmoid(s) * torch.sigmoid(-s)
    gradient = grad(lambda named: problem.loss(functional_call(problem.model, named, (x,)), y))(theta)
    return jacobian.T @ (curvature[:, None] * jacobian), torch.cat([part.flatten() for part in gradient.values()])


@pytest.mark.parametrize("given", [False, True], ids=["gradient", "rhs"])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-4)])
def test_solution_is_that_of_the_dense_system(dtype, tolerance, loss, given):
    matrix, gradient = dense(case(**loss))
    rhs = torch.linspace(-1, 1, len(gradient), dtype=torch.float64) if given else gradient
    damping = 1e-2 * float(torch.linalg.eigvalsh(matrix)[-1])
    truth = torch.linalg.solve(matrix + damping * torch.eye(len(rhs), dtype=torch.float64), rhs)
    problem = case(dtype, **loss)
    found = hesspec.solve_true_vs_rest(
        problem.model,
        problem.loss,
        problem.data,
        damping=damping,
        rhs=rhs.to(dtype) if given else None,
        tolerance=tolerance / 10,
    )
    assert found.x.dtype == dtype
    # The condition number of the system is 101 at most.
    assert (found.x - truth).norm() <= 101 * tolerance * truth.norm()
    assert found.residual <= 101 * tolerance
    # One row for each sample: 20 iterations in exact arithmetic, and twice as many where conjugacy is lost by rounding.
    assert found.iterations <= 40


def test_the_operator_of_the_same_part_gives_the_residual():
    problem = case()
    operator = hesspec.GaussNewton(problem.model, problem.loss, problem.data, output_curvature="true-vs-rest")
    rhs = torch.linspace(-1, 1, operator.shape[0], dtype=torch.float64)
    found = hesspec.solve_true_vs_rest(problem.model, problem.loss, problem.data, damping=0.1, rhs=rhs, tolerance=1e-12)
    assert (operator @ found.x + 0.1 * found.x - rhs).norm() <= 1e-10 * rhs.norm()


def test_a_solve_that_is_cut_off_says_so():
    problem = case()
    with pytest.warns(UserWarning, match="reached a relative residual of .* in 2 iterations"):
        found = hesspec.solve_true_vs_rest(problem.model, problem.loss, problem.data, damping=1e-9, max_iterations=2)
    assert found.residual > 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"damping": 0.0}, "damping is 0.0; it must be positive"),
        ({"damping": 1.0, "tolerance": -1}, "tolerance is -1"),
        ({"damping": 1.0, "max_iterations": 0}, "max_iterations is 0"),
        ({"damping": 1.0, "rhs": torch.zeros(3)}, r"rhs has shape \(3,\)"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    problem = case()
    with pytest.raises(ValueError, match=message):
        hesspec.solve_true_vs_rest(problem.model, problem.loss, problem.data, **options)


def test_losses_without_such_rows_are_refused():
    problem = case(label_smoothing=0.1)
    with pytest.raises(ValueError, match="label smoothing is outside the span of the rows; pass it as rhs"):
        hesspec.solve_true_vs_rest(problem.model, problem.loss, problem.data, damping=1.0)
    with pytest.raises(ValueError, match="The loss is MSELoss"):
        hesspec.solve_true_vs_rest(mlp(), nn.MSELoss(), [(torch.zeros(4, 5), torch.zeros(4, 4))], damping=1.0)
