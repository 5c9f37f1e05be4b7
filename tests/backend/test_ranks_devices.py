"""Numbers that ranks exchange by NCCL are on the device that the group was made for."""

import pytest
import torch
import torch.distributed as dist

from hesspec.backend.ranks import Ranks


class Group:
    def __init__(self, bound):
        self.bound_device_id = bound


@pytest.mark.parametrize(("bound", "expected"), [(torch.device("cuda", 3), 3), (None, 1)])
def test_the_device_of_a_group_is_its_own_or_the_selected_one(bound, expected, monkeypatch):
    monkeypatch.setattr(dist, "get_rank", lambda _: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda _: 4)
    monkeypatch.setattr(dist, "get_backend", lambda _: "nccl")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    group = Group(bound)
    assert Ranks(group)._device == torch.device("cuda", expected)
