"""Shares of data: every sample in exactly one of them, whatever the batches and the ranks."""

from types import SimpleNamespace

import pytest
import torch

import hesspec
from hesspec.operators.risk import shards
from hesspec.operators.risk.batches import Batches
from hesspec.operators.risk.losses import Loss


@pytest.fixture
def shares(monkeypatch):
    """Function from data and a number of ranks to the batches of each rank."""

    def split(data, size):
        found = []
        for rank in range(size):
            monkeypatch.setattr(shards, "Ranks", lambda _, rank=rank: SimpleNamespace(rank=rank, size=size))
            found.append(list(hesspec.shard_data(data, None)))
        return found

    return split


def numbered(sizes):
    """Batches of samples that are their own numbers."""
    return [(torch.stack([x, -x], dim=1), x) for x in torch.arange(float(sum(sizes))).split(sizes)]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("sizes", [[12], [4, 4, 4], [4, 4, 3], [5] * 7, [7, 1, 7, 2]])
def test_every_sample_is_in_one_share(shares, sizes, size):
    found = shares(numbered(sizes), size)
    seen = torch.cat([targets for share in found for _, targets in share])
    assert sorted(seen.tolist()) == list(range(sum(sizes)))
    for share in found:
        for inputs, targets in share:
            assert torch.equal(inputs[:, 0], targets)
            assert torch.equal(inputs[:, 1], -targets)


@pytest.mark.parametrize("size", [2, 3])
def test_shares_are_as_equal_as_samples_allow(shares, size):
    counts = [sum(len(targets) for _, targets in share) for share in shares(numbered([10] * 7), size)]
    assert max(counts) - min(counts) <= 1


def test_what_cannot_be_cut_is_taken_whole_by_one_rank(shares):
    # Targets of all tokens in one dimension: nothing tells which belong to which sequence.
    batch = torch.zeros(2, 6), torch.arange(12)
    one, other = shares([batch], 2)
    assert [len(share) for share in (one, other)] == [1, 0]


def test_keyword_inputs_are_cut_like_others(shares):
    data = [({"x": torch.arange(4.0), "scale": 2.0}, torch.arange(4))]
    one, other = shares(data, 2)
    assert torch.equal(one[0][0]["x"], torch.tensor([0.0, 1.0]))
    assert (other[0][0]["scale"], other[0][1].tolist()) == (2.0, [2, 3])


def test_two_lists_of_two_samples_are_cut_along_both(shares):
    one, other = shares([([torch.zeros(1), torch.ones(2)], [{"y": 0}, {"y": 1}])], 2)
    for share, y in ((one, 0), (other, 1)):
        ((inputs, targets),) = share
        assert [len(x) for x in inputs] == [y + 1]
        assert targets == [{"y": y}]


def test_batches_of_unknown_number_are_dealt_whole(shares):
    class Stream:
        def __iter__(self):
            return iter(numbered([2, 2, 2]))

    assert [len(share) for share in shares(Stream(), 2)] == [2, 1]


def test_the_same_share_in_every_pass(monkeypatch):
    monkeypatch.setattr(shards, "Ranks", lambda _: SimpleNamespace(rank=1, size=2))
    share = hesspec.shard_data(numbered([4, 3]), None)
    first, second = list(share), list(share)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("data", "message"),
    [(iter([1]), "can be iterated only once"), (3, "not an iterable"), ([(1, 2, 3)], "must be a pair")],
)
def test_bad_data_is_refused(shares, data, message):
    with pytest.raises(ValueError, match=message):
        shares(data, 2)


def test_the_content_of_data_is_the_same_in_any_batches_and_of_any_dtype():
    loss = torch.nn.MSELoss()
    mask = torch.tensor(3.0)

    def digest(sizes, scale=1.0, dtype=torch.bfloat16):
        data = [({"x": x.to(dtype), "mask": mask, "scale": scale}, y[:, 0]) for y, x in numbered(sizes)]
        return Batches(
            data, Loss(loss, device=mask.device, dtype=torch.float32), device=mask.device, dtype=torch.float32
        ).digest()

    assert digest([4, 3]) == digest([7]) == digest([1, 6])
    assert len({digest([7]), digest([6]), digest([7], scale=2.0), digest([7], dtype=torch.float32)}) == 4
