"""Class structure of groups of logits: against the definitions, for tokens with the rare ones as one class."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

import hesspec
from hesspec.study import GPT

V, L, FREQUENT = 7, 5, 3


@pytest.fixture(scope="module")
def problem():
    """A GPT and sequences with ignored targets, and the parts of G from the definitions, in float64."""
    torch.manual_seed(0)
    network = GPT(V, L, layers=1, heads=2, width=4).double().eval()
    for parameter in network.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    tokens, targets = torch.randint(0, V, (6, L)), torch.randint(0, V, (6, L))
    targets[0, :2] = -100
    data = [(tokens[:3], targets[:3]), (tokens[3:], targets[3:])]
    groups = hesspec.frequent_classes(data, V, FREQUENT)
    names, values = zip(*network.named_parameters(), strict=True)

    def logits(*given):
        return functional_call(network, dict(zip(names, given, strict=True)), (tokens,)).movedim(1, -1).flatten(0, 1)

    blocks = jacrev(logits, tuple(range(len(values))))(*values)
    jacobian = torch.cat([block.detach().flatten(2) for block in blocks], -1)
    kept = targets.flatten() != -100
    p, y = logits(*values).detach().softmax(1)[kept], targets.flatten()[kept]
    g = jacobian[kept] - torch.einsum("rc,rcp->rp", p, jacobian[kept])[:, None]
    w, count = p / len(y), FREQUENT + 1
    weights, means = torch.zeros(count, count).double(), torch.zeros(count, count, g.shape[-1]).double()
    for row, true in enumerate(groups[y].tolist()):
        for logit, other in enumerate(groups.tolist()):
            weights[true, other] += w[row, logit]
            means[true, other] += w[row, logit] * g[row, logit]
    means /= weights[:, :, None]
    off = weights * (1 - torch.eye(count))
    centres = (off[:, :, None] * means).sum(1) / off.sum(1)[:, None]
    apart = means - centres[:, None]
    own = means[range(count), range(count)]
    parts = {
        "class": torch.einsum("c,cp,cq->pq", off.sum(1), centres, centres),
        "cross": torch.einsum("ck,ckp,ckq->pq", off, apart, apart),
        "same": torch.einsum("c,cp,cq->pq", weights.diagonal(), own, own),
    }
    parts["within"] = torch.einsum("rc,rcp,rcq->pq", w, g, g) - sum(parts.values())
    return network, data, groups, parts, weights


def test_the_most_frequent_are_classes_and_the_others_one(problem):
    _, data, groups, _, _ = problem
    counts = torch.bincount(torch.cat([targets[targets != -100] for _, targets in data]), minlength=V)
    own = [int((groups == c).nonzero()) for c in range(FREQUENT)]
    assert counts[own].tolist() == sorted(counts.tolist(), reverse=True)[:FREQUENT]
    assert (groups == FREQUENT).sum() == V - FREQUENT


@pytest.mark.parametrize("part", ["class", "cross", "same"])
def test_eigenvalues_of_the_parts_are_those_of_the_definitions(problem, part):
    network, data, groups, parts, weights = problem
    structure = hesspec.ClassMeans(network, nn.CrossEntropyLoss(), data, classes=groups)
    assert np.abs(structure.weights - weights.numpy()).max() < 1e-14
    found = structure.eigenvalues(part)
    dense = torch.linalg.eigvalsh(parts[part]).flip(0).numpy()
    assert np.abs(found - dense[: len(found)]).max() <= 1e-13 * dense[0]
    assert np.abs(dense[len(found) :]).max() <= 1e-13 * dense[0]


def test_the_whole_structure_adds_up(problem):
    network, data, groups, parts, _ = problem
    found = hesspec.class_structure(
        network, nn.CrossEntropyLoss(), data, classes=groups, matrices=["GaussNewton"], steps=60, progress=False
    )
    assert found.classes == FREQUENT + 1
    for place, part in enumerate(("class", "cross", "within", "same")):
        truth = float(parts[part].trace())
        assert abs(found.traces[place] - truth) <= 4 * found.trace_errors[place] + 1e-12
    assert np.allclose(found.outlier_shares.sum(1), found.outliers, rtol=1e-9)
    vector = torch.linalg.eigh(sum(parts.values()))[1][:, -1]
    expected = [float(vector @ parts[part] @ vector) for part in ("class", "cross", "within", "same")]
    assert found.outlier_shares[0, :4] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([0, 2, 2, 0, 0, 0, 0], "integers from 0 with none left out"),
        ([0] * V, "at least two"),
        ([0.0, 1.0], "integers of shape"),
        ([0, 1], "the classes of 2 logits, but the model has 7"),
    ],
)
def test_other_classes_are_refused(problem, classes, message):
    network, data, _, _, _ = problem
    with pytest.raises(ValueError, match=message):
        hesspec.ClassMeans(network, nn.CrossEntropyLoss(), data, classes=classes).class_means()


def test_frequent_classes_need_as_many_targets():
    data = [(None, torch.tensor([[0, 1, 1]]))]
    with pytest.raises(ValueError, match="2 different targets in the data, so that 2 classes .* choose at most 1"):
        hesspec.frequent_classes(data, 5, 2)
    with pytest.raises(ValueError, match="count is 5; of 5 logits, 1 to 4"):
        hesspec.frequent_classes(data, 5, 5)
    with pytest.raises(ValueError, match="run from 0 to 1, but there are 1 logits|count is 1"):
        hesspec.frequent_classes(data, 1, 1)
    with pytest.raises(ValueError, match="tensors of integers"):
        hesspec.frequent_classes([(None, torch.zeros(3))], 5, 2)
