"""Losses: PyTorch's, and those that people write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from zoo.case import Example, Family, samples
from zoo.parts import CE, Forward, classes, mlp

losses = Family("losses")

SIZES = (12, 5)


def _of_mlp(outputs: int, loss: Any, target: Callable[[int], Any], **settings: Any) -> Callable[[], Example]:
    def build() -> Example:
        data = [(torch.randn(n, 8), target(n)) for n in SIZES]
        return Example(mlp(8, outputs), loss, data, **settings)

    return build


def _ending_in(
    last: nn.Module, outputs: int, loss: Any, target: Callable[[int], Any], **settings: Any
) -> Callable[[], Example]:
    def build() -> Example:
        data = [(torch.randn(n, 8), target(n)) for n in SIZES]
        return Example(nn.Sequential(*mlp(8, outputs), last), loss, data, **settings)

    return build


def _numbers(*shape: int) -> Callable[[int], Tensor]:
    return lambda n: torch.randn(n, *shape)


def _bits(*shape: int) -> Callable[[int], Tensor]:
    return lambda n: torch.rand(n, *shape).round()


def _signs(*shape: int) -> Callable[[int], Tensor]:
    return lambda n: torch.randn(n, *shape).sign()


def _labels(count: int) -> Callable[[int], Tensor]:
    return lambda n: classes(count, n)


def _cross_entropy_of_log_probabilities(outputs: Tensor, batch: Any) -> Tensor:
    """The same number as NLL of log-probabilities, as a function of logits."""
    return F.cross_entropy(outputs, batch[1])


def _with_ignored(n: int) -> Tensor:
    labels = classes(5, n)
    labels[: n // 3] = -100
    labels[0] = 1
    return labels


def _focal(o: Tensor, y: Tensor) -> Tensor:
    each = F.cross_entropy(o, y, reduction="none")
    return ((1 - torch.exp(-each)) ** 2 * each).mean()


def _poly(o: Tensor, y: Tensor) -> Tensor:
    each = F.cross_entropy(o, y, reduction="none")
    return (each + 1 - torch.exp(-each)).mean()


def _evidential(o: Tensor, y: Tensor) -> Tensor:
    alpha = F.softplus(o) + 1
    return (torch.digamma(alpha.sum(1)) - torch.digamma(alpha.gather(1, y[:, None])[:, 0])).mean()


def _asymmetric(o: Tensor, y: Tensor) -> Tensor:
    p = o.sigmoid()
    off = (p - 0.05).clamp_min(0)
    return -(y * p.log() + (1 - y) * off**4 * (1 - off).log()).sum(1).mean()


def _pinball(o: Tensor, y: Tensor) -> Tensor:
    level = torch.tensor([0.1, 0.5, 0.9]).to(o)
    return torch.maximum(level * (y - o), (level - 1) * (y - o)).mean()


def _negative_binomial(o: Tensor, y: Tensor) -> Tensor:
    mean, size = F.softplus(o).unbind(1)
    size = size + 0.1
    parts = torch.lgamma(y + size) - torch.lgamma(size) - torch.lgamma(y + 1)
    return -(parts + size * torch.log(size / (size + mean)) + y * torch.log(mean / (size + mean))).mean()


def _mixture(o: Tensor, y: Tensor) -> Tensor:
    weight, mean, scale = o.chunk(3, 1)
    each = weight.log_softmax(1) - scale - 0.5 * ((y - mean) * torch.exp(-scale)) ** 2
    return -torch.logsumexp(each, 1).mean()


def _branch(loss: Tensor) -> Tensor:
    return 2 * loss if loss.item() > 1 else loss


def _distillation() -> Example:
    teacher = mlp(8, 5)

    def loss(o: Tensor, x: Tensor) -> Tensor:
        with torch.no_grad():
            told = teacher.to(x)(x)
        return 4 * F.kl_div(F.log_softmax(o / 2, 1), F.softmax(told / 2, 1), reduction="batchmean")

    batches = [torch.randn(n, 8) for n in SIZES]
    return Example(mlp(8, 5), loss, [(x, x) for x in batches])


def _pairs(loss: Any) -> Example:
    model = Forward(lambda self, a, b: (self.f(a), self.f(b)), f=mlp(8, 4))
    data = [((torch.randn(n, 8), torch.randn(n, 8)), torch.randn(n).sign()) for n in SIZES]
    return Example(model, loss, data)


def _triplets() -> Example:
    model = Forward(lambda self, a, p, n: (self.f(a), self.f(p), self.f(n)), f=mlp(8, 4))
    data = [(tuple(torch.randn(3, n, 8)), torch.zeros(n)) for n in SIZES]
    return Example(model, lambda o, _: F.triplet_margin_loss(*o), data)


def _ctc() -> Example:
    def loss(o: Tensor, t: Any) -> Tensor:
        words, lengths, given = t
        return F.ctc_loss(o.log_softmax(-1), words, lengths, given)

    def batch(n: int) -> Any:
        return torch.randn(9, n, 8), (torch.randint(1, 6, (n, 3)), torch.full((n,), 9), torch.full((n,), 3))

    return Example(mlp(8, 6), loss, [batch(4), batch(2)], weight=lambda b: len(b[1][0]))


def _masked() -> Example:
    def loss(o: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(o[y > 0], y[y > 0])

    data = [(torch.randn(n, 8), classes(5, n)) for n in SIZES]
    kept = lambda b: float((b[1] > 0).sum())
    return Example(mlp(8, 5), loss, data, {"terms": lambda y: float((y > 0).sum())}, weight=kept)


def _adaptive() -> Example:
    model = Forward(
        lambda self, x, y: self.head(self.f(x), y), f=mlp(8, 12), head=nn.AdaptiveLogSoftmaxWithLoss(12, 20, [4, 10])
    )
    data = [((torch.randn(n, 8), classes(20, n)), torch.zeros(n)) for n in SIZES]
    # Log-probabilities of the targets are all that there is of logits.
    return Example(model, lambda o, _: o.loss, data)


class _Center(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.centers = nn.Parameter(torch.randn(5, 5))

    def forward(self, o: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(o, y) + 0.1 * (o - self.centers[y]).square().sum(1).mean()


def _center() -> Example:
    return Example(mlp(8, 5), _Center(), [(torch.randn(n, 8), classes(5, n)) for n in SIZES])


def _penalised() -> Example:
    model = mlp(8, 5)

    def loss(o: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(o, y) + 0.05 * sum(p.square().sum() for p in model.parameters())

    return Example(
        model,
        loss,
        [(torch.randn(n, 8), classes(5, n)) for n in SIZES],
        criterion=lambda o, b: F.cross_entropy(o, b[1]),
        penalty=lambda m: 0.05 * sum(p.square().sum() for p in m.parameters()),
    )


def _sparse() -> Example:
    model = mlp(8, 5)

    def loss(o: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(o, y) + 1e-3 * sum(p.abs().sum() for p in model.parameters())

    return Example(
        model,
        loss,
        [(torch.randn(n, 8), classes(5, n)) for n in SIZES],
        criterion=lambda o, b: F.cross_entropy(o, b[1]),
        penalty=lambda m: 1e-3 * sum(p.abs().sum() for p in m.parameters()),
    )


def _coupled(loss: Any, outputs: int = 4, **settings: Any) -> Callable[[], Example]:
    """A loss in which the samples of a batch are coupled: batches are weighted by their samples."""
    return _of_mlp(outputs, loss, _numbers(), weight=samples, **settings)


def _discrepancy(o: Tensor, y: Tensor) -> Tensor:
    to = torch.stack([y, y**2], 1)
    near = lambda a, b: torch.exp(-(a[:, None] - b[None]).square().sum(-1)).mean()
    return near(o, o) - 2 * near(o, to) + near(to, to)


losses.add("cross-entropy", _of_mlp(5, CE, _labels(5)))
losses.add(
    "cross-entropy, class weights and label smoothing",
    _of_mlp(
        5,
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2, 0.5, 1, 3]), label_smoothing=0.1),
        _labels(5),
        weight=lambda batch: float(torch.tensor([1.0, 2, 0.5, 1, 3])[batch[1]].sum()),
    ),
)
losses.add("cross-entropy, class probabilities as targets", _of_mlp(5, CE, lambda n: torch.randn(n, 5).softmax(1)))
losses.add("cross-entropy, reduction sum", _of_mlp(5, nn.CrossEntropyLoss(reduction="sum"), _labels(5), summed=True))
losses.add(
    "cross-entropy summed by a lambda",
    _of_mlp(5, lambda o, y: F.cross_entropy(o, y, reduction="sum"), _labels(5), summed=True),
)


losses.add("cross-entropy with ignored labels", _of_mlp(5, CE, _with_ignored, weight=lambda b: (b[1] >= 0).sum()))
losses.add(
    "cross-entropy with ignored labels in a lambda",
    _of_mlp(
        5, lambda o, y: F.cross_entropy(o, y, ignore_index=-100), _with_ignored, weight=lambda b: (b[1] >= 0).sum()
    ),
)
losses.add("log-softmax and NLL in a lambda", _of_mlp(5, lambda o, y: F.nll_loss(F.log_softmax(o, 1), y), _labels(5)))
losses.add(
    "NLLLoss, the model ends in LogSoftmax",
    _ending_in(nn.LogSoftmax(1), 5, nn.NLLLoss(), _labels(5), criterion=_cross_entropy_of_log_probabilities),
)
losses.add(
    "own cross-entropy: -log softmax[y]",
    _of_mlp(5, lambda o, y: -o.softmax(1)[torch.arange(len(y)), y].log().mean(), _labels(5)),
)
losses.add(
    "own cross-entropy: log-sum-exp by hand",
    _of_mlp(5, lambda o, y: (o.exp().sum(1).log() - o.gather(1, y[:, None])[:, 0]).mean(), _labels(5)),
)
losses.add("focal loss", _of_mlp(5, _focal, _labels(5)))
losses.add(
    "focal loss of torchvision",
    _of_mlp(4, lambda o, y: torchvision.ops.sigmoid_focal_loss(o, y, reduction="mean"), _bits(4)),
)
losses.add(
    "hard example mining by top-k",
    _of_mlp(5, lambda o, y: F.cross_entropy(o, y, reduction="none").topk(4).values.mean(), _labels(5)),
)
losses.add("poly-1 cross-entropy", _of_mlp(5, _poly, _labels(5)))
losses.add(
    "symmetric cross-entropy",
    _of_mlp(
        5,
        lambda o, y: F.cross_entropy(o, y) - (o.softmax(1) * F.one_hot(y, 5).to(o).clamp_min(1e-4).log()).sum(1).mean(),
        _labels(5),
    ),
)
losses.add("evidential loss (Dirichlet, digamma)", _of_mlp(5, _evidential, _labels(5)))
losses.add("BCELoss, the model ends in Sigmoid", _ending_in(nn.Sigmoid(), 1, nn.BCELoss(), _bits(1)))
losses.add(
    "BCE with logits, pos_weight", _of_mlp(6, nn.BCEWithLogitsLoss(pos_weight=torch.linspace(1, 2, 6)), _bits(6))
)
losses.add("asymmetric multi-label loss", _of_mlp(6, _asymmetric, _bits(6)))
losses.add(
    "ordinal regression by cumulative logits",
    _of_mlp(4, lambda o, y: F.binary_cross_entropy_with_logits(o, (y[:, None] > torch.arange(4)).to(o)), _labels(5)),
)
losses.add("MSE", _of_mlp(2, nn.MSELoss(), _numbers(2)))
losses.add("MSE, reduction sum", _of_mlp(2, nn.MSELoss(reduction="sum"), _numbers(2), summed=True))
losses.add(
    "weighted MSE, targets a tuple",
    _of_mlp(1, lambda o, t: (t[1] * (o[:, 0] - t[0]) ** 2).mean(), lambda n: (torch.randn(n), torch.rand(n))),
)
losses.add("MAE", _of_mlp(2, nn.L1Loss(), _numbers(2)))
losses.add("smooth L1", _of_mlp(2, nn.SmoothL1Loss(), _numbers(2)))
losses.add("Huber", _of_mlp(2, nn.HuberLoss(delta=0.7), _numbers(2)))
losses.add("log-cosh", _of_mlp(2, lambda o, y: (F.softplus(2 * (o - y)) - (o - y) - 0.6931).mean(), _numbers(2)))
losses.add("quantile (pinball) loss", _of_mlp(3, _pinball, _numbers(1)))
losses.add("Poisson NLL", _of_mlp(1, nn.PoissonNLLLoss(), lambda n: torch.poisson(torch.ones(n, 1))))
losses.add(
    "Gaussian NLL, variance learned",
    _of_mlp(2, lambda o, y: F.gaussian_nll_loss(o[:, 0], y, F.softplus(o[:, 1]) + 1e-3), _numbers()),
)
losses.add(
    "negative binomial NLL (lgamma)",
    _of_mlp(2, _negative_binomial, lambda n: torch.poisson(2 * torch.ones(n))),
)
losses.add(
    "Tweedie deviance",
    _of_mlp(
        1,
        lambda o, y: (-y * torch.exp(-0.5 * o[:, 0]) / -0.5 + torch.exp(0.5 * o[:, 0]) / 0.5).mean(),
        lambda n: torch.rand(n) * 3,
    ),
)
losses.add("mixture density (log-sum-exp of 3 Gaussians)", _of_mlp(9, _mixture, _numbers(1)))
losses.add(
    "Student-t NLL",
    _of_mlp(
        2, lambda o, y: (o[:, 1] + 2 * torch.log1p((y - o[:, 0]) ** 2 * torch.exp(-2 * o[:, 1]) / 3)).mean(), _numbers()
    ),
)
losses.add("KL divergence, distillation with a teacher in the closure", _distillation)
losses.add(
    "KLDivLoss batchmean, the model ends in LogSoftmax",
    _ending_in(
        nn.LogSoftmax(1),
        5,
        nn.KLDivLoss(reduction="batchmean"),
        lambda n: torch.randn(n, 5).softmax(1),
        criterion=lambda o, b: F.cross_entropy(o, b[1]) + torch.special.xlogy(b[1], b[1]).sum(1).mean(),
    ),
)
losses.add("hinge", _of_mlp(1, lambda o, y: (1 - y * o[:, 0]).clamp_min(0).mean(), _signs()))
losses.add("squared hinge", _of_mlp(1, lambda o, y: (1 - y * o[:, 0]).clamp_min(0).square().mean(), _signs()))
losses.add("soft margin", _of_mlp(4, nn.SoftMarginLoss(), _signs(4)))
losses.add("multi-margin", _of_mlp(5, nn.MultiMarginLoss(), _labels(5)))
losses.add(
    "multi-label margin", _of_mlp(5, nn.MultiLabelMarginLoss(), lambda n: torch.tensor([[0, 3, -1, -1, -1]] * n))
)
losses.add("multi-label soft margin", _of_mlp(5, nn.MultiLabelSoftMarginLoss(), _bits(5)))
losses.add("hinge embedding", _of_mlp(1, lambda o, y: F.hinge_embedding_loss(o[:, 0], y), _signs()))
losses.add("cosine embedding", lambda: _pairs(lambda o, y: F.cosine_embedding_loss(o[0], o[1], y, margin=0.2)))
losses.add("margin ranking", lambda: _pairs(lambda o, y: F.margin_ranking_loss(o[0][:, 0], o[1][:, 0], y, margin=0.1)))
losses.add("triplet margin", _triplets)
losses.add("CTC", _ctc)
losses.add(
    "cross-entropy with an L2 penalty of the outputs",
    _of_mlp(5, lambda o, y: F.cross_entropy(o, y) + 1e-2 * o.square().mean(), _labels(5)),
)
losses.add("a branch on loss.item()", _of_mlp(5, lambda o, y: _branch(F.cross_entropy(o, y)), _labels(5)))
losses.add("samples picked by a boolean mask", _masked)
losses.add("AdaptiveLogSoftmaxWithLoss in the model", _adaptive)
losses.add("loss with parameters of its own (center loss)", _center)
losses.add("L2 penalty of the weights in the closure", _penalised)
losses.add("L1 penalty of the weights in the closure", _sparse)
losses.add("pairwise ranking (RankNet)", _coupled(lambda o, y: (F.softplus(-(o - o.T)) * (y[:, None] > y)).mean(), 1))
losses.add(
    "Cox partial likelihood (logcumsumexp)",
    _coupled(lambda o, y: -(o[y.argsort(), 0] - torch.logcumsumexp(o[y.argsort(), 0], 0)).mean(), 1),
)
losses.add("ListNet", _coupled(lambda o, y: -(y.softmax(0) * o[:, 0].log_softmax(0)).sum(), 1))
losses.add(
    "Pearson correlation",
    _coupled(lambda o, y: 1 - F.cosine_similarity(o[:, 0] - o[:, 0].mean(), y - y.mean(), dim=0), 1),
)
losses.add("maximum mean discrepancy", _coupled(_discrepancy, 2))


@losses.case(sentence="targets (N,) would be broadcast against outputs (N, 1)")
def broadcast_mse() -> Example:
    """MSE of outputs (N, 1) against targets (N,)."""
    return _of_mlp(1, nn.MSELoss(), _numbers())()


@losses.case(sentence="class 5 is none of five")
def class_too_large() -> Example:
    """A class that the logits do not have."""
    return _of_mlp(5, CE, lambda n: torch.full((n,), 5))()


@losses.case(sentence="there are fewer labels than logits")
def too_few_labels() -> Example:
    """One label for a batch of logits."""
    return _of_mlp(5, CE, lambda _: classes(5, 1))()


@losses.case(sentence="integer one-hot targets are neither classes nor probabilities")
def one_hot_integers() -> Example:
    """Integer one-hot targets of a cross-entropy."""
    return _of_mlp(5, CE, lambda n: F.one_hot(classes(5, n), 5))()


@losses.case(sentence="the loss has no single number")
def loss_of_shape() -> Example:
    """A loss of shape (N,)."""
    return _of_mlp(5, lambda o, y: F.cross_entropy(o, y, reduction="none"), _labels(5))()


@losses.case(sentence="the loss is a dictionary")
def loss_in_dictionary() -> Example:
    """A loss in a dictionary."""
    return _of_mlp(5, lambda o, y: {"loss": F.cross_entropy(o, y)}, _labels(5))()


@losses.case(sentence="a loss module gets a tuple")
def tuple_outputs() -> Example:
    """A model that returns (logits, extras) with a loss module."""
    model = Forward(lambda self, x: (self.f(x), x), f=mlp(8, 5))
    return Example(model, CE, [(torch.randn(n, 8), classes(5, n)) for n in SIZES])


@losses.case(sentence="dropout in the loss draws random numbers")
def dropout_in_loss() -> Example:
    """A loss module with active dropout."""

    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.3)

        def forward(self, o: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(self.drop(o), y)

    return Example(mlp(8, 5), Dropping(), [(torch.randn(n, 8), classes(5, n)) for n in SIZES])


@losses.case()
def weights_without_gradient() -> Example:
    """Weights of samples computed under no_grad in the loss (self-paced)."""

    def loss(o: Tensor, y: Tensor) -> Tensor:
        each = F.cross_entropy(o, y, reduction="none")
        with torch.no_grad():
            weight = torch.exp(-each)
        return (weight * each).mean()

    return _of_mlp(5, loss, _labels(5), constants=True)()


@losses.case()
def weights_detached() -> Example:
    """Weights of samples detached in the loss."""

    def loss(o: Tensor, y: Tensor) -> Tensor:
        each = F.cross_entropy(o, y, reduction="none")
        return (torch.exp(-each).detach() * each).mean()

    return _of_mlp(5, loss, _labels(5), constants=True)()


def _contrast(z: Tensor, _: Any) -> Tensor:
    a, b = F.normalize(z, dim=1).chunk(2)
    return F.cross_entropy(a @ b.T / 0.2, torch.arange(len(a)))


@losses.case()
def contrastive_in_little_memory() -> Example:
    """NT-Xent of one large batch in little memory: the batch cannot be cut."""
    data = [(torch.randn(256, 64), torch.zeros(256))]
    return Example(mlp(64, 16, 64), _contrast, data, {"memory": "2MB"})
