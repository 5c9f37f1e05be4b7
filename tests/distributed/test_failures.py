"""What goes wrong on one rank ends all of them, with one clear message and without a hang."""

import signal

import pytest
from distributed_ranks import launch_forked, results
from sweeps import swept

# Seconds until a rank that does not answer is given up: longer than a test may take, and soon.
LONG, SHORT = 3600, 8


@pytest.mark.parametrize("ranks", swept([2, 3], 2))
def test_an_error_of_one_rank_is_raised_on_all(ranks):
    ended = launch_forked("failures.py", ranks, "not finite", LONG)
    errors = [one.result["error"] for one in ended]
    assert errors[-1][0] == "NonFiniteError"
    assert "batch 0" in errors[-1][1]
    for name, message in errors[:-1]:
        assert name == "RankError"
        assert message.startswith(f"Rank {ranks - 1} of {ranks} ended with NonFiniteError: {errors[-1][1]}")


def test_ranks_with_different_weights_are_refused():
    one, other = launch_forked("failures.py", 2, "weights", LONG)
    assert other.result["error"][0] == "ValueError"
    assert "has a different '0.weight' than rank 0" in other.result["error"][1]
    assert "Load the same weights on all ranks" in one.result["error"][1]


def test_a_rank_without_a_share_of_the_data_says_so():
    ended = launch_forked("failures.py", 3, "too few samples", LONG)
    names, messages = zip(*(one.result["error"] for one in ended), strict=True)
    assert names == ("RankError", "ValueError", "RankError")
    assert messages[1].startswith("Rank 1 of 3 has no share of the data: there are fewer batches than ranks")
    assert all("Start fewer ranks" in message for message in messages)


def test_an_error_in_the_pass_of_a_sharded_model_is_that_of_its_rank_and_noticed_by_the_others():
    first, failing = (one.result["error"] for one in launch_forked("failures.py", 2, "sharded", LONG))
    assert failing == ["RuntimeError", "bad sample"]
    assert first[0] == "RankError"
    assert "A rank exited" in first[1]


def test_the_death_of_a_rank_is_noticed_by_the_others():
    first, second, dead = launch_forked("failures.py", 3, "dies", LONG)
    assert dead.status == -signal.SIGKILL
    for one in (first, second):
        name, message = one.result["error"]
        assert name == "RankError"
        assert "A rank exited" in message
        assert "snapshot" in message


@pytest.mark.long
def test_a_rank_that_does_not_answer_is_given_up_after_the_timeout():
    ended = launch_forked("failures.py", 2, "hangs", SHORT)
    name, message = ended[0].result["error"]
    assert name == "RankError"
    assert "did not answer within the group's timeout" in message


@pytest.mark.long
def test_a_group_ends_when_it_is_destroyed_though_an_operator_lives(tmp_path):
    # Threads that it left would touch tensors while Python shuts down, which aborts the process.
    for found in results("ended.py", 2, tmp_path / "snapshot"):
        assert not [name for name in found["threads"] if "gloo" in name]
        assert "The process group of this operator has been destroyed" in found["error"]
