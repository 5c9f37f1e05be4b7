"""The two terms of the softmax curvature, true-vs-rest and within-competitor, against their definition by autograd."""

import functools

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, NextTokenLoss, batches, labels, mlp, seeded
from sweeps import swept
from torch import nn

import hesspec
from hesspec.operators.risk import output_curvature as module
from hesspec.operators.risk.empirical_risk import OutputLoss
from hesspec.operators.risk.output_curvature import output_curvature

PARTS = ["true-vs-rest", "within-competitor"]
WEIGHT = torch.tensor([0.2, 1.0, 3.0, 0.7], dtype=torch.float64)
SHAPES = [(4,), (6, 4), (3, 4, 5), (2, 4, 3, 2)]
OPTIONS = [
    {},
    {"weight": WEIGHT},
    {"ignore_index": 1},
    {"weight": WEIGHT, "ignore_index": 2},
    {"reduction": "sum"},
    {"label_smoothing": 0.1},
    {"label_smoothing": 0.2, "weight": WEIGHT, "ignore_index": 3},
    {"label_smoothing": 0.2, "weight": WEIGHT, "reduction": "sum"},
]


# The definition, by autograd in float64 -------------------------------------------------------------------------------


def margin(f, y):
    """s = f_y - logsumexp_{c != y} f_c of one row of logits (C,)."""
    return f[y] - torch.cat([f[:y], f[y + 1 :]]).logsumexp(0)


def terms(f, y):
    """Chain rule for softplus(-s) of one row (C,): l''(s) grad s grad s^T and l'(s) d^2 s / d f^2, each (C, C)."""
    s = margin(f, y).requires_grad_()
    (first,) = torch.autograd.grad(F.softplus(-s), s, create_graph=True)
    (second,) = torch.autograd.grad(first, s)
    gradient = torch.autograd.functional.jacobian(lambda f: margin(f, y), f)
    curvature = torch.autograd.functional.hessian(lambda f: margin(f, y), f)
    return {
        "true-vs-rest": second * torch.outer(gradient, gradient),
        "within-competitor": first.detach() * curvature,
    }


def blocks(loss, outputs, targets, part):
    """The part of every row, (R, C, C), for outputs (R, C) and targets (R,).

    What a row counts for is its share of the Hessian of the whole loss, by autograd too, at logits that are all equal:
    there p_0 (1 - p_0) is 1/C (1 - 1/C), and no digit is lost.
    """
    rows, count = outputs.shape
    hessian = torch.autograd.functional.hessian(lambda f: loss(f, targets), torch.zeros_like(outputs))
    hessian = hessian.reshape(rows, count, rows, count)
    share = torch.stack([hessian[r, 0, r, 0] for r in range(rows)]) / (1 / count * (1 - 1 / count))
    counted = [int(y) if y != loss.ignore_index else 0 for y in targets]
    return torch.stack([share[r] * terms(outputs[r], y)[part] for r, y in enumerate(counted)])


def flat(outputs):
    """Outputs with classes in dimension 1 (or 0, alone), as rows (R, C)."""
    return outputs.movedim(1 if outputs.dim() > 1 else 0, -1).reshape(-1, outputs.shape[1 if outputs.dim() > 1 else 0])


def dense(model, loss, data, part):
    """J^T (part of d^2 l / d f^2) J, all data as one batch."""
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    named = {name: value.detach() for name, value in model.named_parameters()}

    def predict(*values):
        return flat(torch.func.functional_call(model, dict(zip(named, values, strict=True)), (x,)))

    values = tuple(named.values())
    jacobian = torch.func.jacrev(predict, argnums=tuple(range(len(values))))(*values)
    outputs = predict(*values)
    jacobian = torch.cat([block.reshape(*outputs.shape, -1) for block in jacobian], 2)
    return torch.einsum("rcp,rcd,rdq->pq", jacobian, blocks(loss, outputs, y.reshape(-1), part), jacobian)


def matrix(model, loss, data, part):
    operator = hesspec.GaussNewton(model, loss, data, output_curvature=part)
    return operator @ torch.eye(operator.shape[0], dtype=operator.dtype)


def spatial():
    """(N, 2, 6) to (N, 4, 4): four logits at each of four positions."""
    return seeded(lambda: nn.Conv1d(2, 4, 3)).double()


PROBLEMS = {
    "mlp": lambda: (mlp().double(), batches((5,), labels(4))),
    "spatial": lambda: (spatial(), batches((2, 6), lambda size: torch.randint(4, (size, 4)))),
}


# Products in the outputs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_those_of_the_definition(shape, options, part):
    outputs = torch.randn(shape, dtype=torch.float64)
    targets = torch.randint(4, (shape[0], *shape[2:]) if len(shape) > 1 else ())
    if len(shape) == 1:
        targets = targets.fill_(options.get("ignore_index", 1) % 3 + 1)
    loss, tangent = nn.CrossEntropyLoss(**options), torch.randn(shape, dtype=torch.float64)
    curved = torch.einsum("rcd,rd->rc", blocks(loss, flat(outputs), targets.reshape(-1), part), flat(tangent))
    found = output_curvature(loss, outputs, targets, part)(tangent)
    assert found.shape == outputs.shape
    # Autograd's l'' is p_y - p_y^2, which loses up to a factor 1 / (1 - p_y): below 500 with logits within 3.
    assert (flat(found) - curved).abs().max() <= 1e-12 * curved.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", OPTIONS)
def test_both_terms_add_up_to_the_whole(options, dtype):
    outputs, tangent = 3 * torch.randn(6, 4, dtype=dtype), torch.randn(6, 4, dtype=dtype)
    targets = torch.randint(4, (6,))
    loss = nn.CrossEntropyLoss(**options).to(dtype)
    one, other = (output_curvature(loss, outputs, targets, part)(tangent) for part in PARTS)
    whole = output_curvature(loss, outputs, targets)(tangent)
    # Each of the three rounds relative to its own size, which for the terms is at most that of the whole's factors.
    assert (one + other - whole).abs().max() <= (1e-12 if dtype == torch.float64 else 1e-6) * whole.abs().max()


@pytest.mark.parametrize("samples", [1, 2, 3, 6, 7, 8])
@pytest.mark.parametrize("shape", [(7, 4), (7, 4, 3)])
@pytest.mark.parametrize("part", PARTS)
def test_chunks_of_rows_change_nothing(part, shape, samples, monkeypatch):
    outputs, tangent = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    targets = torch.randint(4, (7, *shape[2:]))
    loss = nn.CrossEntropyLoss(weight=WEIGHT, ignore_index=0)
    whole = output_curvature(loss, outputs, targets, part)(tangent)
    monkeypatch.setattr(module, "CHUNK", samples * outputs[0].numel())
    assert torch.equal(output_curvature(loss, outputs, targets, part)(tangent), whole)


# p_y = 1 - 1e-7 and 1e-7: the margin is log(p_y / (1 - p_y)).
@pytest.mark.parametrize(
    "s", [16.118, -16.118, 30.0, -30.0, 0.0], ids=["fitted", "misfitted", "1e-13", "-1e-13", "even"]
)
@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("part", PARTS)
def test_float32_keeps_its_digits_where_a_probability_is_near_one(part, s, offset):
    rest = torch.tensor([0.0, 0.5, -0.7])
    logits = torch.cat([(rest.logsumexp(0) + s)[None], rest])[None]
    tangent = torch.tensor([[0.3, -1.2, 0.8, 2.0]]) + offset
    target = torch.tensor([0])
    loss = nn.CrossEntropyLoss()
    found = output_curvature(loss, logits, target, part)(tangent)
    f, u = logits[0].double(), tangent[0].double()
    q = torch.cat([torch.zeros(1), f[1:].softmax(0)])
    p, rest = torch.sigmoid(margin(f, 0)), torch.sigmoid(-margin(f, 0))
    e = torch.eye(4, dtype=torch.float64)[0]
    exact = {
        "true-vs-rest": p * rest * (e - q) * ((e - q) @ u),
        "within-competitor": rest * q * (u - q @ u),
    }[part]
    # A logit of size s, rounded to eps |s| / 2, a difference and a logsumexp of such: 1e-5 is 5 eps |s| at s = 16.
    assert ((found[0].double() - exact).abs() <= 1e-5 * max(1, abs(s) / 16) * exact.abs()).all()
    assert exact.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_classes_have_no_competitors_to_tell_apart(dtype):
    outputs, tangent = 3 * torch.randn(6, 2, dtype=dtype), torch.randn(6, 2, dtype=dtype)
    targets, loss = torch.randint(2, (6,)), nn.CrossEntropyLoss()
    assert not output_curvature(loss, outputs, targets, "within-competitor")(tangent).any()
    whole = output_curvature(loss, outputs, targets)(tangent)
    found = output_curvature(loss, outputs, targets, "true-vs-rest")(tangent)
    # Five roundings in each, beside that of the margin, of size 10 at most.
    assert (found - whole).abs().max() <= 20 * torch.finfo(dtype).eps * whole.abs().max()


@pytest.mark.parametrize("part", PARTS)
def test_a_single_class_has_no_curvature(part):
    outputs, targets = torch.randn(3, 1), torch.zeros(3, dtype=torch.long)
    assert not output_curvature(nn.CrossEntropyLoss(), outputs, targets, part)(torch.randn(3, 1)).any()


# Products with the whole matrix ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("options", OPTIONS[::3])  # the plain one, and those that combine several
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.few(5)
def test_float64_entries_agree_with_the_dense_matrix(name, options, part, mode):
    model, data = PROBLEMS[name]()
    loss = nn.CrossEntropyLoss(**options)
    found, truth = matrix(model, loss, data, part), dense(model, loss, data, part)
    assert (found - truth).abs().max() <= 1e-12 * truth.abs().max()
    eigenvalues = torch.linalg.eigvalsh((found + found.T) / 2)
    assert eigenvalues[0] >= -1e-12 * eigenvalues[-1]


SUMS = [(name, torch.float64) for name in ("mlp", "ignored class", "sum", "residual cnn")]
SUMS += [("class weights and smoothing", dtype) for dtype in (torch.float64, torch.float32)]


@pytest.mark.parametrize(("name", "dtype"), swept(SUMS, SUMS[-2]))
def test_the_matrices_of_both_terms_add_up_to_gauss_newton(name, dtype, mode):
    case = CASES[name]().to(dtype)
    one, other, whole = (matrix(case.model, case.loss, case.data, part) for part in [*PARTS, "full"])
    assert (one + other - whole).abs().max() <= (1e-12 if dtype == torch.float64 else 1e-6) * whole.abs().max()


@pytest.mark.parametrize("classes", [2, 4])
def test_true_vs_rest_is_the_gauss_newton_matrix_of_the_margin(classes, mode):
    model, data = mlp(classes).double(), batches((5,), labels(classes))

    def margin_loss(margins, _):
        return F.softplus(-margins).mean()

    class Margins(nn.Module):
        """The scalar of each sample; labels come with the inputs."""

        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x, y):
            f = self.model(x)
            others = f.masked_fill(F.one_hot(y, classes).bool(), -torch.inf)
            return f.gather(1, y[:, None])[:, 0] - others.logsumexp(1)

    scalar = hesspec.GaussNewton(Margins().eval(), margin_loss, [((x, y), y) for x, y in data])
    expected = scalar @ torch.eye(scalar.shape[0], dtype=torch.float64)
    found = matrix(model, nn.CrossEntropyLoss(), data, "true-vs-rest")
    assert (found - expected).abs().max() <= 1e-12 * expected.abs().max()


def test_with_two_classes_true_vs_rest_is_all_of_it(mode):
    model, data = mlp(2).double(), batches((5,), labels(2))
    whole = matrix(model, nn.CrossEntropyLoss(), data, "full")
    assert (matrix(model, nn.CrossEntropyLoss(), data, "true-vs-rest") - whole).abs().max() <= 1e-12 * whole.abs().max()
    assert not matrix(model, nn.CrossEntropyLoss(), data, "within-competitor").any()


@pytest.mark.parametrize("part", PARTS)
def test_logits_of_transformers_and_ignored_tokens(part, mode):
    case = CASES["gpt2, dict inputs, ignored tokens"]().to(torch.float64)
    # Classes come second here, (B, V, T), so that the loss is torch's own.
    model = Transposed(case.model)
    data = [(inputs["input_ids"], targets) for inputs, targets in case.data]
    loss = nn.CrossEntropyLoss()
    found = matrix(model, loss, data, part)
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    operator = hesspec.GaussNewton(model, loss, data)
    v = torch.randn(operator.shape[0], dtype=torch.float64)
    named = {name: value.detach() for name, value in model.named_parameters()}
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        _, pushed = torch.func.jvp(
            lambda n: flat(torch.func.functional_call(model, n, (x,)).logits), (named,), (operator.to_named(v),)
        )
        outputs, pull = torch.func.vjp(lambda n: flat(torch.func.functional_call(model, n, (x,)).logits), named)
        curved = torch.einsum("rcd,rd->rc", blocks(loss, outputs.detach(), y.reshape(-1), part), pushed)
        truth = operator.to_flat(pull(curved)[0])
    assert (found @ v - truth).abs().max() <= 1e-12 * truth.abs().max()


class Transposed(nn.Module):
    """A transformer whose outputs hold logits (B, V, T)."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        outputs = self.model(input_ids=ids)
        outputs.logits = outputs.logits.transpose(1, 2)
        return outputs


@pytest.mark.parametrize("size", [1, 8, 100])
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.few(2)
def test_gauss_newton_in_chunks(part, size, mode, monkeypatch):
    model, data = PROBLEMS["spatial"]()
    whole = matrix(model, nn.CrossEntropyLoss(), data, part)
    monkeypatch.setattr(module, "CHUNK", size)
    torch.testing.assert_close(matrix(model, nn.CrossEntropyLoss(), data, part), whole, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("loss", [F.cross_entropy, functools.partial(F.cross_entropy, ignore_index=1)])
def test_the_functional_form_is_the_module(loss):
    model, data = PROBLEMS["mlp"]()
    options = loss.keywords if isinstance(loss, functools.partial) else {}
    expected = matrix(model, nn.CrossEntropyLoss(**options), data, "true-vs-rest")
    assert torch.equal(matrix(model, loss, data, "true-vs-rest"), expected)


# Attributes and errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", PARTS)
def test_attributes_name_the_part(part):
    model, data = PROBLEMS["mlp"]()
    operator = hesspec.GaussNewton(model, nn.CrossEntropyLoss(), data, output_curvature=part)
    assert operator.attributes["output_curvature"] == part
    assert operator.attributes["matrix"] == "GaussNewton"


def test_attributes_of_the_whole_are_what_they_were():
    model, data = PROBLEMS["mlp"]()
    assert "output_curvature" not in hesspec.GaussNewton(model, nn.CrossEntropyLoss(), data).attributes


@pytest.mark.parametrize("part", ["true-vs-res", "rest", None, 1])
def test_an_unknown_part_is_refused_with_the_known_ones(part):
    message = f"output_curvature={part!r} is unknown; use one of 'full', 'true-vs-rest', 'within-competitor'"
    with pytest.raises(ValueError, match=message):
        hesspec.GaussNewton(mlp(), nn.CrossEntropyLoss(), batches((5,), labels(4)), output_curvature=part)


def squared(outputs, targets):
    return outputs.square().mean()


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    ("loss", "name"),
    [(nn.MSELoss(), "MSELoss"), (squared, "squared"), (NextTokenLoss(), "NextTokenLoss"), (F.nll_loss, "NLLLoss")],
)
def test_other_losses_are_refused_when_the_operator_is_built(loss, name, part):
    with pytest.raises(
        ValueError, match=f"output_curvature='{part}'.*the loss is {name}: pass torch.nn.CrossEntropyLo"
    ):
        hesspec.GaussNewton(mlp(), loss, batches((5,), labels(4)), output_curvature=part)


@pytest.mark.parametrize("part", PARTS)
def test_class_probabilities_are_refused_when_the_operator_is_built(part):
    case = CASES["class probabilities"]()
    with pytest.raises(
        ValueError, match=f"output_curvature='{part}' requires the true class.*the targets are torch.float"
    ):
        hesspec.GaussNewton(case.model, case.loss, case.data, output_curvature=part)


def test_class_probabilities_in_a_later_batch_are_refused_in_the_first_product(mode):
    data = [*batches((5,), labels(4)), (torch.randn(2, 5), torch.rand(2, 4).softmax(1))]
    operator = hesspec.GaussNewton(mlp(), nn.CrossEntropyLoss(), data, output_curvature="true-vs-rest")
    with pytest.raises(
        ValueError, match=r"requires the true class of every sample, but the targets are torch\.float32"
    ):
        _ = operator @ torch.ones(operator.shape[0])


def test_targets_that_are_no_tensor_are_refused():
    with pytest.raises(ValueError, match="requires the true class of every sample, but the targets are a list"):
        output_curvature(nn.CrossEntropyLoss(), torch.ones(3, 4), [1, 2, 3], "true-vs-rest")


def test_logits_that_are_not_among_the_outputs_are_refused():
    class Loss:
        function = nn.CrossEntropyLoss()

        def taken(self, outputs):
            return 2 * outputs["a"]

    loss = OutputLoss(Loss(), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="requires that the model returns the logits.*this dict does not contain them"):
        loss.curvature({"a": torch.ones(3, 4)}, "true-vs-rest")
