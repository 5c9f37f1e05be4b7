"""The user's model is what it was, whatever happened; wrappers and modes change nothing but how it is run."""

import contextlib
import copy
import random
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import MATRICES, seeded
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.utils import parametrizations, weight_norm
from torch.utils.checkpoint import checkpoint

import hesspec
from hesspec.operators.engine import passes


def data(dtype=torch.float64):
    torch.manual_seed(1)
    return [(torch.randn(n, 5).to(dtype), torch.randint(3, (n,))) for n in (6, 4)]


CE = nn.CrossEntropyLoss()


def network():
    return seeded(lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double())


def dense(model, loss=CE, batches=None, matrix="Hessian", **options):
    operator = getattr(hesspec, matrix)(model, loss, batches or data(), **options)
    return operator @ torch.eye(operator.shape[0], dtype=operator.dtype)


class Cached(nn.Module):
    """Keeps a table that it makes in its first forward pass, and counts calls."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 3)
        self.table, self.tables, self.calls = None, {}, 0

    def forward(self, x):
        if self.table is None:
            self.table = torch.arange(5, dtype=x.dtype) / 10
            self.tables["first"] = torch.ones(5, dtype=x.dtype)
        self.calls += 1
        return self.b(torch.tanh(self.a(x + self.table * self.tables["first"])))


def everything(model):
    """All that a model holds, to compare."""
    tensors = {
        name: (id(t), t.dtype, t.requires_grad, t.detach().clone(), None if t.grad is None else t.grad.clone())
        for name, t in [*model.named_parameters(), *model.named_buffers()]
    }
    parts = [
        (
            type(part),
            part.training,
            {k: v for k, v in vars(part).items() if isinstance(v, int | str | bool | type(None))},
        )
        for part in model.modules()
    ]
    hooks = [list(vars(part).get("_forward_hooks", {})) for part in model.modules()]
    return tensors, parts, hooks


def same(one, other):
    assert one[1:] == other[1:]
    assert one[0].keys() == other[0].keys()
    for name, (address, dtype, required, value, gradient) in one[0].items():
        now = other[0][name]
        assert now[:3] == (address, dtype, required)
        assert torch.equal(value, now[3])
        assert (gradient is None) == (now[4] is None)
        assert gradient is None or torch.equal(gradient, now[4])


def no_fakes(model):
    for part in model.modules():
        for value in vars(part).values():
            for entry in value.values() if isinstance(value, dict) else [value]:
                assert not isinstance(entry, FakeTensor)


@pytest.mark.parametrize("way", passes.WAYS)
@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.few(3)
def test_nothing_of_the_model_changes(way, warm):
    model = seeded(Cached).double()
    if warm:
        F.cross_entropy(model(data()[0][0]), data()[0][1]).backward()
    seen = []
    model.a.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    before, batches = everything(model), data()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    found = dense(model, batches=batches, mode=way)
    same(before, everything(model))
    no_fakes(model)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert (states[2] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert not any(isinstance(entry, FakeTensor) for entry in seen)
    model(batches[0][0])
    plain = seeded(Cached).double()
    plain.table, plain.tables = torch.arange(5, dtype=torch.float64) / 10, {"first": torch.ones(5, dtype=torch.float64)}
    assert torch.allclose(found, dense(plain, mode="double backward"), atol=1e-6 if way == "differences" else 1e-12)


class Recorder(nn.Module):
    """Keeps what it computes in containers, and in containers within them."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()
        self.outputs, self.means = [], {"outputs": [], "layers": {"last": [], "sizes": {3}}}
        self.holder = SimpleNamespace(outputs=[])

    def forward(self, x):
        found = self.net(x)
        self.outputs.append(found)
        self.means["outputs"].append(found.mean())
        self.means["layers"]["last"].append(found)
        self.means["layers"]["sizes"].add(len(found))
        self.holder.outputs.append(found)
        return found


@pytest.mark.parametrize("way", passes.WAYS)
def test_what_a_model_keeps_in_containers_is_what_it_was(way):
    model = Recorder()
    kept = model.outputs, model.means, model.means["outputs"], model.means["layers"], model.holder.outputs
    found = dense(model, mode=way)
    assert torch.allclose(found, dense(network()), atol=1e-6 if way == "differences" else 1e-12)
    assert model.outputs == []
    assert model.means == {"outputs": [], "layers": {"last": [], "sizes": {3}}}
    assert model.holder.outputs == []
    now = model.outputs, model.means, model.means["outputs"], model.means["layers"], model.holder.outputs
    assert all(one is other for one, other in zip(kept, now, strict=True))


@pytest.mark.parametrize("way", passes.WAYS[1:])
def test_a_buffer_that_the_forward_pass_overwrites_is_what_it_was(way):
    class Recording(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()
            self.register_buffer("last", torch.zeros(5, dtype=torch.float64))

        def forward(self, x):
            self.last.copy_(x[0].detach())
            return self.net(x)

    model = Recording().eval()
    found = dense(model, mode=way)
    assert not model.last.any()
    assert torch.allclose(found, dense(network()), atol=1e-6 if way == "differences" else 1e-12)


@pytest.mark.parametrize("way", passes.WAYS)
@pytest.mark.parametrize("fails_at", range(1, 9))
def test_an_exception_at_any_pass_leaves_the_model_unchanged(way, fails_at):
    class Failing(Cached):
        passes = 0

        def forward(self, x):
            Failing.passes += 1
            if Failing.passes == fails_at:
                raise KeyboardInterrupt
            return super().forward(x)

    model = seeded(Failing).double()
    before = everything(model)
    with contextlib.suppress(KeyboardInterrupt):
        dense(model, mode=way)
    same(before, everything(model))
    no_fakes(model)
    assert torch.get_default_dtype() == torch.float32


def test_parameters_that_a_cache_depends_on_have_curvature():
    """A table of biases that is kept from the first pass on is a function of the weights all the same."""

    class Biased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.bias, self.kept = nn.Linear(5, 6), nn.Linear(6, 3), nn.Parameter(torch.randn(6)), None

        def train(self, mode=True):
            self.kept = None
            return super().train(mode)

        def forward(self, x):
            if self.kept is None:
                self.kept = self.bias * 2
            return self.b(torch.tanh(self.a(x) + self.kept))

    class Plain(Biased):
        def forward(self, x):
            return self.b(torch.tanh(self.a(x) + 2 * self.bias))

    exact = dense(seeded(Plain).double())
    assert torch.allclose(dense(seeded(Biased).double()), exact, atol=1e-9)


def test_hooks_that_take_part_stay():
    model = network()
    model[0].register_forward_hook(lambda _module, _inputs, output: 2 * output)
    doubled = copy.deepcopy(network())
    with torch.no_grad():
        doubled[0].weight.mul_(2)
        doubled[0].bias.mul_(2)
    operator = hesspec.Hessian(doubled, CE, data())
    scale = operator.to_flat(
        {n: torch.full_like(p, 2.0 if n.startswith("0") else 1.0) for n, p in doubled.named_parameters()}
    )
    exact = dense(doubled) * scale * scale[:, None]
    assert torch.allclose(dense(model), exact, atol=1e-12)


def test_a_model_that_counts_its_passes_is_refused_by_name():
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.step = nn.Linear(5, 3), 0

        def forward(self, x):
            self.step += 1
            return self.linear(x) * (1 + 0.1 * self.step)

    with pytest.raises(ValueError, match=r"two passes over the same samples differ.*Counting\.step"):
        dense(seeded(Counting).double())


def test_noise_with_a_seed_of_its_own_is_not_random():
    class Seeded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 3)

        def forward(self, x):
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
            return self.linear(x + 0.1 * noise) ** 2

    assert torch.isfinite(dense(seeded(Seeded).double(), batches=data()[:1])).all()


def seeded_draw(function):
    """Random numbers of a shape by a function, from a global seed of its own."""

    def draw(like):
        with torch.random.fork_rng([]):
            torch.manual_seed(3)
            return function(like)

    return draw


DRAWS = {
    "randn": lambda like: torch.randn(like.shape, generator=torch.Generator().manual_seed(3)),
    "randn, of a dtype": lambda like: torch.randn(like.shape, generator=torch.Generator().manual_seed(3)).to(like),
    "randn, of the dtype of a tensor": lambda like: torch.randn(
        like.shape, generator=torch.Generator().manual_seed(3), dtype=like.dtype
    ),
    "rand_like": seeded_draw(torch.rand_like),
    "normal": seeded_draw(lambda like: torch.normal(torch.zeros_like(like), 1.0)),
    "normal, of numbers": seeded_draw(lambda like: torch.normal(0.0, 1.0, like.shape)),
    "in place": seeded_draw(lambda like: torch.empty_like(like).uniform_(-1, 1)),
    "exponential in place": seeded_draw(lambda like: torch.zeros(like.shape).exponential_()),
    "bernoulli": seeded_draw(lambda like: torch.bernoulli(torch.full_like(like, 0.3))),
    "multinomial": seeded_draw(lambda like: torch.multinomial(torch.ones_like(like), like.shape[1]).to(like)),
    "poisson": seeded_draw(lambda like: torch.poisson(torch.ones_like(like))),
    "dropout": seeded_draw(lambda like: F.dropout(torch.ones_like(like), 0.4)),
    "distribution": seeded_draw(lambda like: torch.distributions.Normal(torch.zeros_like(like), 1.0).rsample()),
    "Gumbel softmax": seeded_draw(lambda like: F.gumbel_softmax(torch.zeros_like(like), 1.0)),
}


class Noisy(nn.Module):
    def __init__(self, draw) -> None:
        super().__init__()
        self.a, self.b, self.draw = nn.Linear(5, 6), nn.Linear(6, 3), draw

    def forward(self, x):
        h = self.a(x)
        return self.b(torch.tanh(h) * (1 + self.draw(h)))


@pytest.mark.parametrize(("name", "way"), [*((name, "auto") for name in DRAWS), ("randn", "differences")])
@pytest.mark.few(5)
def test_random_numbers_with_a_seed_are_those_of_the_models_own_precision(name, way):
    (x, y), *_ = data(torch.float32)
    # What the model draws in float32, in a model in float64.
    drawn = DRAWS[name](torch.zeros(6, 6)).double()
    assert drawn.std() > 0
    exact = dense(seeded(lambda: Noisy(lambda _: drawn)).double(), batches=[(x.double(), y)])
    operator = hesspec.Hessian(seeded(lambda: Noisy(DRAWS[name])), CE, [(x, y)], mode=way)
    found = operator @ torch.eye(operator.shape[0])
    assert (found - exact).norm() <= 1e-5 * exact.norm()
    assert operator.attributes["mode"] == {"auto": "double backward", "differences": "differences"}[way]


# Wrappers and modes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: torch.compile(model, backend="eager"),
        nn.DataParallel,
        lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
    ],
    ids=["compiled", "data parallel", "both"],
)
def test_a_wrapper_is_looked_through(wrap):
    operator = hesspec.Hessian(wrap(network()), CE, data())
    assert operator.names[0] == "0.weight"
    assert torch.allclose(operator @ torch.eye(operator.shape[0], dtype=torch.float64), dense(network()))


def test_functions_that_are_compiled_inside_run_eagerly():
    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()
            self.function = torch.compile(torch.tanh, backend="aot_eager")

        def forward(self, x):
            return self.function(self.net(x))

    exact = dense(nn.Sequential(network(), nn.Tanh()).eval())
    assert torch.allclose(dense(Inside().eval()), exact)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("way", ["auto", "traced"])
def test_activation_checkpointing_changes_nothing(reentrant, way):
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x):
            for layer in self.net:
                x = checkpoint(layer, x, use_reentrant=reentrant)
            return x

    assert torch.allclose(dense(Checkpointed().eval(), mode=way), dense(network()))


@pytest.mark.parametrize("matrix", [*MATRICES, "GaussNewtonClass"])
@pytest.mark.parametrize("way", ["double backward", "traced"])
@pytest.mark.few(3)
def test_inference_mode_and_autocast_around_the_call_have_no_effect(way, matrix):
    exact = dense(network(), matrix=matrix)
    # More samples than models are looked at with, which are then cut.
    many = [(torch.randn(40, 5, dtype=torch.float64), torch.arange(40) % 3)]
    expected = dense(network(), batches=many, matrix=matrix)
    with torch.inference_mode():
        # Its tensors are made there, too.
        assert torch.allclose(dense(network(), mode=way, matrix=matrix), exact)
        assert torch.allclose(dense(network(), batches=many, mode=way, matrix=matrix), expected)
    single = network().float()
    small = [(x.float(), y) for x, y in data()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = dense(single, batches=small, mode=way, matrix=matrix)
    assert torch.equal(found, dense(single, batches=small, mode=way, matrix=matrix))


def test_parameters_that_were_made_in_inference_mode():
    with torch.inference_mode():
        model = network()
    assert torch.allclose(dense(model), dense(network()))


@pytest.mark.parametrize("way", ["double backward", "traced"])
def test_autocast_inside_of_the_forward_pass_is_switched_off(way):
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network().float()

        def forward(self, x):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.net(x).float()

    small = [(x.float(), y) for x, y in data()]
    operator = hesspec.Hessian(Mixed().eval(), CE, small, mode=way)
    found = operator @ torch.eye(operator.shape[0])
    assert torch.allclose(found.double(), dense(network()), atol=1e-6)
    assert "autocast" in operator.attributes["mode_reason"]


@pytest.mark.parametrize(
    "wrap",
    [weight_norm, parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal],
    ids=["old weight norm", "weight norm", "spectral norm", "orthogonal"],
)
@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
@pytest.mark.few(2)
def test_parametrised_weights(wrap):
    torch.manual_seed(0)
    model = nn.Sequential(wrap(nn.Linear(5, 5)), nn.Tanh(), nn.Linear(5, 3)).double().eval()
    operator = hesspec.Hessian(model, CE, data())
    found = operator @ torch.eye(operator.shape[0], dtype=torch.float64)
    by_differences = dense(model, mode="differences")
    assert torch.allclose(found, by_differences, atol=1e-6)
    assert torch.allclose(found, found.T, atol=1e-7)


def test_complex_parameters_are_pairs_of_reals():
    class Spectral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(3, dtype=torch.complex128))
            self.head = nn.Linear(5, 3, dtype=torch.float64)

        def forward(self, x):
            return self.head(torch.fft.irfft(torch.fft.rfft(x) * self.w, n=5))

    class Pairs(nn.Module):
        def __init__(self, other) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.view_as_real(other.w.detach()).clone())
            self.head = other.head

        def forward(self, x):
            return self.head(torch.fft.irfft(torch.fft.rfft(x) * torch.view_as_complex(self.w), n=5))

    model = seeded(Spectral)
    for matrix in (hesspec.Hessian, hesspec.GaussNewton, hesspec.Residual):
        one, other = (matrix(m, CE, data()) for m in (model, Pairs(model).eval()))
        identity = torch.eye(one.shape[0], dtype=torch.float64)
        assert one.shape == other.shape
        assert torch.allclose(one @ identity, other @ identity, atol=1e-10)


def test_tied_parameters_are_selected_by_either_name():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)
            self.outer.weight = self.inner.weight

        def forward(self, x):
            return self.outer(torch.tanh(self.inner(x)))[:, :3]

    model = seeded(Tied).double()
    for name in ("inner.weight", "outer.weight", "outer.*"):
        assert hesspec.Hessian(model, CE, data(), params=[name]).names == ("inner.weight",)


def test_batch_statistics_are_a_function_of_the_weights_where_that_is_asked_for():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double().train()
    mean = model[1].running_mean.clone()
    found = dense(model, batches=data()[:1], batch_statistics=True)
    x, y = data()[0]
    parameters = list(model.parameters())
    functional = copy.deepcopy(model)

    def loss(*values):
        named = dict(zip([n for n, _ in functional.named_parameters()], values, strict=True))
        return CE(torch.func.functional_call(functional, named, (x,)), y)

    rows = torch.autograd.functional.hessian(loss, tuple(p.detach() for p in parameters))
    exact = torch.cat(
        [torch.cat([b.reshape(p.numel(), -1) for b in row], 1) for p, row in zip(parameters, rows, strict=True)]
    )
    assert torch.allclose(found, exact, atol=1e-9)
    assert torch.equal(mean, model[1].running_mean)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.train(),
        lambda model: setattr(model, "2", nn.Linear(6, 3).double()),
        lambda model: model[0].weight.data.mul_(2),
    ],
    ids=["modes", "a layer", "weights"],
)
@pytest.mark.parametrize("way", passes.WAYS)
@pytest.mark.few(4)
def test_changes_after_the_operator_was_made_have_no_effect(change, way):
    exact = dense(network())
    model = network()
    operator = hesspec.Hessian(model, CE, data(), mode=way)
    change(model)
    found = operator @ torch.eye(operator.shape[0], dtype=torch.float64)
    assert torch.allclose(found, exact, atol=1e-6 if way == "differences" else 1e-12)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: torch.jit.trace(network(), data()[0][0]), "TorchScript"),
        (lambda: nn.Sequential(nn.LazyLinear(3)), "not initialised yet"),
        (lambda: nn.Linear(5, 3, device="meta"), "meta device"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
def test_what_cannot_be_measured_is_said(model, message):
    with pytest.raises(ValueError, match=message):
        hesspec.Hessian(model(), CE, data())


@pytest.mark.parametrize("way", ["auto", *passes.WAYS[1:]])
@pytest.mark.parametrize(
    "convert",
    [
        lambda teacher, x: teacher.to(x),
        lambda teacher, x: teacher.to(x.device),
        lambda teacher, x: teacher.double() if x.dtype == torch.float64 else teacher.float(),
    ],
    ids=["to a tensor", "to a device", "to a dtype"],
)
@pytest.mark.few(4)
def test_a_teacher_that_the_loss_converts_is_left_alone(convert, way, monkeypatch):
    monkeypatch.setattr(passes, "trace_pays", lambda *_, **__: (True, "forced"))
    teacher = seeded(lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)), 7).eval()
    before, parts = everything(teacher), list(teacher.parameters())

    def loss(outputs, x):
        with torch.no_grad():
            told = convert(teacher, x)(x)
        return F.kl_div(outputs.log_softmax(1), told.softmax(1), reduction="batchmean")

    batches = [(x, x) for x, _ in data(torch.float32)]
    operator = hesspec.Hessian(network().float(), loss, batches, mode=way)
    found = operator @ torch.eye(operator.shape[0])
    after = everything(teacher)
    assert [id(one) for one in parts] == [id(other) for other in teacher.parameters()]
    assert not any(isinstance(t, FakeTensor) for t in [*teacher.parameters(), *teacher.buffers()])
    for name, (_, dtype, requires, value, _) in before[0].items():
        assert (dtype, requires) == after[0][name][1:3]
        assert torch.equal(value, after[0][name][3])
    targets = [(x, teacher(x).softmax(1).detach().double()) for x, _ in batches]
    exact = dense(network(), nn.CrossEntropyLoss(), [(x.double(), y) for x, y in targets])
    assert (found - exact).norm() <= 1e-5 * exact.norm()


# Random numbers ------------------------------------------------------------------------------------------------------


class Augmented(torch.utils.data.Dataset):
    """Samples with noise of all three generators, if it is more than zero."""

    def __init__(self, noise):
        self.noise = noise

    def __len__(self):
        return 11

    def __getitem__(self, index):
        x = torch.sin(torch.arange(5, dtype=torch.float64) * (index + 1))
        drawn = float(torch.randn(())) + random.gauss() + np.random.standard_normal()  # noqa: NPY002
        return x + self.noise * drawn, index % 3


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, outputs, targets):
        return F.cross_entropy(self.drop(outputs), targets)


def states():
    return torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002


@pytest.mark.parametrize(
    ("loss", "options", "noise", "refused"),
    [
        (CE, {}, 0.0, ""),
        (CE, {"shuffle": True}, 0.0, "shuffle=False"),
        (CE, {}, 1.0, "random augmentation"),
        (Dropping(), {}, 0.0, "random"),
    ],
    ids=["a loader", "a loader that shuffles", "augmentation", "dropout in the loss"],
)
@pytest.mark.parametrize("matrix", MATRICES)
def test_random_numbers_of_data_and_loss_leave_the_global_generators_alone(loss, options, noise, refused, matrix):
    model, loader = network(), torch.utils.data.DataLoader(Augmented(noise), batch_size=4, **options)
    before = states()
    with warnings.catch_warnings(), pytest.raises(ValueError, match=refused) if refused else contextlib.nullcontext():
        # Of a loss that is another one in each call nobody knows what it is a mean over.
        warnings.simplefilter("ignore")
        operator = getattr(hesspec, matrix)(model, loss, loader)
        operator @ torch.ones(operator.shape[0], dtype=torch.float64)
    after = states()
    assert torch.equal(before[0], after[0])
    assert (before[1] == after[1]).all()
    assert before[2] == after[2]
    # Of its own passes each is another.
    loader = torch.utils.data.DataLoader(Augmented(1.0), batch_size=4)
    with pytest.raises(ValueError, match="data changed between passes"):
        dense(network(), CE, loader)


class Counting(torch.utils.data.DataLoader):
    """Counts its passes, and shuffles by their number, as loaders that a seed makes the same on all ranks do."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.iteration = 3

    def __iter__(self):
        order = torch.randperm(len(self.dataset), generator=torch.Generator().manual_seed(self.iteration))
        self.iteration += 1
        for group in order.split(self.batch_size):
            yield self.collate_fn([self.dataset[int(index)] for index in group])


@pytest.mark.parametrize("stopped", [False, True])
def test_a_loader_that_counts_its_passes_is_left_at_its_count(stopped):
    loader = Counting(Augmented(0.0), batch_size=4)
    if stopped:
        with pytest.raises(ValueError, match="Give the model as many logits"):
            hesspec.Hessian(nn.Linear(5, 2), CE, loader)
    else:
        expected = dense(network(), CE, list(Counting(Augmented(0.0), batch_size=4)))
        torch.testing.assert_close(dense(network(), CE, loader), expected)
    assert loader.iteration == 3


class Configured(nn.Module):
    """Writes into its configuration in the forward pass, as models do that tell their task from the first labels."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.config = nn.Linear(5, 3), SimpleNamespace(task=None, width=3)
        self.body.config = self.config

    def forward(self, x):
        self.config.task = self.config.task or "classes"
        self.config.seen = len(x)
        return self.body(x).tanh()


@pytest.mark.parametrize("matrix", MATRICES)
def test_what_a_model_writes_into_its_configuration_is_put_back(matrix):
    model = seeded(lambda: Configured().double())
    dense(model, matrix=matrix)
    assert vars(model.config) == {"task": None, "width": 3}
    assert model.body.config is model.config
