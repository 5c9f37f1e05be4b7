"""Preferences: the cross-entropy form, ranks, null spaces, rankings, and batches of pairs."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hesspec
from hesspec import language
from hesspec.operators import GaussNewton, Hessian, Residual

CE = nn.CrossEntropyLoss()


class Reward(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(5, 4), nn.Linear(4, 1)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)))


def reward():
    torch.manual_seed(0)
    return Reward().double()


def sequences(*shape, seed=1):
    return torch.randn(*shape, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def dense(operator):
    return operator @ torch.eye(operator.shape[0], dtype=operator.dtype)


GOOD, BAD = sequences(10), sequences(10, seed=2)


def softplus_of_margin(outputs, targets):
    return F.softplus(outputs[:, 1] - outputs[:, 0]).mean() + 0 * targets.sum()


@pytest.fixture(scope="module")
def matrices():
    """Dense Hess, G and H of pairs, in batches of two sizes."""
    model, data = language.Pairwise(reward()), language.pairs(GOOD, BAD, batch_size=5)
    graphs = hesspec.GraphCache()
    return {kind: dense(kind(model, CE, data, graphs=graphs)) for kind in (Hessian, GaussNewton, Residual)}


def test_cross_entropy_of_two_rewards_is_the_loss_of_preferences(matrices):
    model, data = language.Pairwise(reward()), language.pairs(GOOD, BAD, batch_size=5)
    other = dense(Hessian(model, softplus_of_margin, data))
    torch.testing.assert_close(matrices[Hessian], other, rtol=1e-12, atol=1e-16)
    torch.testing.assert_close(matrices[Hessian], matrices[GaussNewton] + matrices[Residual], rtol=1e-12, atol=1e-16)


def test_gauss_newton_has_the_rank_of_the_pairs_and_its_closed_form(matrices):
    model = reward()
    rows = []
    for good, bad in zip(GOOD, BAD, strict=True):
        margin = (model(good[None]) - model(bad[None])).squeeze()
        gradient = torch.autograd.grad(margin, list(model.parameters()))
        factor = (torch.sigmoid(margin) * torch.sigmoid(-margin)).sqrt().detach()
        rows.append(factor * torch.cat([part.reshape(-1) for part in gradient]))
    expected = torch.stack(rows).T @ torch.stack(rows) / 10
    torch.testing.assert_close(matrices[GaussNewton], expected, rtol=1e-12, atol=1e-16)
    assert torch.linalg.matrix_rank(matrices[GaussNewton], rtol=1e-12) == 10


def test_bias_of_the_head_is_in_the_null_space(matrices):
    names = [name for name, value in Reward().named_parameters() for _ in range(value.numel())]
    place = names.index("head.bias")
    for found in matrices.values():
        # Two gradients of 1 cancel, up to a rounding of the numbers that multiply them.
        assert found[place].abs().max() < 1e-16
        assert found[:, place].abs().max() < 1e-16
        assert found.abs().max() > 1e-3


def test_binary_objective_sees_the_bias():
    model, data = reward(), language.labelled(GOOD, BAD, batch_size=20)
    flat = [(x, y[:, None].double()) for x, y in data]
    found = Hessian(model, nn.BCEWithLogitsLoss(), flat, params="head.bias") @ torch.ones(1).double()
    share = torch.sigmoid(model(torch.cat([GOOD, BAD]))).detach()
    assert float(found) == pytest.approx(float((share * (1 - share)).mean()), rel=1e-12)
    assert float(found) > 0.1


def test_exchange_of_good_and_bad_leaves_g_and_negates_hess_minus_g_at_equal_rewards(matrices):
    data = language.pairs(BAD, GOOD, batch_size=5)
    swapped = dense(GaussNewton(language.Pairwise(reward()), CE, data))
    torch.testing.assert_close(swapped, matrices[GaussNewton], rtol=1e-12, atol=1e-16)
    level = reward()
    nn.init.zeros_(level.head.weight)
    one, other = (
        dense(Residual(language.Pairwise(level), CE, language.pairs(*sides, batch_size=5)))
        for sides in ((GOOD, BAD), (BAD, GOOD))
    )
    torch.testing.assert_close(one, -other, rtol=1e-12, atol=1e-16)
    assert one.abs().max() > 1e-3


def test_true_against_rest_is_everything_for_two_rewards():
    model, data = language.Pairwise(reward()), language.pairs(GOOD, BAD, batch_size=5)
    found = hesspec.optim.competitor_share(model, CE, data)
    assert found.share == pytest.approx(0, abs=1e-15)
    assert found.participation == pytest.approx(1)


def test_ranking_is_the_mean_over_all_pairs():
    responses, model = sequences(6, 4), reward()
    ((inputs, targets),) = language.rankings(responses)
    loss = CE(language.Ranking(model)(*inputs), targets)
    rewards = model(responses.flatten(0, 1)).view(6, 4)
    margins = [rewards[:, j] - rewards[:, i] for i in range(4) for j in range(i + 1, 4)]
    torch.testing.assert_close(loss, F.softplus(torch.stack(margins)).mean())
    two = language.rankings(responses[:, :2])
    pairs = language.pairs(responses[:, 0], responses[:, 1])
    one, other = (
        dense(GaussNewton(kind(model), CE, data))
        for kind, data in ((language.Ranking, two), (language.Pairwise, pairs))
    )
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-16)


def test_ranks_sort_responses_and_ties_do_not_count():
    responses = torch.arange(6).view(2, 3, 1)
    ((inputs, targets),) = language.rankings(responses, torch.tensor([[2, 0, 1], [1, 1, 0]]))
    assert inputs[0].squeeze(2).tolist() == [[1, 2, 0], [5, 3, 4]]
    assert targets.tolist() == [[0, 0, 0], [0, 0, -100]]
    assert [len(part[1]) for part in language.rankings(responses, batch_size=1)] == [1, 1]


def test_pairs_of_padded_tokens_and_their_masks():
    torch.manual_seed(0)
    model = language.ValueHead(nn.Embedding(9, 4), 4).double()
    good = {"tokens": torch.randint(9, (5, 3)), "mask": torch.ones(5, 3)}
    bad = {"tokens": torch.randint(9, (5, 2)), "mask": torch.tensor([[1, 0]] * 5)}

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, tokens, mask):
            return self.model(tokens, attention_mask=mask)

    data = language.pairs(good, bad, batch_size=3)
    assert [len(targets) for _, targets in data] == [3, 2]
    (one, two), _ = data[1]
    assert one["tokens"].tolist() == good["tokens"][3:].tolist()
    assert two["mask"].tolist() == [[1, 0]] * 2
    found = dense(GaussNewton(language.Pairwise(Named()), CE, data, mode="traced"))
    whole = dense(GaussNewton(language.Pairwise(Named()), CE, language.pairs(good, bad)))
    torch.testing.assert_close(found, whole, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: language.pairs(GOOD, BAD[:7]), "10 good and 7 bad sequences; a pair has one of each"),
        (lambda: language.pairs(GOOD[:0], BAD[:0]), "same N > 0"),
        (lambda: language.pairs(GOOD, BAD, batch_size=0), "batch_size is 0"),
        (lambda: language.labelled(GOOD, BAD, batch_size=3), "even number"),
        (lambda: language.labelled(GOOD, BAD[:, :4]), "pad both to one length"),
        (lambda: language.rankings(GOOD[:, :1]), "at least 2"),
        (lambda: language.rankings(sequences(2, 3), torch.zeros(2, 2)), r"ranks has shape \(2, 2\)"),
        (lambda: language.Pairwise(reward())(GOOD, BAD[:7]), "10 good and 7 bad"),
        (lambda: language.Pairwise(nn.Linear(5, 3).double())(GOOD, BAD), "one reward for each sequence"),
        (lambda: language.Ranking(reward())(GOOD[:, 0]), "at least 2"),
    ],
)
def test_bad_input_is_answered_with_a_sentence(build, words):
    with pytest.raises(ValueError, match=words):
        build()
