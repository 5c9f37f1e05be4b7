"""Models that FSDP2 has sharded, and such that DDP has wrapped, are measured like any others."""

import pytest

from distributed_ranks import results


@pytest.fixture(scope="module")
def found(ranks):
    # A language model with tied weights is sharded over two ranks; a layer of three rows over three.
    return results("sharded.py", ranks, *(["mlp", "gpt2"] if ranks == 2 else ["mlp"]))


def test_bounds_of_central_differences_hold(found):
    for of_rank in found:
        for case, seen in of_rank.items():
            assert seen["resolved"] >= 1, case
            assert seen["excess"] <= 1, case
            # The largest one is known, and not only bounded by much.
            assert seen["relative bound"] <= (1e-7 if "float64" in case else 2e-2), case


def test_the_model_is_left_as_it_was_to_the_bit(found):
    assert all(seen["unchanged"] for of_rank in found for seen in of_rank.values())


def test_the_exact_hessian_refuses_a_sharded_model_and_names_the_other(found):
    assert all(seen["refused"] for of_rank in found for seen in of_rank.values())


def test_a_model_that_ddp_has_wrapped_is_the_model(found):
    for of_rank in found:
        for case, seen in of_rank.items():
            assert seen["wrapping"] <= (1e-12 if "float64" in case else 1e-6), case
