"""Products of matrices whose data ranks share are those of one process."""

import pytest
import torch
from cases import CASES
from distributed_ranks import launch_forked, results

import hesspec

# Of the norm of the product. Float32: sums are taken in another order.
TOLERANCE = {"float64": 1e-12, "float32": 1e-6}


# One for each kind of inputs and weights of batches; what more ranks do with the others is no different for two.
FEW = ("mlp", "cnn", "gpt2, own loss", "ignored class", "sum")
MORE = (*FEW, "gpt2, dict inputs, ignored tokens", "class weights", "own loss", "unused parameters", "tuple inputs")
assert set(MORE) <= set(CASES)


@pytest.fixture(scope="module")
def names(ranks):
    return FEW if ranks == 2 else MORE


@pytest.fixture(scope="module")
def errors(ranks, names):
    return results("products.py", ranks, *names, start=launch_forked)


def test_every_rank_has_the_product_of_one_process(errors, names):
    wrong = {
        (rank, name): found
        for rank, of_rank in enumerate(errors)
        for name, found in of_rank.items()
        if max(found["vector"], found["matrix"]) > TOLERANCE[name.partition(",")[0]]
    }
    assert not wrong
    # Three matrices of each in float64, of two in float32; in each precision four parts, two that are streamed, and
    # three of gradients' moments.
    in_float32 = {"cnn", "gpt2, dict inputs, ignored tokens"}.intersection(names)
    assert len(errors[0]) == 3 * (len(names) + len(in_float32)) + 2 * 9


def test_every_rank_knows_the_loss_and_the_number_of_samples_of_all(errors):
    for name, found in errors[-1].items():
        assert found["risk"] <= TOLERANCE[name.partition(",")[0]], name
        assert found["samples"] == 0, name


def test_a_group_of_one_rank_is_like_none(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        group = torch.distributed.group.WORLD
        model = torch.nn.Linear(4, 3)
        data = [(torch.randn(6, 4), torch.arange(6) % 3)]
        loss = torch.nn.CrossEntropyLoss()
        alone = hesspec.spectrum(hesspec.Hessian(model, loss, data), steps=8)
        shared = hesspec.spectrum(hesspec.Hessian(model, loss, hesspec.shard_data(data, group), group=group), steps=8)
    finally:
        torch.distributed.destroy_process_group()
    assert (alone.ritz_values == shared.ritz_values).all()


def test_a_rank_whose_trace_pays_later_changes_its_mode_alone():
    """The second of two runs of 20 products; a trace costs 30 on the first rank and 1,030 on the second."""
    for rank, found in enumerate(results("expected_products.py", 2, start=launch_forked)):
        assert found["modes"] == ["double backward", "double backward" if rank else "traced"]
        first, second, alone = found["spectra"]
        assert first == pytest.approx(alone, rel=1e-12)
        assert second == pytest.approx(alone, rel=1e-12)
