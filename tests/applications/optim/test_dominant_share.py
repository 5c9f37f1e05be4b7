"""Dominant shares against known answers and dense eigenvectors; steps on copies against real ones, to the bit."""

import copy
import random
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from saved_results import check_saved
from torch import nn

import hesspec

optim = hesspec.optim

# Loss 1/2 sum_i lambda_i <W, u_i v_i^T>^2 with W = sum_i u_i v_i^T: its gradient is sum_i lambda_i u_i v_i^T.
EIGENVALUES = torch.tensor([100.0, 1.0, 1.0, 1.0], dtype=torch.float64)


class Valley(nn.Module):
    """The loss as a model without inputs."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        normal = torch.randn(2, 4, 4, dtype=torch.float64, generator=generator)
        self.u, self.v = torch.linalg.qr(normal)[0]
        self.weight = nn.Parameter(self.u @ self.v.T)

    def forward(self, _):
        return (EIGENVALUES * (self.u.T @ self.weight @ self.v).diagonal() ** 2).sum() / 2


def valley():
    """The model with its gradient, and the top eigenpair of its Hessian."""
    model = Valley()
    model(None).backward()
    hessian = hesspec.Hessian(model, lambda outputs, _: outputs, [(torch.zeros(1, 1), torch.zeros(1))])
    return model, hesspec.eigenpairs(hessian, count=1, steps=16)


def test_known_answers_of_a_valley():
    model, pairs = valley()
    assert pairs.values == pytest.approx([100.0], rel=1e-12)
    optimizer = optim.AMUSE(optim.muon_groups(model, auxiliary=[]), lr=0.01, warmup_steps=1)
    found = optim.dominant_share(optimizer, pairs, model)
    dominant, bulk = (dict(zip(found.names, shares.values, strict=True)) for shares in (found.dominant(), found.bulk()))
    assert dominant["gradient"] == pytest.approx(0.999850, abs=1e-6)
    assert dominant["gradient"] == pytest.approx(100 / np.sqrt(10_003), rel=1e-10)
    assert dominant["momentum"] == pytest.approx(dominant["gradient"], rel=1e-12)
    assert dominant["update"] == dominant["update of z"] == pytest.approx(0.498787, abs=1e-6)
    np.testing.assert_allclose(found.dominant().values ** 2 + found.bulk().values ** 2, 1, rtol=1e-14)
    polar = optim.dominant_share({"polar factor": (model.u @ model.v.T).reshape(-1)}, pairs)
    assert polar.dominant().values == pytest.approx([0.5], rel=1e-10)
    assert polar.bulk().values == pytest.approx([0.866025], abs=1e-6)
    muon = torch.optim.Muon(model.parameters(), lr=0.01, weight_decay=0.0)
    found = optim.dominant_share(muon, pairs, model)
    # torch orthogonalises in bfloat16.
    assert found.dominant().values[list(found.names).index("update")] == pytest.approx(0.498787, abs=0.02)


def network(dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Tanh(), nn.Linear(8, 4, bias=False)).to(dtype)
    inputs, targets = torch.randn(40, 6, dtype=dtype), torch.randint(4, (40,))
    return model, (inputs, targets)


def differentiate(model, data):
    model.zero_grad()
    nn.functional.cross_entropy(model(data[0]), data[1]).backward()


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "NAdam": torch.optim.NAdam,
    "RAdam": torch.optim.RAdam,
    "Adamax": torch.optim.Adamax,
    "Adadelta": torch.optim.Adadelta,
    "Adagrad": torch.optim.Adagrad,
    "Adafactor": torch.optim.Adafactor,
    "ASGD": torch.optim.ASGD,
    "RMSprop": lambda p: torch.optim.RMSprop(p, momentum=0.5),
    "Rprop": torch.optim.Rprop,
    "Muon": lambda p: torch.optim.Muon(p, lr=0.02),
    "AMUSE": lambda p: optim.AMUSE([{"params": p, "use_muon": True}], lr=0.02, warmup_steps=3),
}
WITHOUT_MOMENTUM = {"SGD", "Adadelta", "Adagrad", "Adafactor", "ASGD", "Rprop"}


def flat(tensors):
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def everything(model, optimizer):
    """Parameters, gradients, state and settings, by reference and by copy."""
    held = [*model.parameters(), *(p.grad for p in model.parameters())]
    held += [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    numbers = [
        {key: value for key, value in state.items() if not torch.is_tensor(value)} for state in optimizer.state.values()
    ]
    return held, [tensor.detach().clone() for tensor in held], copy.deepcopy((settings, numbers))


@pytest.mark.parametrize("steps", [0, 4])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_on_copies_is_the_real_one_and_leaves_everything(name, steps):
    model, data = network()
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    called = []
    optimizer.register_step_post_hook(lambda *_: called.append(1))
    for _ in range(steps):
        differentiate(model, data)
        optimizer.step()
        scheduler.step()
    differentiate(model, data)
    held, values, settings = everything(model, optimizer)
    state_keys, calls, randomness = list(optimizer.state), len(called), torch.get_rng_state()
    found = optim.step_vectors(optimizer, model)
    again, now, settings_now = everything(model, optimizer)
    assert len(again) == len(held)
    assert all(first is second for first, second in zip(again, held, strict=True))
    assert all(torch.equal(first, second) for first, second in zip(now, values, strict=True))
    assert settings_now == settings
    assert list(optimizer.state) == state_keys
    assert len(called) == calls
    assert torch.equal(torch.get_rng_state(), randomness)
    assert ("momentum" in found.vectors) == (name not in WITHOUT_MOMENTUM)
    assert torch.equal(found.vectors["gradient"], flat(p.grad for p in model.parameters()))
    before = flat(model.parameters())
    optimizer.step()
    assert torch.equal(found.vectors["update"], flat(model.parameters()) - before)
    if "momentum" in found.vectors:
        key = "momentum_buffer" if name in ("momentum", "Muon", "RMSprop", "AMUSE") else "exp_avg"
        assert torch.equal(found.vectors["momentum"], flat(optimizer.state[p][key] for p in model.parameters()))


def test_two_optimisers_of_one_model():
    model, data = network()
    first, second = model.parameters()
    muon, adam = torch.optim.Muon([first], lr=0.02), torch.optim.AdamW([second], lr=0.01)
    differentiate(model, data)
    found = optim.step_vectors([muon, adam], model)
    assert found.optimizer == "Muon and AdamW"
    alone = optim.step_vectors(adam, model)
    assert not alone.vectors["update"][: first.numel()].any()
    assert torch.equal(alone.vectors["update"][first.numel() :], found.vectors["update"][first.numel() :])
    selected = optim.step_vectors(adam, model, params="2.weight")
    assert torch.equal(selected.vectors["update"], found.vectors["update"][first.numel() :])
    before = flat(model.parameters())
    muon.step()
    adam.step()
    assert torch.equal(found.vectors["update"], flat(model.parameters()) - before)


def test_update_of_z_is_the_step_of_muon():
    model, data = network()
    optimizer = OPTIMIZERS["AMUSE"](list(model.parameters()))
    for _ in range(5):
        differentiate(model, data)
        optimizer.step()
    differentiate(model, data)
    found = optim.step_vectors(optimizer, model).vectors
    with optimizer.at("z"):
        before = flat(model.parameters())
    optimizer.step()
    with optimizer.at("z"):
        assert torch.equal(found["update of z"], flat(model.parameters()) - before)
    assert not torch.equal(found["update of z"], found["update"])


class Noisy(torch.optim.Optimizer):
    """An optimiser that draws numbers from all global generators, and keeps attributes of its own."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1})
        self.history = []
        self.first = self.param_groups[0]["params"][0]

    @torch.no_grad()
    def step(self, closure=None):
        self.history.append(random.random() + np.random.rand())  # noqa: S311, NPY002 - what is tested
        self.first.add_(torch.randn_like(self.first), alpha=self.history[-1])


def test_an_optimiser_with_attributes_and_noise_of_its_own():
    model, data = network()
    optimizer = Noisy(model.parameters())
    differentiate(model, data)
    before = flat(model.parameters())
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    found = optim.step_vectors(optimizer, model).vectors["update"]
    assert optimizer.history == []
    assert torch.equal(flat(model.parameters()), before)
    optimizer.step()
    assert torch.equal(flat(model.parameters()) - before, found)


def test_rounding_of_parameters_is_within_the_bound():
    """Steps so small that float32 parameters barely resolve them, against float64."""
    model, data = network()
    exact, _ = network(torch.float64)
    exact.load_state_dict(model.state_dict())
    generator = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(80, 3, dtype=torch.float64, generator=generator))[0]
    matrix = basis @ torch.diag(torch.tensor([9.0, 5.0, 2.0], dtype=torch.float64)) @ basis.T
    pairs = hesspec.eigenpairs(matrix, count=3, steps=20)
    for rate in (1e-2, 1e-5, 1e-6, 1e-7):
        results = []
        for each in (model, exact):
            inputs = data[0].to(next(each.parameters()).dtype)
            differentiate(each, (inputs, data[1]))
            optimizer = torch.optim.SGD(each.parameters(), lr=rate)
            results.append(optim.dominant_share(optimizer, pairs, each))
        coarse, fine = results
        index = list(coarse.names).index("update")
        for shares, truth in ((coarse.dominant(), fine.dominant()), (coarse.bulk(), fine.bulk())):
            assert shares.low[index] <= truth.values[index] <= shares.high[index]
        width = coarse.dominant().high[index] - coarse.dominant().low[index]
        assert width > 1e-5
    assert width > 0.3


# Eigenvectors with errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [14, 20, 60])
def test_bounds_hold_for_true_eigenvectors(steps, dtype):
    generator = torch.Generator().manual_seed(steps)
    p = 300
    eigenvalues = torch.cat([torch.tensor([9.0, 8.9999, 6, 4, 2, -1.5]), torch.linspace(-0.5, 0.5, p - 6)]).double()
    basis = torch.linalg.qr(torch.randn(p, p, dtype=torch.float64, generator=generator))[0]
    matrix = (basis * eigenvalues @ basis.T).to(dtype)
    pairs = hesspec.eigenpairs((matrix + matrix.T) / 2, count=6, steps=steps, seed=1)
    vectors = {str(i): torch.randn(p, generator=generator).to(dtype) for i in range(4)}
    vectors["nearly dominant"] = (basis[:, 2] + basis[:, 3] + 1e-3 * basis[:, 200]).to(dtype)
    found = optim.dominant_share(vectors, pairs)
    # The absolute values of two eigenvalues differ by 1e-4 only, which the bounds of single vectors notice.
    assert found.k >= 2
    matrix = torch.stack([vector.double() / vector.double().norm() for vector in vectors.values()])
    for k in range(1, found.k + 1):
        truth = (matrix @ basis[:, :k]).norm(dim=1).numpy()
        rest = (matrix @ basis[:, k:]).norm(dim=1).numpy()
        for shares, exact in ((found.dominant(k), truth), (found.bulk(k), rest)):
            # float64 rounding of the inner products.
            assert (shares.low <= exact + 1e-12).all()
            assert (exact <= shares.high + 1e-12).all()
            assert (shares.low <= shares.values).all()
            assert (shares.values <= shares.high).all()
    if steps == 60:
        assert found.k == 6
        assert found.angle_errors[0, 5] < (1e-3 if dtype == torch.float32 else 1e-8)


def test_a_subspace_may_be_known_where_its_vectors_are_not():
    eigenvalues = torch.cat([torch.tensor([9.0, 9.0 - 1e-6]), torch.linspace(-0.5, 0.5, 298)])
    pairs = hesspec.eigenpairs(torch.diag(eigenvalues.double()), count=2, steps=40)
    vector = torch.ones(300, dtype=torch.float64)
    rough = replace(pairs, residuals=np.full(2, 1e-5), vector_errors=np.ones(2))
    found = optim.dominant_share(vector, rough)
    assert found.angle_errors[0, 0] == np.pi / 2
    assert found.dominant(1).low == pytest.approx(0, abs=1e-15)
    assert found.dominant(1).high == 1
    # sqrt(2) 1e-5 / 8.5
    assert found.angle_errors[0, 1] == pytest.approx(np.sqrt(2) * 1e-5 / 8.5, rel=1e-3)
    assert found.dominant(2).low < np.sqrt(2 / 300) < found.dominant(2).high


def test_nothing_is_known_of_an_eigenvalue_with_unknown_copies():
    eigenvalues = torch.cat([torch.tensor([9.0, 9.0]), torch.linspace(-0.5, 0.5, 298)]).double()
    pairs = hesspec.eigenpairs(torch.diag(eigenvalues), count=1, steps=30)
    found = optim.dominant_share(torch.ones(300, dtype=torch.float64), pairs)
    assert found.angle_errors[0, 0] == np.pi / 2


# Result ---------------------------------------------------------------------------------------------------------------


@cache
def result():
    model, data = network()
    differentiate(model, data)
    pairs = hesspec.eigenpairs(hesspec.Hessian(model, nn.CrossEntropyLoss(), [data]), count=4, steps=40)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return optim.dominant_share(optimizer, pairs, model)


def test_a_file_gives_back_every_field(tmp_path):
    found = result()
    check_saved(found, tmp_path)


def test_results_are_read_without_pytorch(tmp_path):
    result().save(tmp_path / "shares.nc")
    code = "import sys, hesspec; hesspec.load(sys.argv[1]).plot(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, tmp_path / "shares.nc"], check=True)  # noqa: S603 - this very Python


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dimension": 3}, "4 eigenvectors, but 3 parameters"),
        ({"rests": np.full(3, 2.0)}, "not those of unit vectors"),
        ({"norms": -np.ones(3)}, "norms are not all at least zero"),
        ({"angle_errors": np.full((3, 4), np.nan)}, "angle_errors are not all finite"),
    ],
)
def test_impossible_values_are_refused(changes, message, tmp_path):
    replace(result(), **changes).save(tmp_path / "shares.nc")
    with pytest.raises(ValueError, match=message):
        hesspec.load(tmp_path / "shares.nc")


def test_summary_and_tables():
    text = repr(result())
    assert "SGD" in text
    assert "4 of Hess" in text
    assert "momentum" in text
    assert result().random_share == pytest.approx(np.sqrt(4 / 80))


def test_figure_ends_at_the_shares():
    found = result()
    (axes,) = found.plot().axes
    drawn = {line.get_label(): line.get_ydata() for line in axes.lines}
    for name, value in zip(found.names, found.dominant().values, strict=True):
        assert drawn[name][-1] == value
        assert len(drawn[name]) == 4
    assert drawn["random vector"][-1] == pytest.approx(found.random_share)
    other = hesspec.plot.figure.new_figure(3, 3).subplots()
    assert found.plot(ax=other) is other.get_figure(root=True)


def test_a_vector_of_zeros_has_no_share():
    model, pairs = valley()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    found = optim.dominant_share(optimizer, pairs, model)
    assert found.dominant().values[0] == pytest.approx(0.99985, abs=1e-5)
    assert np.isnan([found.dominant().values[1], found.bulk().values[1], found.dominant().low[1]]).all()
    assert "undefined" in repr(found)
    assert found.plot()


def test_vectors_of_any_scale():
    model, pairs = valley()
    gradient = model.weight.grad.reshape(-1)
    plain = optim.dominant_share(gradient, pairs)
    for scale in (1e-300, 1e300):
        found = optim.dominant_share(gradient * scale, pairs)
        np.testing.assert_allclose(found.dominant().values, plain.dominant().values, rtol=1e-14)
        np.testing.assert_allclose(found.norms, plain.norms * scale, rtol=1e-14)


def test_what_has_no_shares():
    model, data = network()
    pairs = hesspec.eigenpairs(torch.diag(torch.linspace(0.0, 3.0, 80)), count=4, steps=60)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    vector = torch.ones(80)
    with pytest.raises(ValueError, match="No selected parameter has a gradient: call backward"):
        optim.dominant_share(optimizer, pairs, model)
    differentiate(model, data)
    for source, given, message in (
        (optimizer, {}, "Pass the model that the optimiser trains"),
        (optimizer, {"model": nn.Linear(2, 2)}, "SGD trains none of the selected parameters"),
        (optimizer, {"model": model, "params": "0.*"}, "has shape .48,., but the eigenvectors have 80 entries"),
        ([optimizer, 3], {"model": model}, "An int is not a torch.optim.Optimizer"),
        (torch.optim.LBFGS(model.parameters()), {"model": model}, "A step of LBFGS needs a closure"),
        (vector, {"k": 5}, "k is 5; it must be an integer from 1 to 4"),
        (vector, {"k": 1.5}, "k is 1.5"),
        (vector / 0, {}, "contains NaN or infinity"),
        ({"a": [1.0]}, {}, "'a' is a list"),
        ({}, {}, "no vectors: the mapping is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            optim.dominant_share(source, pairs, **given)
    optimizer.lock = Path(__file__).open()  # noqa: SIM115 - a file cannot be copied
    with optimizer.lock, pytest.raises(ValueError, match="SGD cannot be copied, because of its attribute 'lock'"):
        optim.step_vectors(optimizer, model)
    with pytest.raises(ValueError, match="k is 9"):
        result().dominant(9)
