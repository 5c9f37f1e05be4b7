"""Costs at any size: the formulas against numbers counted by hand, and against what hesspec's own operators do."""

import importlib
import itertools
from pathlib import Path

import pytest
import torch
import transformers
from cases import NextTokenLoss
from sweeps import swept
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import hesspec
from hesspec.backend.ranks import Ranks
from hesspec.krylov.basis import KrylovBasis
from hesspec.krylov.storage import STORAGES
from hesspec.krylov.vectors import Space
from hesspec.measure import cost as cost_model
from hesspec.measure.cost import cost
from hesspec.measure.cost_result import H100, Device
from hesspec.measure.rates import parse_bandwidth, parse_flops
from hesspec.operators.engine.trace_cost import count_work
from hesspec.study import small_cnn

ROOT = Path(__file__).parents[2]
SLOW = Device(flops=1e6, bandwidth=1e5, memory_bandwidth=1e7)
LLM = {"params": 7e9, "tokens": 1e9}


def test_a_whole_model_on_each_device_counted_by_hand():
    found = cost(1000, samples=80, flops_forward=2000, activations=1000, devices=4, memory=10**6, device=SLOW, steps=10)
    assert (found.way, found.basis, found.kept, found.fits) == ("whole", "full", 1, True)
    assert found.flops_matvec == 6 * 80 * 2000
    assert found.bytes_communicated == 2 * 4000 * 3 / 4
    assert found.seconds_compute == pytest.approx(6 * 20 * 2000 / 1e6)
    assert found.seconds_communicate == pytest.approx(6000 / 1e5)
    # Below 262,144 parameters each step reads half of the rows twice; and 20 vectors. Slices have 250 numbers.
    assert found.seconds_step == pytest.approx((2 * 5 + 20) * 1000 / 1e7)
    assert found.seconds_setup == pytest.approx(3 * 20 * 2000 / 1e6)
    assert found.seconds == pytest.approx(0.12 + 10 * (0.24 + 0.06 + 0.003))
    assert (found.bytes_parameters, found.bytes_vectors, found.bytes_basis) == (8000, 4 * 4000 + 4 * 1000, 10_000)
    assert found.bytes_passes == 20 * 1000 + 500
    assert found.bytes == 8000 + 20_000 + 10_000 + 20_500


@pytest.mark.parametrize(("matrix", "kept", "streamed"), [("Hessian", 6, 9), ("GaussNewton", 4, 5), ("Residual", 6, 9)])
def test_primal_passes_that_are_not_kept_are_repeated(matrix, kept, streamed):
    options = {"samples": 100, "flops_forward": 10, "matrix": matrix, "steps": 2}
    roomy = cost(10, **options, activations=1000, memory=10**6)
    tight = cost(10, **options, activations=1000, memory=10**4)
    unknown = cost(10, **options)
    assert roomy.flops_matvec == 1000 * kept
    assert 0 < tight.kept < 1
    assert tight.flops_matvec == pytest.approx(1000 * (tight.kept * kept + (1 - tight.kept) * streamed))
    assert unknown.flops_matvec == 1000 * streamed
    assert "unknown; give the bytes of a sample" in repr(unknown)
    assert cost(10**6, tokens=100, context=10, matrix=matrix, activations="1TB").kept == 0


def test_sharded_parameters_counted_by_hand():
    # Two layers of the width 256.
    p, context, sequences = 2 * 12 * 256**2, 64, 16 * 108
    found = cost(
        p, tokens=sequences * context, context=context, activations="100kB", devices=16, memory="30MB", steps=8
    )
    part = p // 16
    assert (found.way, found.basis, found.fits) == ("sharded", "full", True)
    assert found.flops_forward == pytest.approx(sequences * context * (2 * p + 4 * 2 * 256 * context))
    assert found.flops_matvec == pytest.approx(6 * found.flops_forward)
    assert found.bytes_parameters == pytest.approx(4 * (2 * part + 4 * p / 2))
    assert found.bytes_vectors == 6 * 4 * part
    assert found.bytes_basis == 8 * 4 * part
    # There is room for 54 of a device's 108 sequences at once: twice, for each of two gradients, parameters are
    # gathered forward and backward, and gradients scattered.
    assert found.bytes_passes == 54 * 150_000
    assert found.bytes_communicated == 2 * 2 * 3 * 4 * p * 15 / 16


def test_shapes_of_language_models_are_like_those_that_exist():
    for p, layers, width in ((124e6, 12, 768), (1.3e9, 24, 2048), (6.74e9, 32, 4096)):
        assert cost_model._layers_by_width(int(p)) == pytest.approx(layers * width, rel=0.25)


def counted(operator):
    """Operations of a kept product and of the primal pass; what that keeps."""
    passes, batch = operator._passes(), next(iter(operator._risk.batches))
    kept = passes.bytes(batch).kept
    with FlopCounterMode(display=False) as primal:
        built = passes.build(batch)
    with FlopCounterMode(display=False) as tangent:
        built.apply(operator._risk.parameters.split(torch.randn(operator.shape[0])))
    return tangent.get_total_flops(), primal.get_total_flops(), kept


@pytest.fixture
def _traced(monkeypatch):
    monkeypatch.setattr("hesspec.operators.engine.passes.trace_pays", lambda *_, **__: (True, "as the test asks"))


@pytest.mark.usefixtures("_traced")
@pytest.mark.parametrize("kind", [hesspec.Hessian, hesspec.GaussNewton, hesspec.Residual])
@pytest.mark.parametrize("name", ["mlp", "small_cnn"])
@pytest.mark.few(2)
def test_operations_of_the_real_products_of_networks(name, kind):
    torch.manual_seed(0)
    if name == "mlp":
        model = nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 10))
        inputs = torch.randn(8, 64)
    else:
        model, inputs = small_cnn(1, 10, 8), torch.randn(8, 1, 8, 8)
    model.eval()
    forward = count_work(lambda: model(inputs)).flops / 8
    tangent, primal, kept = counted(kind(model, nn.CrossEntropyLoss(), [(inputs, torch.arange(8))]))
    p = sum(parameter.numel() for parameter in model.parameters())
    options = {"samples": 8, "flops_forward": forward, "matrix": kind.__name__}
    # The inputs of the first layer have no tangents and no gradients, which the model does not know.
    assert 0.84 <= tangent / cost(p, **options, activations=kept).flops_matvec <= 1
    assert 0.79 <= (tangent + primal) / cost(p, **options).flops_matvec <= 1


@pytest.mark.usefixtures("_traced")
@pytest.mark.parametrize("kind", swept([hesspec.Hessian, hesspec.GaussNewton], hesspec.GaussNewton))
def test_operations_and_memory_of_the_real_products_of_a_language_model(kind):
    torch.manual_seed(0)
    layers, width, context, words = 4, 128, 64, 512
    config = transformers.GPT2Config(
        vocab_size=words,
        n_positions=context,
        n_embd=width,
        n_layer=layers,
        n_head=width // cost_model.HEAD,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    batch = ({"input_ids": torch.randint(words, (2, context))}, torch.randint(words, (2, context)))
    tangent, primal, kept = counted(kind(model, NextTokenLoss(), [batch]))
    options = {"tokens": 2 * context, "context": context, "matrix": kind.__name__}
    p = model.num_parameters()
    assert tangent == pytest.approx(cost(p, **options, activations=1).flops_matvec, rel=0.03)
    assert tangent + primal == pytest.approx(cost(p, **options, activations="1TB").flops_matvec, rel=0.03)
    by_width, by_score, by_word = cost_model.KEPT_NUMBERS[kind.__name__]
    numbers = layers * width * (by_width + by_score * context / cost_model.HEAD) + by_word * words
    assert kept == pytest.approx(2 * context * 4 * numbers, rel=0.05)


@pytest.mark.parametrize(("basis", "ranks"), [("full", 1), ("half", 1), ("full", 3)])
def test_memory_of_the_basis_is_what_it_allocates(basis, ranks):
    p, steps, shared = 1000, 16, Ranks()
    shared.size = ranks
    space = Space(p, shared)
    kept = KrylovBasis(space, dtype=torch.float32, device=torch.device("cpu"), storage=STORAGES[basis])
    for _ in range(steps):
        kept.append(torch.randn(space.length))
    found = cost(p, samples=1, flops_forward=1, devices=ranks, steps=steps, basis=basis)
    assert found.bytes_basis == sum(block.nbytes for block in kept._blocks)


@pytest.mark.parametrize(
    "problem", [LLM, {"params": 1e9, "tokens": 1e8}, {"params": 70e9, "tokens": 1e8, "context": 256}]
)
def test_the_smallest_numbers_of_devices_are_where_it_begins_to_fit(problem):
    found = cost(**problem, devices=1 << 14)
    least, full = found.least_devices, found.full_from
    assert 1 < least <= full
    assert found.fits
    assert cost(**problem, devices=least).fits
    assert not cost(**problem, devices=least - 1).fits
    assert cost(**problem, devices=full).basis == "full"
    assert cost(**problem, devices=full, basis="half").basis == "half"
    assert full == least or cost(**problem, devices=full - 1).basis == "half"
    assert cost(**problem, devices=least, basis="full").fits == (least == full)
    half, whole = (cost(**problem, devices=8, basis=basis) for basis in ("half", "full"))
    assert (half.least_devices, whole.least_devices) == (least, full)
    assert half.full_from == whole.full_from == full


def test_more_devices_take_less_time_and_no_more_memory_each():
    costs = [cost(1e9, tokens=1e9, devices=1 << k) for k in range(12)]
    for one, two in itertools.pairwise(costs):
        assert two.seconds_compute < one.seconds_compute
        assert two.seconds_step < one.seconds_step
        assert two.bytes_basis <= one.bytes_basis
        assert two.fits >= one.fits
    assert all(cost.bytes <= 0.9 * cost.memory for cost in costs if cost.fits)


@pytest.mark.parametrize("matrix", ["GaussNewton", "Residual"])
def test_sharded_parameters_are_for_the_hessian_only(matrix):
    found = cost(**LLM, devices=256, matrix=matrix)
    assert (found.way, found.fits, found.least_devices) == ("whole", False, None)
    assert "none is enough" in repr(found)
    assert "parameters can be sharded for the Hessian only" in found.obstacle
    assert not cost(**LLM, devices=256).obstacle
    assert cost(**LLM, devices=256).way == "sharded"


def test_the_data_of_a_day_takes_a_day():
    for problem in (LLM, {"params": 124e6, "tokens": 1e9}):
        found = cost(**problem, devices=256)
        tokens = problem["tokens"] * found.share_in_a_day
        assert cost(problem["params"], tokens=tokens, devices=256).seconds == pytest.approx(86_400, rel=0.02)


def test_a_summary_says_what_is_assumed():
    words = repr(cost(**LLM, devices=256, device=H100))
    for text in ("sharded parameters", "central differences", "assumed: 50% of an H100", "15.1 EFLOP", "50 GB/s"):
        assert text in words


def test_rates_in_words():
    assert parse_flops("1.5e3 GFLOP/s") == parse_flops(1.5e12) == 1.5e12
    assert parse_bandwidth("0.4 TB/s") == parse_bandwidth("4e11") == 4e11


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"params": 0.0}, "params is 0.0; it must be a positive number"),
        ({"params": float("nan")}, "params is nan"),
        ({"devices": 0}, "devices is 0"),
        ({"tokens": None}, "The size of the data is missing. Give tokens"),
        ({"tokens": None, "samples": 10}, "flops_forward, the floating-point operations"),
        ({"samples": 10}, "give either the first or the last two"),
        ({"tokens": None, "samples": 10, "flops_forward": -1.0}, "flops_forward is -1.0"),
        ({"context": 0}, "context is 0"),
        ({"matrix": "Hesian"}, "no matrix 'Hesian'; did you mean 'Hessian'"),
        ({"basis": "full on disk"}, "no basis for a hypothetical network 'full on disk'"),
        ({"memory": "80XB"}, "memory='80XB' is not a valid size"),
        ({"activations": "much"}, "memory='much' is not a valid size"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        cost(**{**LLM, **options})


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (parse_bandwidth, "400Gb/s"),
        (parse_bandwidth, "fast"),
        (parse_bandwidth, -1.0),
        (parse_flops, "1.2.3TFLOP/s"),
    ],
)
def test_bad_rates(parse, text):
    with pytest.raises(ValueError, match="which is not a valid rate; use"):
        parse(text)


def test_the_tables_of_the_page_are_those_of_the_formulas(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    script = importlib.import_module("cost_model")
    assert script.models() in (ROOT / "docs" / "scaling.md").read_text(), "python benchmarks/cost_model.py --models"
