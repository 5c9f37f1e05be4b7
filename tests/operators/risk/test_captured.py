"""G is never zero without a word: it is of the logits where the loss has them, or it is said to be zero."""

import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.distributions as D
import torch.nn.functional as F
import transformers
from cases import gpt2
from reference import gauss_newton_of, hessian_of, whole
from sweeps import swept
from torch import nn

import hesspec

CE = nn.CrossEntropyLoss()
WEIGHT = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)


class Body(nn.Module):
    def __init__(self, outputs=3):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, outputs))


class Own(Body):
    """A model that computes its own loss, by a function of its logits and the labels."""

    def __init__(self, loss):
        super().__init__()
        self._loss = loss

    def forward(self, x, labels):
        logits = self.body(x)
        return {"loss": self._loss(logits, labels), "logits": logits}


def data(*sizes, ignored=()):
    torch.manual_seed(1)
    found = []
    for place, size in enumerate(sizes):
        labels = torch.randint(3, (size,))
        labels[: [*ignored, 0, 0][place]] = -100
        found.append((torch.randn(size, 4, dtype=torch.float64), labels))
    return found


def squares(logits, labels):
    return F.mse_loss(logits, F.one_hot(labels, 3).to(logits))


def entropies(logits, labels):
    return F.binary_cross_entropy_with_logits(logits, F.one_hot(labels, 3).to(logits))


def in_parts(logits, labels):
    return 0.5 * F.cross_entropy(logits, labels) + 2 * squares(logits, labels)


def averaged_by_hand(logits, labels):
    return F.cross_entropy(logits, labels, reduction="none").sum() / len(labels)


def perplexity(logits, labels):
    return F.cross_entropy(logits, labels).exp()


def likelihood(logits, labels):
    return F.nll_loss(logits.log_softmax(1), labels, weight=WEIGHT)


def divergence(logits, labels):
    target = torch.where(F.one_hot(labels, 3) == 1, 0.8, 0.1).to(logits)
    return F.kl_div(logits.log_softmax(1), target, reduction="batchmean")


INSIDE = {
    "cross-entropy": F.cross_entropy,
    "module": CE,
    "smoothed": lambda f, y: F.cross_entropy(f, y, label_smoothing=0.1),
    "squares": squares,
    "entropies": entropies,
    "weighted sum of two": in_parts,
    "averaged by hand": averaged_by_hand,
    "function of the loss": perplexity,
    "likelihood of log-probabilities": likelihood,
    "divergence from log-probabilities": divergence,
}
FEW = ("cross-entropy", "smoothed", "function of the loss")


# How the loss is reached does not depend on what it is.
FORMS = [(form, name) for form, names in {"pair": INSIDE, "mapping": FEW, "closure": FEW}.items() for name in names]


@pytest.mark.parametrize(("form", "name"), swept(FORMS, *(("pair", name) for name in FEW), ("closure", "smoothed")))
def test_g_of_a_loss_inside_the_model_is_that_of_its_logits(name, form, mode):
    torch.manual_seed(0)
    loss = INSIDE[name]
    model, batches = Own(loss).double(), data(7)
    ((x, y),) = batches
    given = {
        "pair": ([({"x": x, "labels": y}, y)], lambda out, _: out["loss"]),
        "mapping": ([{"x": x, "labels": y}], lambda out, _: out["loss"]),
        "closure": ([(x, y)], hesspec.closure(lambda model, batch: model(*batch)["loss"])),
    }
    items, loss_fn = given[form]
    expected = hessian_of(model, lambda: loss(model.body(x), y))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(whole(hesspec.Hessian(model, loss_fn, items)), expected, rtol=1e-9, atol=1e-11)
    with pytest.warns(UserWarning, match="is that of what its loss functions are given: input of ") as caught:
        g = whole(hesspec.GaussNewton(model, loss_fn, items))
    assert len(caught) == 1
    with pytest.warns(UserWarning, match="is that of what its loss functions are given"):
        h = whole(hesspec.Residual(model, loss_fn, items))
    of_logits = gauss_newton_of(model, lambda: model.body(x), lambda f: loss(f, y))
    torch.testing.assert_close(g, of_logits, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(g + h, expected, rtol=1e-9, atol=1e-11)


def test_batches_of_a_loss_inside_the_model_are_weighted_by_what_it_counts():
    model = Own(F.cross_entropy).double()
    parts = data(7, 5, ignored=(5, 1))
    x, y = (torch.cat(part) for part in zip(*parts, strict=True))
    expected = gauss_newton_of(model, lambda: model.body(x), lambda f: F.cross_entropy(f, y))
    with pytest.warns(UserWarning, match="what its loss functions are given"):
        g = hesspec.GaussNewton(model, lambda out, _: out["loss"], [{"x": x, "labels": y} for x, y in parts])
    torch.testing.assert_close(whole(g), expected, rtol=1e-10, atol=1e-12)


class ByGroup(nn.Module):
    """Its loss function is called for each group of samples, as that of a detector for each image with an object."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))

    def forward(self, x, labels):
        logits = self.body(x)
        groups = [labels == label for label in labels.unique()]
        total = sum(F.cross_entropy(logits[group], labels[group], reduction="sum") for group in groups)
        return {"loss": total / len(labels)}


@pytest.mark.parametrize("way", ["auto", "double backward in place", "differences"])
@pytest.mark.few(1)
def test_batches_may_call_loss_functions_more_or_less_often(way):
    torch.manual_seed(0)
    model = ByGroup().double()
    parts = [(torch.randn(6, 4, dtype=torch.float64), labels) for labels in (torch.arange(6) % 3, torch.arange(6) % 2)]
    x, y = (torch.cat(part) for part in zip(*parts, strict=True))
    exact = gauss_newton_of(model, lambda: model.body(x), lambda f: F.cross_entropy(f, y))
    hess = hessian_of(model, lambda: F.cross_entropy(model.body(x), y))
    items = [{"x": x, "labels": y} for x, y in parts]
    with pytest.warns(UserWarning, match="what its loss functions are given"):
        g = whole(hesspec.GaussNewton(model, lambda out, _: out["loss"], items, mode=way))
    with pytest.warns(UserWarning, match="what its loss functions are given"):
        h = whole(hesspec.Residual(model, lambda out, _: out["loss"], items, mode=way))
    tolerance = 1e-5 if way == "differences" else 1e-10
    assert (g - exact).norm() <= tolerance * exact.norm()
    assert (g + h - hess).norm() <= tolerance * hess.norm()


def test_what_the_loss_takes_of_the_outputs_besides_counts_too(mode):
    torch.manual_seed(0)
    model, ((x, y),) = Own(F.cross_entropy).double(), data(7)

    def loss(out, _):
        return out["loss"] + 0.3 * out["logits"].square().mean()

    def of_logits(f):
        return F.cross_entropy(f, y) + 0.3 * f.square().mean()

    items = [{"x": x, "labels": y}]
    with pytest.warns(UserWarning, match="what its loss functions are given"):
        g, h = (whole(make(model, loss, items)) for make in (hesspec.GaussNewton, hesspec.Residual))
    torch.testing.assert_close(g, gauss_newton_of(model, lambda: model.body(x), of_logits), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(g + h, hessian_of(model, lambda: of_logits(model.body(x))), rtol=1e-9, atol=1e-11)


def test_labels_among_the_inputs_do_not_matter_where_the_loss_is_outside():
    model, ((x, y),) = Own(F.cross_entropy).double(), data(7)

    def loss(out, y):
        return F.cross_entropy(out["logits"], y)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        g = whole(hesspec.GaussNewton(model, loss, [{"x": x, "labels": y}]))
    expected = gauss_newton_of(model, lambda: model.body(x), lambda f: F.cross_entropy(f, y))
    torch.testing.assert_close(g, expected, rtol=1e-10, atol=1e-12)


def test_transformers_loss_of_labels():
    model = gpt2().double()
    torch.manual_seed(3)
    ids = torch.randint(7, (3, 5))
    with pytest.warns(UserWarning, match="input of cross_entropy"):
        g = hesspec.GaussNewton(model, lambda out, _: out.loss, [{"input_ids": ids, "labels": ids}])
    v = torch.randn(g.shape[0], dtype=torch.float64)
    # The same written out, with the shift that the model makes.
    outside = hesspec.GaussNewton(
        model,
        lambda out, y: F.cross_entropy(out.logits[:, :-1].flatten(0, 1), y[:, 1:].flatten()),
        [({"input_ids": ids}, ids)],
    )
    # The library computes its loss in float32, whatever the logits are in.
    assert (g @ v - outside @ v).norm() <= 16 * torch.finfo(torch.float32).eps * (outside @ v).norm()
    assert g.attributes["terms"] == 12


# Log-probabilities ----------------------------------------------------------------------------------------------------


class LogSoftmax(Body):
    def forward(self, x):
        return self.body(x).log_softmax(1)


def smooth(labels):
    return torch.where(F.one_hot(labels, 3) == 1, 0.8, 0.1).double()


def negative_likelihood(out, y):
    return F.nll_loss(out, y)


OUTSIDE = {
    "module": (nn.NLLLoss(), CE, lambda y: y),
    "weights and ignored targets": (
        nn.NLLLoss(WEIGHT, ignore_index=1),
        nn.CrossEntropyLoss(WEIGHT, ignore_index=1),
        None,
    ),
    "sum": (nn.NLLLoss(reduction="sum"), nn.CrossEntropyLoss(reduction="sum"), None),
    "function": (F.nll_loss, CE, None),
    "own function": (negative_likelihood, CE, None),
    "divergence": (nn.KLDivLoss(reduction="batchmean"), CE, smooth),
    "own divergence": (lambda f, y: F.kl_div(f, y, reduction="batchmean"), CE, smooth),
}


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.few(4)
def test_log_probabilities_are_logits_of_the_same_loss(name, mode):
    torch.manual_seed(0)
    loss, of_logits, make = OUTSIDE[name]
    make = make or (lambda y: y)
    model, parts = LogSoftmax().double(), data(7, 4)
    x, y = (torch.cat(part) for part in zip(*parts, strict=True))
    items = [(inputs, make(labels)) for inputs, labels in parts]
    expected = hessian_of(model, lambda: of_logits(model.body(x), make(y)))
    torch.testing.assert_close(whole(hesspec.Hessian(model, loss, items)), expected, rtol=1e-9, atol=1e-11)
    with pytest.warns(UserWarning, match="log-probabilities|what its loss functions are given"):
        g = whole(hesspec.GaussNewton(model, loss, items))
    with pytest.warns(UserWarning, match="log-probabilities|what its loss functions are given"):
        h = whole(hesspec.Residual(model, loss, items))
    exact = gauss_newton_of(model, lambda: model.body(x), lambda f: of_logits(f, make(y)))
    torch.testing.assert_close(g, exact, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(g + h, expected, rtol=1e-9, atol=1e-11)


def test_the_class_structure_is_of_log_probabilities_too():
    model, parts = LogSoftmax().double(), [(torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 3)]
    logits = nn.Sequential(*model.body)
    for make in (hesspec.GaussNewtonClass, hesspec.GaussNewtonWithin):
        torch.testing.assert_close(
            whole(make(model, nn.NLLLoss(), parts)), whole(make(logits, CE, parts)), rtol=1e-9, atol=1e-11
        )


# Distributions and other objects as outputs ---------------------------------------------------------------------------


class Returns(nn.Module):
    """A network of three outputs that returns what a function makes of them."""

    def __init__(self, make):
        super().__init__()
        self.body, self._make = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)), make

    def forward(self, x):
        return self._make(self.body(x))


class Answer:
    """An object with tensors in it."""

    def __init__(self, scores):
        self.scores, self.words = scores, ["kept"]


def mixture(logits, means):
    components = D.Normal(means, torch.ones_like(means))
    return D.MixtureSameFamily(D.Categorical(logits=logits), components)


def triangular(f):
    return torch.diag_embed(f.exp()) + torch.tensor([[0.0, 0, 0], [0.3, 0, 0], [0.1, 0.2, 0]]).to(f)


# What is returned of f, the tensors that G is of, and the loss of both.
OBJECTS = {
    "normal": (
        lambda f: D.Normal(f[:, 0], F.softplus(f[:, 1])),
        lambda f: torch.stack([f[:, 0], F.softplus(f[:, 1])]),
        lambda d, x, y: -d.log_prob(x[:, 0]).mean(),
        lambda z: D.Normal(*z),
    ),
    "independent": (
        lambda f: D.Independent(D.Normal(f, 1.0), 1),
        lambda f: f,
        lambda d, x, y: -d.log_prob(x[:, :3]).mean(),
        lambda z: D.Independent(D.Normal(z, 1.0), 1),
    ),
    "multivariate": (
        lambda f: D.MultivariateNormal(f, scale_tril=triangular(f)),
        lambda f: torch.cat([f[..., None], triangular(f)], 2),
        lambda d, x, y: -d.log_prob(x[:, :3]).mean(),
        lambda z: D.MultivariateNormal(z[..., 0], scale_tril=z[..., 1:], validate_args=False),
    ),
    "categorical": (
        lambda f: D.Categorical(logits=f),
        lambda f: f,
        lambda d, x, y: -d.log_prob(y).mean(),
        lambda z: D.Categorical(logits=z),
    ),
    "categorical of probabilities": (
        lambda f: D.Categorical(probs=f.softmax(1)),
        lambda f: f.softmax(1),
        lambda d, x, y: -d.log_prob(y).mean(),
        lambda z: D.Categorical(probs=z, validate_args=False),
    ),
    "one-hot": (
        lambda f: D.OneHotCategorical(logits=f),
        lambda f: f,
        lambda d, x, y: -d.log_prob(F.one_hot(y, 3).to(x)).mean() - 0.1 * d.entropy().mean(),
        lambda z: D.OneHotCategorical(logits=z),
    ),
    "Bernoulli": (
        lambda f: D.Bernoulli(logits=f),
        lambda f: f,
        lambda d, x, y: -d.log_prob(F.one_hot(y, 3).to(x)).mean(),
        lambda z: D.Bernoulli(logits=z),
    ),
    "mixture": (
        lambda f: mixture(f, 2 * f),
        lambda f: torch.stack([f, 2 * f]),
        lambda d, x, y: -d.log_prob(x[:, 0]).mean(),
        lambda z: mixture(*z),
    ),
    "divergence": (
        lambda f: (D.Normal(f, f.exp()), f),
        lambda f: torch.stack([f, f.exp()]),
        lambda d, x, y: D.kl_divergence(d[0], D.Normal(torch.zeros(3).to(x), 1.0)).mean(),
        lambda z: (D.Normal(*z),),
    ),
    "object": (
        Answer,
        lambda f: f,
        lambda d, x, y: F.cross_entropy(d.scores, y),
        Answer,
    ),
}


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.few(5)
def test_g_of_a_model_that_returns_an_object_is_of_the_tensors_in_it(name):
    make, tensors, loss, of_tensors = OBJECTS[name]
    torch.manual_seed(0)
    model = Returns(make).double()
    ((x, y),) = data(7)
    pair = [(x, (x, y))]
    expected = gauss_newton_of(model, lambda: tensors(model.body(x)), lambda z: loss(of_tensors(z), x, y))
    assert expected.norm() > 1e-3

    def given(out, targets):
        return loss(out, *targets)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        g, h, whole_hessian = (
            whole(matrix(model, given, pair)) for matrix in (hesspec.GaussNewton, hesspec.Residual, hesspec.Hessian)
        )
    torch.testing.assert_close(g, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(whole_hessian, hessian_of(model, lambda: given(model(x), (x, y))), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(g + h, whole_hessian, rtol=1e-9, atol=1e-11)


# No curvature ---------------------------------------------------------------------------------------------------------

PIECEWISE = {
    "absolute": nn.L1Loss(),
    "hinge": lambda f, y: (1 - f * y.sign()).clamp(min=0).mean(),
    "margin": lambda f, y: F.multi_margin_loss(f, y.argmax(1)),
    "quantile": lambda f, y: torch.maximum(0.9 * (y - f), 0.1 * (f - y)).mean(),
}


@pytest.mark.parametrize("name", PIECEWISE)
def test_g_that_is_zero_by_definition_is_said_to_be(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    x, y = torch.randn(7, 4, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    with pytest.warns(UserWarning, match="piecewise linear in what the model returns.*zero by definition") as caught:
        g = hesspec.GaussNewton(model, PIECEWISE[name], [(x, y)])
    assert len(caught) == 1
    assert not whole(g).any()


class Critic(Body):
    def __init__(self):
        super().__init__(1)

    def forward(self, x):
        return self.body(x)


class Unreachable(Body):
    """Its loss is among its outputs, and made by no function of PyTorch's."""

    def forward(self, x, labels):
        logits = self.body(x)
        return {"loss": (logits.logsumexp(1) - logits.gather(1, labels[:, None])[:, 0]).mean(), "logits": logits}


class Balanced(Own):
    """Part of its loss depends on the parameters on another way."""

    def forward(self, x, labels):
        found = super().forward(x, labels)
        return {**found, "loss": found["loss"] + 0.1 * self.body[0].weight.square().sum()}


@pytest.mark.parametrize(
    ("model", "loss"),
    [
        (Critic(), lambda out, _: -out.mean()),
        (Unreachable(), lambda out, _: out["loss"]),
        (Balanced(F.cross_entropy), lambda out, _: out["loss"]),
        (Body(), hesspec.closure(lambda model, batch: model.body(batch["x"]).sum(1).mean())),
    ],
)
@pytest.mark.few(2)
def test_g_of_a_loss_that_is_linear_in_the_outputs_is_zero_and_said_to_be(model, loss, mode):
    model = model.double()
    ((x, y),) = data(7)
    items = [{"x": x, "labels": y}] if not isinstance(model, Critic) else [(x, y)]
    words = "is linear in what the model returns.*zero by definition.*let the model return these"
    with pytest.warns(UserWarning, match=words) as caught:
        g = whole(hesspec.GaussNewton(model, loss, items, mode=mode))
    assert len(caught) == 1
    assert not g.any()
    with pytest.warns(UserWarning, match=words) as caught:
        residual = whole(hesspec.Residual(model, loss, items, mode=mode))
    assert len(caught) == 1
    torch.testing.assert_close(residual, whole(hesspec.Hessian(model, loss, items)), rtol=1e-9, atol=1e-11)


class Rounded(torch.autograd.Function):
    """Rounds, with the derivative of the identity."""

    @staticmethod
    def forward(ctx, x):
        return torch.round(10 * x) / 10

    @staticmethod
    def backward(ctx, slope):
        return slope


def test_g_is_zero_too_where_the_gradient_is_not_that_of_the_loss():
    class Quantised(Critic):
        def forward(self, x):
            return self.body[2](Rounded.apply(self.body[1](self.body[0](x))))

    ((x, y),) = data(7)
    with pytest.warns(UserWarning, match="linear in what the model returns.*zero by definition"):
        g = hesspec.GaussNewton(Quantised().double(), lambda out, _: -out.mean(), [(x, y)])
    assert not whole(g).any()


class Two(nn.Module):
    """Two outputs of the same shape."""

    def __init__(self):
        super().__init__()
        self.one, self.two = (nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)) for _ in range(2))

    def forward(self, x):
        return self.one(x), self.two(x)


PAIRED = {
    "squares": lambda one, two, _: F.mse_loss(one, two),
    "Huber": lambda one, two, _: F.huber_loss(one, two, delta=2.0),
    "triplet": lambda one, two, y: F.triplet_margin_loss(one, two, y, margin=4.0),
    "distances": lambda one, two, _: torch.cdist(one, two).diagonal().mean(),
}


@pytest.mark.parametrize("name", PAIRED)
def test_g_of_a_loss_of_the_difference_of_two_outputs(name, mode):
    torch.manual_seed(0)
    model = Two().double()
    x, y = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    expected = gauss_newton_of(model, lambda: torch.stack(model(x)), lambda both: PAIRED[name](*both, y))
    assert expected.norm() > 0.01
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        g = whole(hesspec.GaussNewton(model, lambda out, y: PAIRED[name](*out, y), [(x, y)], mode=mode))
    torch.testing.assert_close(g, expected, rtol=1e-9, atol=1e-11)


def test_g_of_a_hinge_on_the_difference_of_two_outputs_is_said_to_be_of_a_piecewise_linear_loss():
    torch.manual_seed(0)
    model = Two().double()
    x, y = torch.randn(5, 4, dtype=torch.float64), torch.ones(5, 3, dtype=torch.float64)
    with pytest.warns(UserWarning, match="piecewise linear in what the model returns.*zero by definition"):
        g = hesspec.GaussNewton(model, lambda out, y: F.margin_ranking_loss(*out, y, margin=0.1), [(x, y)])
    assert not whole(g).any()


def test_a_loss_that_looks_through_the_outputs_has_no_g():
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)

    def slope(out, _):
        return torch.autograd.grad(out.sum(), x, create_graph=True)[0].square().mean()

    with pytest.warns(UserWarning, match="2.bias"):
        whole(hesspec.Hessian(model, slope, [(x, None)]))
    with pytest.raises(ValueError, match="not a function of what the model returns alone.*hesspec.Hessian"):
        hesspec.GaussNewton(model, slope, [(x, None)])


def test_a_part_of_the_output_curvature_needs_the_logits():
    model, ((x, y),) = Own(F.cross_entropy).double(), data(7)
    with pytest.raises(ValueError, match="'true-vs-rest'"):
        hesspec.GaussNewton(model, lambda out, _: out["loss"], [{"x": x, "labels": y}], output_curvature="true-vs-rest")


def test_outputs_in_dataclasses_and_in_output_classes():
    @torch.jit.unused
    def make(logits):
        return transformers.modeling_outputs.SequenceClassifierOutput(logits=logits)

    class Gives(Body):
        def forward(self, x):
            return make(self.body(x))

    model, ((x, y),) = Gives().double(), data(7)
    g = whole(hesspec.GaussNewton(model, lambda out, y: F.cross_entropy(out.logits, y), [(x, y)]))
    expected = gauss_newton_of(model, lambda: model.body(x), lambda f: F.cross_entropy(f, y))
    torch.testing.assert_close(g, expected, rtol=1e-10, atol=1e-12)


def test_outputs_may_be_any_object_with_tensors():
    class Gives(Body):
        def forward(self, x):
            return SimpleNamespace(loc=self.body(x))

    model, ((x, y),) = Gives().double(), data(7)
    g = whole(hesspec.GaussNewton(model, lambda out, y: F.cross_entropy(out.loc, y), [(x, y)]))
    expected = gauss_newton_of(model, lambda: model.body(x), lambda f: F.cross_entropy(f, y))
    torch.testing.assert_close(g, expected, rtol=1e-10, atol=1e-12)


def test_a_loss_of_the_outputs_that_also_calls_a_loss_of_log_probabilities_has_their_g():
    """Distillation: nothing of it is only a function of the log-probabilities."""
    model, ((x, y),) = Body().body.double(), data(6)
    told = torch.full((6, 3), 1 / 3, dtype=torch.float64)

    def loss(logits, labels):
        return F.cross_entropy(logits, labels) + F.kl_div(logits.log_softmax(1), told, reduction="batchmean")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        operator = hesspec.GaussNewton(model, loss, [(x, y)])
        found = whole(operator)
    torch.testing.assert_close(
        found, gauss_newton_of(model, lambda: model(x), lambda f: loss(f, y)), rtol=1e-9, atol=1e-11
    )
