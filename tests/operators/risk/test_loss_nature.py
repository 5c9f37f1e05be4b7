"""Losses are what the user trains: means over whatever, sums and losses that couple samples, in any batches."""

import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from reference import hessian_of, whole
from torch import nn

import hesspec
from hesspec.backend.memory import BudgetError
from hesspec.operators.risk.losses import Loss
from hesspec.operators.risk.nature import Nature
from hesspec.operators.risk.reduction import Finding
from hesspec.operators.risk.terms import SAMPLES, SUM, Terms

CE = nn.CrossEntropyLoss()
WEIGHT = torch.tensor([0.1, 1.0, 5.0], dtype=torch.float64)


def cross_entropy(out, y):
    """As a user's own loss, of which nothing is known."""
    return F.cross_entropy(out, y)


def network(outputs=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, outputs)).double()


def points(*sizes, shape=(4,)):
    torch.manual_seed(1)
    return [torch.randn(size, *shape, dtype=torch.float64) for size in sizes]


def classes(*sizes, ignored=(), shape=()):
    """Classes 0 to 2 of batches; in each as many are marked -100 as `ignored` says."""
    torch.manual_seed(2)
    found = [torch.randint(3, (size, *shape)) for size in sizes]
    for targets, count in zip(found, ignored, strict=False):
        targets.view(-1)[:count] = -100
    return found


def numbers(*sizes, shape=(3,)):
    torch.manual_seed(3)
    return [torch.randn(size, *shape, dtype=torch.float64) for size in sizes]


def masks(*counts, length=5):
    """Masks (N, T): of each sample as many positions count as are given."""
    return [(torch.arange(length) < torch.tensor(batch)[:, None]).double() for batch in counts]


def tokens(out, y, **options):
    return F.cross_entropy(out.flatten(0, 1), y.flatten(), **options)


def masked(out, given):
    y, mask = given
    return (tokens(out, y, reduction="none").view_as(mask) * mask).sum() / mask.sum()


def guarded(out, given):
    y, mask = given
    return (tokens(out, y, reduction="none").view_as(mask) * mask).sum() / (mask.sum() + 1e-8)


def in_chunks(out, y):
    parts = zip(out.flatten(0, 1).split(4), y.flatten().split(4), strict=True)
    return sum(F.cross_entropy(f, t, reduction="sum") for f, t in parts) / (y != -100).sum()


def divided(out, y):
    return tokens(out, y, reduction="none").sum() / (y != -100).sum()


def by_hand_of_tokens(out, y):
    chosen = -out.log_softmax(2).gather(2, y.clamp(min=0)[..., None])[..., 0]
    return (chosen * (y != -100)).sum() / (y != -100).sum()


def over_all_entries(out, y):
    return tokens(out, y, reduction="none").mean()


def over_samples(out, y):
    return tokens(out, y, reduction="sum") / len(y)


def masked_over_samples(out, given):
    y, mask = given
    return (tokens(out, y, reduction="none").view_as(mask) * mask).sum() / len(mask)


def shifted(out, y):
    return F.cross_entropy(out[:, :-1].flatten(0, 1), y[:, 1:].flatten())


def weighted(out, given):
    y, weight = given
    return (F.cross_entropy(out, y, reduction="none") * weight).sum() / weight.sum()


def by_hand(out, y):
    return -(out.log_softmax(1)[torch.arange(len(y)), y]).mean()


def by_hand_ignoring(out, y):
    counted = y != -1
    return -(out.log_softmax(1)[torch.arange(len(y)), y.clamp(min=0)] * counted).sum() / counted.sum()


def two_heads(out, given):
    return F.cross_entropy(out, given["class"]) + 0.5 * F.mse_loss(out[:, 0], given["number"])


def columns_ignored(*counts, size=4, length=5):
    """Classes of tokens, of which as many are marked -100 in all samples of a batch alike."""
    found = classes(*[size + i for i in range(len(counts))], shape=(length,))
    for targets, count in zip(found, counts, strict=True):
        targets[:, :count] = -100
    return found


def of_each_class(f, y):
    return sum(F.cross_entropy(f[y == c], y[y == c], reduction="sum") for c in range(3))


def minus_one(*sizes, ignored):
    return [torch.where(y == -100, -1, y) for y in classes(*sizes, ignored=ignored)]


def of_those_known(f, y):
    known = ~y.isnan()
    return F.mse_loss(f[known], y[known])


def missing(*counts):
    """Targets of batches of seven samples, of which as many numbers are missing."""
    found = [torch.randn(7, 3, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(2)]
    for targets, count in zip(found, counts, strict=True):
        targets.view(-1)[:count] = torch.nan
    return found


# Loss, inputs and targets of batches that do not count alike by samples.
SEQUENCES = points(4, 6, shape=(5, 4))
MEANS = {
    "ignored targets": (cross_entropy, points(7, 7, 5), classes(7, 7, 5, ignored=(5, 0, 1))),
    "targets that are ignored in a later batch only": (
        cross_entropy,
        points(7, 7),
        classes(7, 7, ignored=(0, 4)),
    ),
    "targets that are ignored by hand in a later batch only": (
        by_hand_ignoring,
        points(20, 7),
        minus_one(20, 7, ignored=(0, 4)),
    ),
    "missing targets": (of_those_known, points(7, 7), missing(4, 10)),
    "targets that are missing in a later batch only": (of_those_known, points(7, 7), missing(0, 10)),
    "another ignored class": (lambda f, y: F.cross_entropy(f, y, ignore_index=1), points(7, 7), classes(7, 7)),
    "class weights": (lambda f, y: F.cross_entropy(f, y, weight=WEIGHT), points(7, 7, 5), classes(7, 7, 5)),
    "class weights and ignored targets": (
        lambda f, y: F.cross_entropy(f, y, weight=WEIGHT),
        points(7, 7),
        classes(7, 7, ignored=(1, 4)),
    ),
    "tokens": (tokens, SEQUENCES, classes(4, 6, shape=(5,), ignored=(11, 2))),
    "next tokens": (shifted, SEQUENCES, classes(4, 6, shape=(5,), ignored=(11, 2))),
    "tokens of sequences of other lengths": (
        tokens,
        [*points(4, shape=(5, 4)), *points(4, shape=(2, 4))],
        [*classes(4, shape=(5,)), *classes(4, shape=(2,))],
    ),
    **{
        f"{loss.__name__.replace('_', ' ')}, as many tokens ignored in all samples of a batch": (
            loss,
            points(4, 5, 6, shape=(5, 4)),
            columns_ignored(*counts),
        )
        for loss, counts in (
            (in_chunks, (0, 4, 4)),
            (divided, (4, 0, 1)),
            (by_hand_of_tokens, (0, 4, 2)),
            (over_all_entries, (0, 4, 4)),
            (over_samples, (3, 0, 3)),
        )
    },
    **{
        f"{loss.__name__.replace('_', ' ')}, as many positions in all samples of a batch": (
            loss,
            SEQUENCES,
            list(zip(classes(4, 6, shape=(5,)), masks([5] * 4, [1] * 6), strict=True)),
        )
        for loss in (masked, masked_over_samples)
    },
    "tokens by hand, batches of one sample": (
        by_hand_of_tokens,
        points(1, 1, 1, shape=(5, 4)),
        [y[:1] for y in columns_ignored(0, 4, 4)],
    ),
    "tokens in chunks, sequences of other lengths": (
        in_chunks,
        [*points(4, shape=(5, 4)), *points(4, shape=(2, 4))],
        [*columns_ignored(1), *columns_ignored(0, length=2)],
    ),
    "tokens divided by their number, sequences of other lengths": (
        divided,
        [*points(4, shape=(5, 4)), *points(4, shape=(2, 4))],
        [*columns_ignored(1), *columns_ignored(0, length=2)],
    ),
    "a mask": (
        masked,
        SEQUENCES,
        list(zip(classes(4, 6, shape=(5,)), masks([1, 2, 1, 5], [5, 4, 3, 5, 5, 1]), strict=True)),
    ),
    "a mask that is full in the first batch": (
        masked,
        SEQUENCES,
        list(zip(classes(4, 6, shape=(5,)), masks([5] * 4, [5, 4, 1, 1, 1, 1]), strict=True)),
    ),
    "a guarded mask": (
        guarded,
        SEQUENCES,
        list(zip(classes(4, 6, shape=(5,)), masks([1, 2, 1, 5], [5, 4, 3, 5, 5, 1]), strict=True)),
    ),
    "sample weights": (
        weighted,
        points(7, 4),
        [(y, torch.rand(len(y), dtype=torch.float64) * scale) for y, scale in zip(classes(7, 4), (1, 9), strict=True)],
    ),
    "samples, by hand": (by_hand, points(7, 3), classes(7, 3)),
    "samples, two heads": (
        two_heads,
        points(7, 3),
        [{"class": y, "number": x} for y, x in zip(classes(7, 3), numbers(7, 3, shape=()), strict=True)],
    ),
    "entries": (F.huber_loss, points(7, 3), numbers(7, 3)),
    "divergence of the batch": (
        nn.KLDivLoss(reduction="batchmean", log_target=True),
        points(7, 3),
        [x.log_softmax(1) for x in numbers(7, 3)],
    ),
    "probabilities in float32": (
        lambda f, y: -(y * f.log_softmax(1)).sum(1).mean(),
        points(7, 3),
        [x.float().softmax(1).double() for x in numbers(7, 3)],
    ),
    "quantiles": (lambda f, y: torch.maximum(0.9 * (y - f), 0.1 * (f - y)).mean(), points(7, 3), numbers(7, 3)),
    "batches of one sample": (by_hand, points(1, 1, 1, 2), classes(1, 1, 1, 2)),
    # For one sample, they are the results of their calls.
    **{
        f"{name}, one sample first": (loss, points(*sizes), classes(*sizes))
        for sizes in ((1, 7), (1, 1, 4))
        for name, loss in (
            (f"a sum divided by its number of {sizes}", lambda f, y: F.cross_entropy(f, y, reduction="sum") / len(y)),
            (f"sums of classes of {sizes}", lambda f, y: of_each_class(f, y) / len(y)),
        )
    },
    "sums divided by their number, batches of one sample": (
        lambda f, y: F.cross_entropy(f, y, reduction="sum") / len(y),
        points(1, 1, 1),
        classes(1, 1, 1),
    ),
}
SUMS = {
    "cross-entropy": (lambda f, y: F.cross_entropy(f, y, reduction="sum"), points(7, 3), classes(7, 3)),
    "ignored targets": (
        lambda f, y: F.cross_entropy(f, y, reduction="sum"),
        points(7, 3),
        classes(7, 3, ignored=(4, 1)),
    ),
    "squares": (lambda f, y: (f - y).square().sum(), points(7, 3), numbers(7, 3)),
    "batches of one sample": (lambda f, y: (f - y).square().sum(), points(1, 1, 1), numbers(1, 1, 1)),
    "a mean times its number, one sample first": (
        lambda f, y: len(y) * F.cross_entropy(f, y),
        points(1, 7),
        classes(1, 7),
    ),
    "means of samples, one sample first": (
        lambda f, y: sum(F.cross_entropy(a[None], b[None]) for a, b in zip(f, y, strict=True)),
        points(1, 1, 4),
        classes(1, 1, 4),
    ),
}


def joint(parts):
    if isinstance(parts[0], torch.Tensor):
        return torch.cat(parts)
    if isinstance(parts[0], dict):
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return tuple(torch.cat(each) for each in zip(*parts, strict=True))


def expected_of(model, loss, xs, ys):
    """Hessian of the loss of all data as one batch; of sequences of other lengths, of their flattened tokens."""
    if len({x.shape[1:] for x in xs}) > 1:
        xs, ys = [x.flatten(0, 1)[:, None] for x in xs], [y.flatten()[:, None] for y in ys]
    return hessian_of(model, lambda: loss(model(joint(xs)), joint(ys)))


@pytest.mark.parametrize("name", MEANS)
@pytest.mark.few(12)
def test_batches_of_a_mean_add_up_to_all_data_whatever_it_is_over(name):
    loss, xs, ys = MEANS[name]
    model = network()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        operator = hesspec.Hessian(model, loss, list(zip(xs, ys, strict=True)))
    rtol = 1e-7 if name == "a guarded mask" else 1e-10
    torch.testing.assert_close(whole(operator), expected_of(model, loss, xs, ys), rtol=rtol, atol=rtol)
    assert operator.attributes["reduction"] in ("mean", "batchmean")


@pytest.mark.parametrize("name", SUMS)
def test_batches_of_a_sum_add_up_to_it(name):
    loss, xs, ys = SUMS[name]
    model = network()
    operator = hesspec.Hessian(model, loss, list(zip(xs, ys, strict=True)))
    torch.testing.assert_close(whole(operator), expected_of(model, loss, xs, ys), rtol=1e-10, atol=1e-12)
    assert operator.attributes["reduction"] == "sum"


@pytest.mark.parametrize("name", [name for name in MEANS if name != "a guarded mask" and "one sample" not in name])
@pytest.mark.few(10)
def test_parts_of_a_batch_of_a_mean_add_up_to_it(name):
    loss, xs, ys = MEANS[name]
    model = network()
    operator = hesspec.Hessian(model, loss, list(zip(xs, ys, strict=True)))
    batches, v = operator._risk.batches, torch.randn(operator.shape[0], dtype=torch.float64)
    value = sum(
        part.share * float(operator._risk.gradient(part)[0]) for batch in batches for part in batches.split(batch, 3)
    )
    assert not any(batch.indivisible for batch in batches)
    assert value == pytest.approx(operator.risk, rel=1e-12)
    assert (operator @ v).isfinite().all()


def test_a_mean_in_float32_is_told_from_others():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 300), nn.ReLU(), nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 3))
    xs, ys = [x.float() for x in points(40, 24)], classes(40, 24, ignored=(30, 2))
    operator = hesspec.Hessian(model, cross_entropy, list(zip(xs, ys, strict=True)))
    assert operator.attributes["terms"] == 32
    assert not operator._risk.batches.indivisible


# Losses that couple samples ------------------------------------------------------------------------------------------


def root(out, y):
    return (out - y).square().mean().sqrt()


def contrastive(out, y):
    similarity = F.normalize(out, dim=1) @ F.normalize(y, dim=1).T / 0.3
    return F.cross_entropy(similarity, torch.arange(len(out)))


def dice(out, y):
    p = out.sigmoid()
    return 1 - 2 * (p * y).sum() / (p.sum() + y.sum() + 1)


def survival(out, y):
    order = y[:, 0].argsort(descending=True)
    return (torch.logcumsumexp(out[order, 0], 0) - out[order, 0]).mean()


def two_denominators(out, y):
    return F.cross_entropy(out, y) + out.square().mean()


def ranking(out, y):
    """A surrogate of the area under the curve: a mean over pairs of samples of two classes."""
    score = out[:, 0]
    return F.softplus(score[y == 0][None] - score[y == 1][:, None]).mean()


def concordance(out, y):
    out, y = out[:, 0], y[:, 0]
    covariance = ((out - out.mean()) * (y - y.mean())).mean()
    return 1 - 2 * covariance / (out.var(correction=0) + y.var(correction=0) + (out.mean() - y.mean()) ** 2)


def correlation(out, y):
    return 1 - torch.corrcoef(torch.stack([out[:, 0], y[:, 0]]))[0, 1]


def explained(out, y):
    return (out - y).square().sum() / (y - y.mean(0)).square().sum()


def hardest(out, y):
    """The triplet loss of the hardest samples of a batch."""
    apart = (out[:, None] - out[None]).square().sum(-1)
    alike = y[:, None] == y[None]
    return F.softplus((apart * alike).amax(1) - apart.masked_fill(alike, 1e9).amin(1)).mean()


def balanced(out, y):
    """Class weights of the batch's own frequencies."""
    return F.cross_entropy(out, y, weight=len(y) / torch.bincount(y, minlength=3).clamp(min=1).double())


def soft_f1(out, y):
    p = out.softmax(1)[:, 1]
    hit = (p * (y == 1)).sum()
    return 1 - 2 * hit / (p.sum() + (y == 1).sum())


def scatter(out, y):
    """Variance and covariance terms of the batch, as in VICReg."""
    out = out - out.mean(0)
    covariance = out.T @ out / (len(out) - 1)
    return (out + y).square().mean() + F.softplus(1 - covariance.diagonal().sqrt()).mean() + covariance.square().mean()


def discrepancy(out, y):
    """Maximum mean discrepancy."""
    kernel = lambda a, b: torch.exp(-(a[:, None] - b[None]).square().sum(-1)).mean()  # noqa: E731
    return kernel(out, out) - 2 * kernel(out, y) + kernel(y, y)


def logarithm(out, y):
    return (out - y).square().mean().log()


COUPLED = {
    "ranking": (ranking, lambda *sizes: [y % 2 for y in classes(*sizes)]),
    "concordance": (concordance, numbers),
    "correlation": (correlation, numbers),
    "explained variance": (explained, numbers),
    "hardest triplets": (hardest, classes),
    "balanced classes": (balanced, classes),
    "F1": (soft_f1, classes),
    "scatter": (scatter, numbers),
    "discrepancy": (discrepancy, numbers),
    "logarithm of a mean": (logarithm, numbers),
    "root of a mean": (root, numbers),
    "contrastive": (contrastive, numbers),
    "overlap": (dice, lambda *sizes: [y.sigmoid().round() for y in numbers(*sizes)]),
    "survival": (survival, numbers),
    "means over different terms": (two_denominators, lambda *sizes: classes(*sizes, ignored=[5] * len(sizes))),
}

# Those whose products take more memory than a mean over samples that is cut.
LARGE = ["root of a mean", "contrastive", "overlap", "survival", "means over different terms"]


@pytest.mark.parametrize("name", LARGE)
def test_one_batch_of_a_loss_that_couples_samples_is_measured_whole(name):
    loss, targets = COUPLED[name]
    model, (x,), (y,) = network(), points(40), targets(40)
    expected = hessian_of(model, lambda: loss(model(x), y))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        operator = hesspec.Hessian(model, loss, [(x, y)])
        torch.testing.assert_close(whole(operator), expected, rtol=1e-10, atol=1e-12)
    (batch,) = operator._risk.batches
    assert batch.indivisible == "the losses of its parts do not add up to its loss"
    assert operator._risk.batches.split(batch, 4) == [batch]
    # A mean over samples is cut to this.
    assert whole(hesspec.Hessian(model, by_hand, [(x, *classes(40))], memory="12kB")).isfinite().all()
    with pytest.raises(BudgetError, match=r"cannot be split \(the losses of its parts do not add up to its loss\)"):
        whole(hesspec.Hessian(model, loss, [(x, y)], memory="12kB"))


@pytest.mark.parametrize("name", COUPLED)
def test_several_batches_of_such_a_loss_are_weighted_by_samples_and_said_to_be(name):
    loss, targets = COUPLED[name]
    model, xs, ys = network(), points(20, 12), targets(20, 12)
    with pytest.warns(UserWarning, match="neither a mean over samples.*weighted by their numbers of samples") as caught:
        operator = hesspec.Hessian(model, loss, list(zip(xs, ys, strict=True)))
    assert len(caught) == 1
    for batch in operator._risk.batches:
        assert batch.indivisible == "the losses of its parts do not add up to its loss"
        assert operator._risk.batches.split(batch, 4) == [batch]
    parts = [hessian_of(model, lambda x=x, y=y: loss(model(x), y)) for x, y in zip(xs, ys, strict=True)]
    torch.testing.assert_close(whole(operator), (20 * parts[0] + 12 * parts[1]) / 32, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("by_outputs", [False, True])
def test_a_loss_that_one_sample_determines_is_not_a_mean_over_what_that_sample_has(by_outputs):
    """Of three samples, one has a class other than 0: the "entries that are not 0" of the batch are its own."""
    model, xs = network(), points(3, 4)
    ys = [torch.zeros(len(x), dtype=torch.int64) for x in xs]
    for x, y in zip(xs, ys, strict=True):
        hardest = F.cross_entropy(model(x), y, reduction="none").argmax()
        y[hardest] = model(x)[hardest].argmin()

    def loss(out, y):
        assert len(out) == len(y)
        return F.cross_entropy(out, y, reduction="none").max()

    if by_outputs:
        # Nodes of a graph are not divided.
        model = nn.Sequential(model, nn.Softmax(0))
    with pytest.warns(UserWarning, match="neither a mean over samples"):
        operator = hesspec.Hessian(model, loss, list(zip(xs, ys, strict=True)), verify=False)
    assert operator.attributes["terms"] == 7


@pytest.mark.parametrize("of_class", [4, 5, 6])
def test_class_weights_of_the_batch_itself_are_none_of_the_loss(of_class):
    """The loss adds up over parts that separate a class from all others, as by their first five samples it may be."""
    y = torch.tensor([0] * of_class + [1, 2, 2] * 5)[:16]
    model, xs = network(), points(16, 12)
    with pytest.warns(UserWarning, match="neither a mean over samples"):
        operator = hesspec.Hessian(model, balanced, list(zip(xs, [y, *classes(12)], strict=True)))
    assert operator._risk.batches.indivisible


def test_terms_say_how_batches_of_such_a_loss_are_weighted():
    model, xs, ys = network(), points(20, 12), numbers(20, 12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        operator = hesspec.Hessian(model, root, list(zip(xs, ys, strict=True)), terms=lambda _: 1)
    parts = [hessian_of(model, lambda x=x, y=y: root(model(x), y)) for x, y in zip(xs, ys, strict=True)]
    torch.testing.assert_close(whole(operator), (parts[0] + parts[1]) / 2, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_terms_may_be_sums_in_float32(seed):
    # Such sums do not add up over parts to rounding in float64.
    torch.manual_seed(seed)
    model = nn.Linear(4, 3)
    data = [{"x": torch.randn(n, 4), "labels": torch.randint(3, (n,)), "weights": torch.rand(n)} for n in (12, 12)]

    def loss(model, batch):
        losses = F.cross_entropy(model(batch["x"]), batch["labels"], reduction="none")
        return (losses * batch["weights"]).sum() / batch["weights"].sum()

    operator = hesspec.Hessian(model, hesspec.closure(loss), data, terms=lambda batch: float(batch["weights"].sum()))
    assert operator.attributes["terms"] == pytest.approx(float(sum(batch["weights"].sum() for batch in data)), rel=1e-6)


class Mixing(nn.Module):
    """Nodes of a graph: each output depends on several inputs."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, x, edges):
        h = torch.tanh(self.first(x))
        source, target = edges
        return self.last(h.index_add(0, target, h[source]))


@pytest.mark.parametrize("loss", [CE, by_hand, lambda f, y: F.cross_entropy(f, y, weight=WEIGHT)])
def test_nodes_of_graphs_are_never_cut_and_count_as_the_loss_says(loss):
    torch.manual_seed(0)
    model = Mixing().double()
    xs, ys = points(20, 30), classes(20, 30)
    edges = [torch.randint(len(x), (2, 60)) for x in xs]
    joint_edges = torch.cat([edges[0], edges[1] + 20], 1)
    expected = hessian_of(model, lambda: loss(model(torch.cat(xs), joint_edges), torch.cat(ys)))
    data = list(zip(zip(xs, edges, strict=True), ys, strict=True))
    operator = hesspec.Hessian(model, loss, data)
    torch.testing.assert_close(whole(operator), expected, rtol=1e-10, atol=1e-12)
    assert all(batch.indivisible for batch in operator._risk.batches)
    with pytest.raises(BudgetError, match="cannot be split"):
        whole(hesspec.Hessian(model, loss, data, memory="5kB"))


def test_a_tensor_with_as_many_rows_as_samples_by_chance_is_not_cut_but_its_batch_is():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x, mask):
            return self.linear((x * mask.sum()).tanh())

    model, mask = Masked().double(), torch.rand(6, 6, dtype=torch.float64)
    (x,), (y,) = points(6), classes(6)
    operator = hesspec.Hessian(model, CE, [((x, mask), y)], memory="1.5kB")
    expected = hessian_of(model, lambda: CE(model(x, mask), y))
    torch.testing.assert_close(whole(operator), expected, rtol=1e-10, atol=1e-12)
    (batch,) = operator._risk.batches
    parts = operator._risk.batches.split(batch, 3)
    assert len(parts) == 3
    assert all(torch.equal(part.inputs[1], mask) for part in parts)


def test_a_mask_of_all_samples_stays_whole_in_a_batch_of_as_many_samples_as_it_has_rows():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x, mask):
            return self.linear((x * mask.sum()).tanh())

    model, mask = Masked().double(), torch.rand(6, 6, dtype=torch.float64)
    xs, ys = points(9, 6), classes(9, 6)
    operator = hesspec.Hessian(model, CE, [((x, mask), y) for x, y in zip(xs, ys, strict=True)])
    parts = [part for batch in operator._risk.batches for part in operator._risk.batches.split(batch, 3)]
    assert len(parts) == 6
    assert all(torch.equal(part.inputs[1], mask) for part in parts)


# terms= --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "targets", "terms", "fits"),
    [
        (
            cross_entropy,
            classes(8, 8, ignored=(3, 5)),
            len,
            r"entries of targets that are not -100",
        ),
        (lambda f, y: F.cross_entropy(f, y, reduction="sum"), classes(8, 8), len, "the sum of its parts"),
        (by_hand, classes(8, 8), lambda y: int((y > 0).sum()) + 1, "a mean over samples"),
    ],
)
def test_terms_that_contradict_the_loss_are_refused_with_the_numbers(loss, targets, terms, fits):
    data = list(zip(points(8, 8), targets, strict=True))
    with pytest.raises(
        ValueError, match=rf"Batch 0: terms= contradicts the loss, which is [\d.]+ for 8 samples.*{fits}"
    ):
        hesspec.Hessian(network(), loss, data, terms=terms)


class Frames(nn.Module):
    """Log-probabilities of five symbols, (frames, sequences, symbols)."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 5)

    def forward(self, x):
        return self.linear(x).log_softmax(-1)


def spoken(frames, lengths, *, joined):
    """Sound of some sequences, with the symbols padded or one after the other, and the lengths of both."""
    words = [torch.randint(1, 5, (length,)) for length in lengths]
    symbols = torch.cat(words) if joined else nn.utils.rnn.pad_sequence(words, batch_first=True)
    n = len(lengths)
    x = torch.randn(frames, n, 4, dtype=torch.float64)
    return x, (symbols, torch.full((n,), frames), torch.tensor(lengths))


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("frames", [(9, 8), (9, 7)])
@pytest.mark.parametrize("module", [False, True])
@pytest.mark.few(3)
def test_sequences_are_the_samples_of_ctc(joined, frames, module):
    torch.manual_seed(0)
    # Of the second pair of batches the first dimension of sound is a number of symbols, or of sequences.
    lengths = [(2, 3, 3, 1), (2, 1) if frames[1] == 8 else (1,) * 7]
    data = [spoken(count, of, joined=joined) for count, of in zip(frames, lengths, strict=True)]
    model, ctc = Frames().double(), nn.CTCLoss()

    def loss(out, given):
        return (ctc if module else F.ctc_loss)(out, *given)

    counts = [len(of) for of in lengths]
    total = sum(count * hessian_of_ctc(model, loss, batch) for count, batch in zip(counts, data, strict=True))
    with pytest.warns(UserWarning, match="by central differences") as caught:
        g = whole(hesspec.GaussNewton(model, loss, data))
    # How the losses of batches add up is known.
    assert len(caught) == 1
    torch.testing.assert_close(g, total / sum(counts), rtol=1e-6, atol=1e-8)


def test_regions_that_the_loss_is_a_mean_over_are_counted_by_the_targets():
    class Regions(nn.Module):
        """One output for each of some places of each image."""

        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x, places):
            return self.linear(torch.cat([one[place] for one, place in zip(x.tanh(), places, strict=True)]))

    torch.manual_seed(0)
    model, data = Regions().double(), []
    for counts in ((2, 3, 1), (4, 1)):
        x = torch.randn(len(counts), 6, 4, dtype=torch.float64)
        data.append(((x, [torch.randperm(6)[:count] for count in counts]), torch.randint(3, (sum(counts),))))

    def loss(out, y):
        return F.cross_entropy(out, y) + 0.1 * out.square().mean()

    expected = hessian_of(model, lambda: loss(torch.cat([model(*x) for x, _ in data]), torch.cat([y for _, y in data])))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = whole(hesspec.Hessian(model, loss, data))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def hessian_of_ctc(model, loss, batch):
    """G of one batch, by differences of the gradient in the outputs: CTC has no second derivative."""
    x, y = batch
    leaves = tuple(model.parameters())
    out = model(x)
    jacobian = torch.stack(
        [
            torch.cat([part.reshape(-1) for part in torch.autograd.grad(entry, leaves, retain_graph=True)])
            for entry in out.reshape(-1)
        ]
    )

    def slope(at):
        at = at.detach().requires_grad_()
        return torch.autograd.grad(loss(at, y), at)[0].reshape(-1)

    step = 1e-5
    columns = []
    for place in range(out.numel()):
        unit = torch.zeros(out.numel(), dtype=out.dtype)
        unit[place] = step
        columns.append((slope(out + unit.view_as(out)) - slope(out - unit.view_as(out))) / (2 * step))
    return jacobian.T @ torch.stack(columns) @ jacobian


def test_a_number_of_samples_that_is_not_clear_is_asked_for():
    class Pooling(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x):
            return self.linear(x).view(3, -1, 3).mean((0, 1))

    def loss(out, y):
        return (out.sum() - y.sum()).square()

    model, xs, ys = Pooling().double(), points(9, 6), numbers(4, 5, shape=())
    whole(hesspec.Hessian(model, loss, [(xs[0], ys[0])]))
    with (
        pytest.warns(UserWarning, match="weighted by their numbers of samples"),
        pytest.raises(ValueError, match=r"Batch 0: it is not clear how many samples it has.*terms="),
    ):
        hesspec.Hessian(model, loss, list(zip(xs, ys, strict=True)))
    operator = hesspec.Hessian(model, loss, list(zip(xs, ys, strict=True)), terms=len)
    assert operator.attributes["terms"] == 9


def test_what_cannot_be_told_is_said():
    # All outputs are the same, and so are the losses of all parts.
    model = network()
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    xs, ys = SEQUENCES, classes(4, 6, shape=(5,))
    given = list(zip(ys, masks([1, 2, 1, 5], [5, 4, 3, 5, 5, 1]), strict=True))

    def loss(out, given):
        y, mask = given
        chosen = -out.log_softmax(2).gather(2, y[..., None])[..., 0]
        return (chosen * mask).sum() / mask.sum()

    with pytest.warns(UserWarning, match=r"may be over samples or over .*the total of targets\[1\]"):
        operator = hesspec.Hessian(model, loss, list(zip(xs, given, strict=True)))
    assert all(batch.indivisible == "it is unknown what its loss is a mean over" for batch in operator._risk.batches)


def test_sums_of_one_sample_that_cannot_be_joined_are_said_to_be_assumed():
    sequences = [*points(1, shape=(5, 4)), *points(1, shape=(2, 4))]
    targets = [*classes(1, shape=(5,)), *classes(1, shape=(2,))]
    data = list(zip(sequences, targets, strict=True))

    def loss(out, y):
        return tokens(out, y, reduction="sum") / len(y)

    model = network()
    with pytest.warns(UserWarning, match="a sum over samples and their mean are the same.*pass terms="):
        operator = hesspec.Hessian(model, loss, data)
    total = sum(hessian_of(model, lambda x=x, y=y: loss(model(x), y)) for x, y in data)
    torch.testing.assert_close(whole(operator), total, rtol=1e-10, atol=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mean = hesspec.Hessian(model, loss, data, terms=len)
        # As the module says itself.
        hesspec.Hessian(network(), nn.MSELoss(reduction="sum"), [(x, x[..., :3]) for x in sequences])
    torch.testing.assert_close(whole(mean), total / 2, rtol=1e-10, atol=1e-12)


# Ranks ---------------------------------------------------------------------------------------------------------------


def look(loss, x, y):
    """What one rank sees of its first batch."""
    model = network()
    nature = Nature(Loss(loss, device=x.device, dtype=x.dtype), model)
    nature.look(0, x, y, len(x))
    return nature


def agreed(natures, numbers=({SAMPLES: 4.0}, {SAMPLES: 2.0})):
    gathered = [(nature._told, nature.open, nature._exact, nature._backed) for nature in natures]

    def gather(value):
        return [nature._of_one for nature in natures] if value is None or isinstance(value, Finding) else gathered

    ranks = SimpleNamespace(rank=0, gather=gather, total=lambda value: value * len(natures), least=lambda value: value)
    for nature in natures:
        nature.settle(ranks, [{**dict.fromkeys(nature.open, 1.0), **each} for each in numbers])
    return natures[0]


def test_ranks_take_what_fits_on_all_of_them():
    (x, z), (plain, marked) = points(8, 8), classes(8, 8, ignored=(0, 4))
    # The first rank's batch has no ignored target, by which it would be told.
    one, other = look(cross_entropy, x, plain), look(cross_entropy, z, marked)
    assert {SAMPLES, Terms("counted", "targets", ignored=-100)} <= set(one.open)
    found = agreed([one, other])
    assert found.terms == Terms("counted", "targets", ignored=-100)
    assert not found.indivisible


def test_a_rank_with_another_result_decides_for_all():
    (x, z), (y, w) = points(8, 8), numbers(8, 8)
    with pytest.warns(UserWarning, match="neither a mean over samples"):
        found = agreed([look(lambda f, y: (f - y).square().mean(), x, y), look(root, z, w)])
    assert found.terms == SAMPLES
    assert found.indivisible


def test_a_rank_of_which_nothing_can_be_told_follows_the_others():
    (x, z), (y, w) = points(1, 8), numbers(1, 8)

    def loss(f, y):
        return (f - y).square().sum()

    single = look(loss, x, y)
    assert agreed([single, look(loss, z, w)]).terms == SUM


def test_a_rank_of_several_samples_decides_for_those_of_one():
    (x, z), (y, w) = points(1, 8), classes(1, 8)

    def loss(f, y):
        return F.cross_entropy(f, y, reduction="sum") / len(y)

    single = look(loss, x, y)
    assert single._of_one.backed == {SUM}
    assert agreed([single, look(loss, z, w)]).terms != SUM
    with pytest.warns(UserWarning, match="a sum is assumed"):
        assert agreed([look(loss, x, y), look(loss, z[:1], w[:1])]).terms == SUM
