"""Second moments of gradients and H_p = M - Hess, entry by entry, against the gradients of single samples."""

import functools
import itertools
import warnings

import pytest
import torch
from cases import CASES, EVEN, Case, batches, dense, labels, mlp, seeded, tokens
from sweeps import swept
from torch import nn

import hesspec

MATRICES = ("SecondMoment", "LikelihoodResidual")


class Positions(nn.Module):
    """(N, 5) to logits (N, 3, 2): a class for each of two positions."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.layer(x)).view(-1, 3, 2) * 2


def some_ignored(size):
    targets = torch.randint(3, (size, 2))
    targets[0, 0] = -100
    return targets


def hard(size):
    return torch.randint(2, (size, 1)).double()


OWN = {
    "positions, some ignored": lambda: Case(
        seeded(Positions), nn.CrossEntropyLoss(), batches((5,), some_ignored, EVEN)
    ),
    "log-probabilities": lambda: Case(
        nn.Sequential(mlp(), nn.LogSoftmax(1)), nn.NLLLoss(), batches((5,), labels(4), EVEN)
    ),
    "binary": lambda: Case(mlp(1), nn.BCEWithLogitsLoss(), batches((5,), hard, (5, 5, 2))),
    "sum of squares": lambda: Case(
        mlp(), nn.MSELoss(reduction="sum"), batches((5,), lambda size: torch.randn(size, 4).double(), EVEN)
    ),
}
LIKELIHOODS = (
    "mlp", "cnn", "residual cnn", "class weights", "ignored class", "sum", "functional", "mse", "frozen parameters",
    "parameter subset", *OWN,
)  # fmt: skip
OTHERS = ("label smoothing", "class probabilities", "own loss", "bce", "tied weights", "transformer encoder")
ALL = {**{name: CASES[name] for name in (*LIKELIHOODS, *OTHERS) if name in CASES}, **OWN}


def single_gradients(case: Case, names: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights a (n,) and gradients (n, p) of single samples, by plain reverse mode of each one's loss alone."""
    case = case.to(torch.float64)
    parameters = [dict(case.model.named_parameters())[name] for name in names]
    function = nn.CrossEntropyLoss() if case.loss is nn.functional.cross_entropy else case.loss
    weights, gradients = [], []
    for inputs, targets in case.data:
        for row in range(len(targets)):
            x, y = inputs[[row]], targets[[row]]
            places = (
                list(itertools.product(*map(range, y.shape[1:]))) if isinstance(function, nn.CrossEntropyLoss) else [()]
            )
            if y.is_floating_point():
                places = [()]
            for place in places:
                outputs, target = case.model(x), y
                if place:
                    outputs, target = outputs[(slice(None), slice(None), *place)], y[(slice(None), *place)]
                weight = 1.0
                if isinstance(function, (nn.CrossEntropyLoss, nn.NLLLoss)) and not y.is_floating_point():
                    weight = float(target != function.ignore_index)
                    if weight and function.weight is not None:
                        weight = float(function.weight[target])
                if weight:
                    found = torch.autograd.grad(function(outputs, target), parameters, allow_unused=True)
                    flat = [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]
                    # The mean over one sample divides by its weight, the sum does not.
                    gradients.append(torch.cat([g.reshape(-1) for g in flat]))
                    weights.append(weight)
    shares = torch.tensor(weights, dtype=torch.float64)
    if getattr(function, "reduction", "mean") == "mean":
        shares = shares / shares.sum()
    return shares, torch.stack(gradients)


@functools.cache
def reference(name: str) -> dict[str, torch.Tensor]:
    case = ALL[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = hesspec.Hessian(case.model, case.loss, case.data, **case.options).names
    shares, gradients = single_gradients(case, names)
    moment = gradients.T @ (shares[:, None] * gradients)
    hessian = dense(case, names).matrices["Hessian"]
    return {"SecondMoment": moment, "LikelihoodResidual": moment - hessian, "Hessian": hessian}


def entries(case: Case, matrix: str, **options):
    operator = getattr(hesspec, matrix)(case.model, case.loss, case.data, **case.options, **options)
    return operator @ torch.eye(operator.shape[0], dtype=operator.dtype), operator


PAIRS = [(matrix, name) for matrix in MATRICES for name in ALL if matrix == "SecondMoment" or name in LIKELIHOODS]
FEW = [
    ("SecondMoment", "mlp"),
    ("SecondMoment", "positions, some ignored"),
    ("SecondMoment", "own loss"),
    ("SecondMoment", "bce"),
    ("LikelihoodResidual", "mlp"),
    ("LikelihoodResidual", "binary"),
]


@pytest.mark.parametrize(("matrix", "name"), swept(PAIRS, *FEW))
def test_entries_are_those_of_single_gradients(matrix, name, mode):
    found, operator = entries(ALL[name]().to(torch.float64), matrix)
    truth = reference(name)
    scale = max(each.abs().max() for each in truth.values())
    assert operator.attributes["mode"] == mode
    assert operator.attributes["matrix"] == matrix
    assert (found - truth[matrix]).abs().max() <= 1e-13 * scale


@pytest.mark.parametrize("matrix", MATRICES)
def test_float32_entries_agree_to_1e5_of_the_largest(matrix, traced):
    found, _ = entries(ALL["cnn"]().to(torch.float32), matrix)
    truth = reference("cnn")
    assert found.dtype == torch.float32
    assert (found - truth[matrix]).abs().max() <= 1e-5 * max(each.abs().max() for each in truth.values())


@pytest.mark.parametrize("matrix", MATRICES)
def test_differences_give_the_same_matrix(matrix):
    found, operator = entries(ALL["mlp"]().to(torch.float64), matrix, mode="differences")
    truth = reference("mlp")[matrix]
    assert operator.attributes["mode"] == "differences"
    assert (found - truth).norm() <= 1e-7 * truth.norm()


def classification(count=40, dtype=torch.float64):
    """An MLP 5-4-3 with p = 39 parameters on 40 samples in three batches."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).to(dtype)
    x, y = torch.randn(count, 5, dtype=dtype), torch.randint(3, (count,))
    return model, [(x[i : i + 16], y[i : i + 16]) for i in range(0, count, 16)]


@pytest.mark.usefixtures("double_backward")
def test_hessian_is_second_moment_minus_residual_to_1e12():
    model, data = classification()
    hessian, moment, residual = (
        entries(Case(model, nn.CrossEntropyLoss(), data), name)[0] for name in ("Hessian", *MATRICES)
    )
    assert (hessian - (moment - residual)).norm() <= 1e-12 * hessian.norm()
    assert residual.norm() > 0.1 * hessian.norm()
    assert torch.linalg.eigvalsh(moment).min() > -1e-15
    assert torch.linalg.matrix_rank(moment) <= 40


@pytest.mark.usefixtures("double_backward")
def test_the_mean_over_labels_of_the_model_is_the_gauss_newton_matrix():
    model, data = classification(5)
    inputs = data[0][0]
    probabilities = model(inputs).softmax(1).detach()
    total = {name: torch.zeros(39, 39, dtype=torch.float64) for name in MATRICES}
    for sample in range(5):
        for label in range(3):
            one = Case(model, nn.CrossEntropyLoss(), [(inputs[[sample]], torch.tensor([label]))])
            for name in MATRICES:
                total[name] += probabilities[sample, label] * entries(one, name, verify=False)[0] / 5
    newton, _ = entries(Case(model, nn.CrossEntropyLoss(), data), "GaussNewton")
    assert (total["SecondMoment"] - newton).norm() <= 1e-14 * newton.norm()
    assert total["LikelihoodResidual"].norm() <= 1e-14 * newton.norm()


@pytest.mark.usefixtures("double_backward")
def test_minibatches_without_replacement_have_the_moment_of_all_pairs():
    model, data = classification()
    case = Case(model, nn.CrossEntropyLoss(), data)
    _, gradients = single_gradients(case, tuple(name for name, _ in model.named_parameters()))
    pairs = torch.stack([(gradients[i] + gradients[j]) / 2 for i, j in itertools.combinations(range(40), 2)])
    assert len(pairs) == 780
    mean = gradients.mean(0)
    for rows, size in ((gradients, None), (pairs, 2), (mean[None], 40)):
        truth = rows.T @ rows / len(rows)
        plain, _ = entries(case, "SecondMoment", batch_size=size)
        assert (plain - truth).abs().max() <= 1e-14 * truth.abs().max()
        centred, operator = entries(case, "SecondMoment", batch_size=size, centred=True)
        assert (centred - (truth - torch.outer(mean, mean))).abs().max() <= 1e-14 * truth.abs().max()
        assert (operator.mean_gradient - mean).abs().max() <= 1e-15
        assert operator.attributes["centred"] is True
        assert operator.attributes.get("batch_size") == size
        assert operator.identity()["batch size"] == str(size)


@pytest.mark.usefixtures("double_backward")
def test_several_columns_and_spectra_work():
    model, data = classification(dtype=torch.float32)
    operator = hesspec.SecondMoment(model, nn.CrossEntropyLoss(), data, centred=True)
    exact = torch.linalg.eigvalsh((operator @ torch.eye(39)).double()).flip(0)
    found = hesspec.spectrum(operator, steps=39)
    assert found.attributes["matrix"] == "SecondMoment"
    assert abs(found.eigenvalues[:5] - exact[:5].numpy()).max() <= 1e-5 * float(exact[0])


def transposed(outputs, targets):
    return nn.functional.cross_entropy(outputs.T, targets)


def penalised(model):
    return lambda outputs, targets: (
        (outputs - targets).square().mean() + sum(p.square().sum() for p in model.parameters())
    )


def coupled(outputs, targets):
    return (outputs.mean(0) - targets.mean(0)).square().sum()


def tokens_of_own_loss(outputs, targets):
    return nn.functional.cross_entropy(outputs.logits.flatten(0, 1), targets.flatten(), ignore_index=-100)


def bad_cases():
    model, data = classification()
    real = [(x, torch.randn(len(x), 3, dtype=torch.float64)) for x, _ in data[:2]]
    soft = [(x, torch.rand(len(x), 3, dtype=torch.float64)) for x, _ in data[:2]]
    one = nn.Sequential(model, nn.Linear(3, 1).double())
    weights = torch.rand(3, dtype=torch.float64) + 0.5
    moment, residual = hesspec.SecondMoment, hesspec.LikelihoodResidual
    cross, smooth = nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1)
    return {
        "depends on the parameters": (moment, model, penalised(model), real, {}),
        "class weights and label smoothing": (
            moment, model, nn.CrossEntropyLoss(weight=weights, label_smoothing=0.1), data, {},
        ),
        "label_smoothing=0.1: it is no likelihood": (residual, model, smooth, data, {}),
        "a likelihood is that of observed classes": (residual, model, cross, [(x, y.softmax(1)) for x, y in soft], {}),
        "The loss is L1Loss, of which it is not known": (residual, model, nn.L1Loss(), real, {}),
        "The loss is coupled, of which it is not known": (residual, model, coupled, real[:1], {}),
        "not known to be log-probabilities": (residual, model, nn.NLLLoss(), data, {}),
        "other than 0 and 1": (residual, one, nn.BCEWithLogitsLoss(), [(x, y[:, :1]) for x, y in soft], {}),
        "3 labels for each sample": (residual, model, nn.BCEWithLogitsLoss(), soft, {}),
        "weights of labels": (residual, model, nn.BCEWithLogitsLoss(pos_weight=weights), soft, {}),
        "needs the gradients of single samples": (
            moment, model, hesspec.closure(lambda net, batch: cross(net(batch[0]), batch[1])), data, {},
        ),
        "are for gradients of a mean": (moment, model, nn.CrossEntropyLoss(reduction="sum"), data, {"centred": True}),
        "class weights: its samples": (moment, model, nn.CrossEntropyLoss(weight=weights), data, {"batch_size": 2}),
        "batch_size is 41, but there are 40": (moment, model, cross, data, {"batch_size": 41}),
        "batch_size is 0; it must": (moment, model, cross, data, {"batch_size": 0}),
    }  # fmt: skip


@pytest.mark.usefixtures("double_backward")
@pytest.mark.parametrize(
    ("own", "known"),
    [
        (lambda f, y: (f - y).square().sum(), nn.MSELoss(reduction="sum")),
        (lambda f, y: (f - y).square().mean(), nn.MSELoss()),
        (nn.KLDivLoss(reduction="batchmean"), lambda f, y: nn.functional.kl_div(f, y, reduction="batchmean")),
    ],
)
def test_own_losses_are_means_or_sums_as_they_add_up(own, known):
    model, data = classification()
    real = [(x, torch.rand(len(x), 3, dtype=torch.float64) + 0.1) for x, _ in data]
    found, truth = (entries(Case(model, loss, real), "SecondMoment")[0] for loss in (own, known))
    assert (found - truth).abs().max() <= 1e-14 * truth.abs().max()
    weights = 1.0 if isinstance(known, nn.MSELoss) and known.reduction == "sum" else 1 / 40
    single = Case(model, known, real)
    gradients = single_gradients(single, tuple(name for name, _ in model.named_parameters()))[1]
    assert (found - weights * gradients.T @ gradients).abs().max() <= 1e-13 * truth.abs().max()


@pytest.mark.parametrize("words", bad_cases())
def test_bad_input_is_answered_with_a_sentence(words):
    matrix, model, loss, data, options = bad_cases()[words]
    with pytest.raises(ValueError, match=words):
        matrix(model, loss, data, **options)


def test_losses_that_couple_samples_are_refused():
    model, data = classification()
    real = [(x, torch.randn(len(x), 3, dtype=torch.float64)) for x, _ in data[:1]]
    with pytest.raises(ValueError, match="couple"):
        hesspec.SecondMoment(model, coupled, real)


class Normalised(nn.Module):
    """Outputs less their mean over the batch, which couples its samples."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        found = self.inner(x)
        return found - found.mean(0)


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.CrossEntropyLoss()])
def test_models_that_couple_samples_are_refused(loss):
    model, data = classification()
    targets = [(x, torch.randn(len(x), 3, dtype=torch.float64)) for x, _ in data]
    with pytest.raises(ValueError, match="couple"):
        hesspec.SecondMoment(Normalised(model), loss, (targets if isinstance(loss, nn.MSELoss) else data)[:1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_that_are_rounding_are_not_taken_for_coupled(dtype):
    model, data = classification(dtype=dtype)
    fitted = [(x, model(x).detach()) for x, _ in data]
    moment = hesspec.SecondMoment(model, nn.MSELoss(), fitted)
    assert float((moment @ torch.ones(39, dtype=dtype)).abs().max()) < 1e-10


def test_own_losses_of_tokens_are_refused_with_the_form_that_works():
    case = CASES["gpt2, own loss"]()
    with pytest.raises(ValueError, match="samples are the positions"):
        hesspec.SecondMoment(case.model, tokens_of_own_loss, tokens((3, 3)))
