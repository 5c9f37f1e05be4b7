"""Models that FSDP2 has sharded, and such that DDP has wrapped, are measured like any others."""

import pytest
import torch
from distributed_ranks import launch_forked, results
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import hesspec


@pytest.fixture(
    scope="module",
    # A language model with tied weights is sharded over two ranks; a layer of three rows over three.
    params=[(2, "mlp"), *(pytest.param(of, marks=pytest.mark.long) for of in ((2, "gpt2"), (3, "mlp")))],
    ids=lambda of: f"{of[1]}, {of[0]} ranks",
)
def measured(request):
    return results("sharded.py", *request.param, start=launch_forked)


@pytest.fixture(scope="module")
def found(measured):
    return [of_rank["cases"] for of_rank in measured]


def test_bounds_of_central_differences_hold(found):
    for of_rank in found:
        for case, seen in of_rank.items():
            assert seen["resolved"] >= 1, case
            assert seen["excess"] <= 1, case
            # The largest one is known, and not only bounded by much.
            assert seen["relative bound"] <= (1e-7 if "float64" in case else 2e-2), case


def test_a_rank_whose_targets_are_all_ignored_goes_along(measured):
    # Near eps^(2/3) = 4e-11 in float64 at the best displacement, whose neighbours are a factor of four apart.
    assert max(of_rank["ignored"] for of_rank in measured) < 1e-8


def test_the_model_is_left_as_it_was_to_the_bit(found):
    assert all(seen["unchanged"] for of_rank in found for seen in of_rank.values())


def test_the_exact_hessian_refuses_a_sharded_model_and_names_the_other(found):
    assert all(seen["refused"] for of_rank in found for seen in of_rank.values())


def test_a_model_that_ddp_has_wrapped_is_the_model(found):
    for of_rank in found:
        for case, seen in of_rank.items():
            assert seen["wrapping"] <= (1e-12 if "float64" in case else 1e-6), case


@pytest.fixture
def group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield torch.distributed.group.WORLD
    torch.distributed.destroy_process_group()


def test_selected_parameters_have_their_block_and_gradients_stay(group):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double().eval()
    data, loss = [(torch.randn(6, 5, dtype=torch.float64), torch.arange(6) % 3)], nn.CrossEntropyLoss()
    exact = hesspec.Hessian(model, loss, data, "2.*")
    block = exact @ torch.eye(exact.shape[0], dtype=torch.float64)
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    loss(model(data[0][0]), data[0][1]).backward()
    gradients = [value.grad.to_local().clone() for value in model.parameters()]
    operator = hesspec.CentralDifferenceHessian(model, loss, hesspec.shard_data(data, group), "2.*")
    found = operator @ torch.eye(exact.shape[0], dtype=torch.float64)
    # Near eps^(2/3) = 4e-11 at the best displacement, whose neighbours are a factor of four apart.
    assert (found - block).norm() < 1e-8 * block.norm()
    for value, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.equal(value.grad.to_local(), gradient)


def test_a_selected_parameter_without_a_gradient_is_named(group):
    model = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 3)).eval()
    model[0].bias.requires_grad_(False)
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    data = hesspec.shard_data([(torch.randn(6, 5), torch.arange(6) % 3)], group)
    with pytest.raises(ValueError, match=r"'0.bias' does not require a gradient; call requires_grad_"):
        hesspec.CentralDifferenceHessian(model, nn.CrossEntropyLoss(), data, "0.*")


@pytest.mark.parametrize("changed", ["frozen", "buffer"])
def test_a_snapshot_of_a_sharded_model_with_other_fixed_tensors_is_refused(tmp_path, group, changed):
    def operator(frozen=1.0, buffer=1.0):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).eval()
        model[0].bias.requires_grad_(False).fill_(frozen)
        model[1].running_var.fill_(buffer)
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        data = [(torch.randn(6, 5), torch.arange(6) % 3)]
        return hesspec.CentralDifferenceHessian(model, nn.CrossEntropyLoss(), hesspec.shard_data(data, group))

    hesspec.spectrum(operator(), steps=4, snapshot=tmp_path / "snapshot", every=0)
    assert hesspec.spectrum(operator(), steps=4, snapshot=tmp_path / "snapshot").matvecs == 5
    with pytest.raises(ValueError, match="its weights"):
        hesspec.spectrum(operator(**{changed: 2.0}), steps=4, snapshot=tmp_path / "snapshot")
