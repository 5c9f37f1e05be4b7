"""The memory budget: what is predicted, kept, split and given up, and that none of it changes a product."""

import gc
import json
import logging
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import MATRICES, batches, cnn, gpt2, labels, mlp, tokens
from sweeps import swept
from torch import nn

import hesspec
from hesspec.backend.memory import in_words, is_out_of_memory, parse_memory
from hesspec.operators.engine import passes
from hesspec.operators.engine.passes import Passes
from hesspec.operators.engine.verification import verify
from hesspec.operators.risk.batches import Batches
from hesspec.operators.risk.losses import Loss

CE = nn.CrossEntropyLoss()
KEPT = ("bit for bit", 0.0)
SPLIT = ("up to rounding", 1e-12)

# What PyTorch and Python raise where an allocation fails.
ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError(),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:128] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 16384000 bytes. Error code 12 (Cannot allocate memory)"
    ),
    RuntimeError("could not create a primitive"),
]


def data(sizes=(8, 8, 8, 8)):
    return batches((1, 4, 4), labels(4), sizes=sizes)


# Operators of one model share their traces: what is tested here is what is done with them.
MODEL, GRAPHS = cnn().double(), hesspec.GraphCache()


def hessian(batch_list=None, matrix="Hessian", **options):
    given = data() if batch_list is None else batch_list
    return getattr(hesspec, matrix)(MODEL, CE, given, graphs=GRAPHS, **options)


def vector(operator):
    return torch.linspace(-1, 1, operator.shape[0], dtype=operator.dtype)


def close(found, expected, tolerance):
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GB", 8 * 10**9),
        ("500MB", 5 * 10**8),
        ("2GiB", 2**31),
        (" 1.5 kB ", 1500),
        ("1tib", 2**40),
        ("77", 77),
        ("8b", 8),
        (12345, 12345),
    ],
)
def test_sizes_are_read(text, size):
    assert parse_memory(text) == size


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        ("much", "memory='much' is not a valid size; use a size such as \"8GB\""),
        ("8XB", "memory='8XB' is not a valid size"),
        ("", "memory='' is not a valid size"),
        ("-1GB", "memory='-1GB' leaves nothing"),
        (0, "memory=0 leaves nothing"),
        (-5, "memory=-5 leaves nothing"),
        (1.5, "memory=1.5 is a float"),
        (True, "memory=True is a bool"),
    ],
)
def test_what_is_no_size_is_refused_at_once(memory, message):
    with pytest.raises(ValueError, match=message):
        hessian(memory=memory)


def test_sizes_are_written_with_a_unit():
    assert [in_words(size) for size in (12, 1234, 5e6, 1.25e9, 3e12)] == [
        "12 bytes",
        "1.23 kB",
        "5 MB",
        "1.25 GB",
        "3,000 GB",
    ]


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuFFT error: CUFFT_ALLOC_FAILED",
        "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
    ],
)
def test_errors_of_memory_that_cuda_and_its_libraries_raise(words):
    assert is_out_of_memory(torch.AcceleratorError(words))
    assert not is_out_of_memory(torch.AcceleratorError("CUDA error: an illegal memory access was encountered"))


@pytest.mark.parametrize("error", ERRORS)
def test_errors_of_memory_are_told_from_others(error):
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(RuntimeError("could not create a primitive descriptor for a matmul primitive"))


@pytest.mark.parametrize("matrix", swept(MATRICES, "Hessian"))
def test_predicted_bytes_of_residuals_are_those_that_are_kept(matrix, traced):
    operator = hessian(matrix=matrix)
    batch = next(iter(operator._risk.batches))
    built = operator._passes()
    predicted = built.bytes(batch).kept
    given = {tensor.untyped_storage().data_ptr() for tensor in built._constants(batch)}
    _, *residuals = built._traced(batch).primal(*built._constants(batch))
    storages = {residual.untyped_storage().data_ptr(): residual.untyped_storage().nbytes() for residual in residuals}
    assert predicted == sum(size for pointer, size in storages.items() if pointer not in given)


@pytest.mark.parametrize("matrix", swept(MATRICES, "Hessian"))
def test_predicted_peak_is_that_of_the_allocator(matrix, mode):
    operator = hessian(batches((1, 4, 4), labels(4), sizes=(400,)), matrix=matrix)
    v = vector(operator)
    gc.collect()  # what other tests have left must not be freed meanwhile
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        for _ in range(2):
            _ = operator @ v
    alive = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    # Double backward is predicted from above. Kernels of convolutions may take work space of their own: patches of
    # 3 x 3 float64 numbers at 4 x 4 places of 400 images. The operator's copy of the batch, 400 images and labels, is
    # not predicted.
    predicted, work, batch = operator.attributes["predicted_peak_bytes"], 9 * 16 * 400 * 8, (16 + 1) * 400 * 8
    assert (0.85 if mode == "traced" else 0.6) * predicted <= peak <= 1.2 * predicted + work + batch


@pytest.mark.parametrize("matrix", swept(MATRICES, "Hessian"))
def test_what_is_kept_fits_the_budget_and_does_not_change_a_bit(matrix, mode):
    whole = hessian(matrix=matrix)
    v = vector(whole)
    expected, one = whole @ v, whole.attributes["kept_bytes"] // 4
    assert whole.attributes["kept_batches"] == 4
    assert f"cached for 4 of 4 batches, {in_words(4 * one)}" in whole.attributes["mode_reason"]
    seen = set()
    for budget in torch.linspace(3.5 * one, 8 * one, 6).to(torch.long).tolist():
        operator = hessian(matrix=matrix, memory=budget)
        assert torch.equal(operator @ v, expected)
        assert torch.equal(operator @ v, expected)
        assert operator.risk == whole.risk
        attributes = operator.attributes
        assert attributes["kept_bytes"] == attributes["kept_batches"] * one
        assert attributes["predicted_peak_bytes"] <= budget
        seen.add(attributes["kept_batches"])
    assert {0, 4} < seen | {0}


def test_streamed_batches_do_not_add_to_the_risk_again(mode):
    operator = hessian(memory=20_000)
    before = operator.risk
    for _ in range(3):
        _ = operator @ vector(operator)
    assert operator.attributes["kept_batches"] < 4
    assert operator.risk == before


@pytest.mark.parametrize("matrix", swept(MATRICES, "Hessian"))
@pytest.mark.parametrize("share", swept([0.7, 0.4, 0.15], 0.4))
def test_batches_that_do_not_fit_are_split(matrix, share, mode):
    data = batches((1, 4, 4), labels(4), sizes=(24, 24, 7))
    whole = hessian(data, matrix=matrix)
    v = vector(whole)
    expected = whole @ v
    sizes = [whole._passes().bytes(batch).streamed for batch in whole._risk.batches]
    operator = hessian(data, matrix=matrix, memory=int(share * sizes[0]))
    close(operator @ v, expected, 1e-12)
    assert operator.risk == pytest.approx(whole.risk, rel=1e-12)
    assert "parts of 3 batches" in operator.attributes["mode_reason"]
    assert operator.attributes["predicted_peak_bytes"] <= share * sizes[0]


def test_one_sample_that_does_not_fit_is_refused_with_both_numbers(mode):
    operator = hessian(memory=1000)
    with pytest.raises(MemoryError, match=r"One sample is predicted .* kB .*memory for it is 1 kB.*memory=\.\.\."):
        _ = operator @ vector(operator)


def test_a_batch_that_cannot_be_split_is_refused(mode):
    operator = hesspec.Hessian(
        gpt2().double(), CE_OF_TOKENS(), [(ids, y.flatten()) for ids, y in tokens()], terms=count_tokens, memory="20kB"
    )
    with pytest.raises(
        MemoryError,
        match="Batch 0, which cannot be split .inputs and targets differ in their first.*pass smaller batches",
    ):
        _ = operator @ vector(operator)


class CE_OF_TOKENS(nn.CrossEntropyLoss):  # noqa: N801
    def forward(self, logits, targets):
        return super().forward(logits.flatten(0, 1), targets)


def count_tokens(targets):
    return (targets != -100).sum()


@pytest.mark.parametrize("parts", [1, 2, 3, 6, 10])
@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (nn.CrossEntropyLoss(ignore_index=1), torch.tensor([0, 1, 1, 2, 3, 1])),
        (nn.CrossEntropyLoss(reduction="sum"), torch.tensor([0, 1, 1, 2, 3, 1])),
        (nn.CrossEntropyLoss(weight=torch.tensor([0.5, 2.0, 1.0, 0.1])), torch.tensor([0, 1, 1, 2, 3, 1])),
        (nn.MSELoss(), torch.randn(6, 4)),
    ],
)
def test_parts_of_a_batch_add_up_to_it(loss, targets, parts):
    loss = Loss(loss, device=torch.device("cpu"), dtype=torch.float64)
    x, mask = torch.randn(6, 4, dtype=torch.float64), torch.ones(3, 3)
    found = Batches([((x, mask, "flag"), targets), ((x, mask, "flag"), targets)], loss, **on_cpu())
    for batch in found:
        pieces = found.split(batch, parts)
        assert sum(piece.share * loss(piece.inputs[0], piece.targets) for piece in pieces) == pytest.approx(
            float(batch.share * loss(batch.inputs[0], batch.targets)), rel=1e-12
        )
        # What is not by samples goes to every part whole; a part without terms is left out.
        assert all(piece.inputs[1:] == (batch.inputs[1], "flag") for piece in pieces)
        assert sum(piece.samples for piece in pieces) <= 6
        assert max(piece.samples for piece in pieces) == math.ceil(6 / min(parts, 6))


def on_cpu():
    return {"device": torch.device("cpu"), "dtype": torch.float64}


def verifying(monkeypatch):
    """Return a list that is empty except during verification, whose passes are of a few samples at other parameters."""
    within = []

    def verified(*arguments):
        within.append(True)
        try:
            return verify(*arguments)
        finally:
            within.clear()

    monkeypatch.setattr(passes, "verify", verified)
    return within


def failing(monkeypatch, error, calls):
    """Let those tangent passes (counted over all products) raise an error half way through the data."""
    made = [0]
    original, within = Passes.build, verifying(monkeypatch)

    def build(self, batch):
        built = original(self, batch)
        if within:
            return built

        def apply(tangents):
            made[0] += 1
            if made[0] in calls:
                raise error
            return built.apply(tangents)

        return built._replace(apply=apply)

    monkeypatch.setattr(Passes, "build", build)


@pytest.mark.parametrize("error", swept(ERRORS, ERRORS[2]))
def test_memory_that_runs_out_in_a_product_costs_half_of_what_is_kept(error, mode, monkeypatch, caplog):
    expected = hessian() @ vector(hessian())
    failing(monkeypatch, error, {7, 12})
    operator = hessian()
    v = vector(operator)
    # Passes 5 to 7 belong to the second product, which fails in its third batch, and again in its first.
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            assert torch.equal(operator @ v, expected)
    attributes = operator.attributes
    assert attributes["kept_batches"] == 1
    name = type(error).__name__
    steps = [f"out of memory ({name}): cached primal passes reduced from {a} to {b}" for a, b in ((4, 2), (2, 1))]
    assert attributes["mode_reason"].endswith("; ".join(steps))
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == steps


def test_memory_that_keeps_running_out_splits_batches(mode, monkeypatch):
    expected = hessian() @ vector(hessian())
    failing(monkeypatch, ERRORS[2], {2, 3, 4, 5, 7})
    operator = hessian()
    close(operator @ vector(operator), expected, 1e-12)
    assert operator.attributes["kept_batches"] == 0
    assert "of 16 parts of 4 batches" in operator.attributes["mode_reason"]
    close(operator @ vector(operator), expected, 1e-12)


def test_memory_that_runs_out_for_a_single_sample_is_an_error(mode, monkeypatch):
    failing(monkeypatch, ERRORS[0], range(1000))
    operator = hessian()
    with pytest.raises(MemoryError, match="split into samples, one of which is predicted to need .*; the budget is"):
        _ = operator @ vector(operator)


def test_memory_that_runs_out_in_the_primal_passes(mode, monkeypatch):
    expected = hessian() @ vector(hessian())
    original, made, within = Passes.build, [], verifying(monkeypatch)

    def build(self, batch):
        made.extend([] if within else [batch.samples])
        if not within and len(made) in (3, 5):
            raise ERRORS[2]
        return original(self, batch)

    monkeypatch.setattr(Passes, "build", build)
    operator = hessian()
    assert torch.equal(operator @ vector(operator), expected)
    assert operator.attributes["kept_batches"] == 0
    assert "from 2 to 1" in operator.attributes["mode_reason"]
    assert "from 1 to 0" in operator.attributes["mode_reason"]


def test_other_errors_are_not_taken_for_memory(monkeypatch, mode):
    failing(monkeypatch, RuntimeError("something else"), {6})
    operator = hessian()
    _ = operator @ vector(operator)
    with pytest.raises(RuntimeError, match="something else"):
        _ = operator @ vector(operator)
    assert operator.attributes["kept_batches"] == 4


def test_a_spectrum_goes_on_where_memory_runs_out(mode, monkeypatch):
    expected = hesspec.spectrum(hessian(), steps=12)
    failing(monkeypatch, ERRORS[1], {18, 31, 33, 34, 41})
    operator = hessian()
    found = hesspec.spectrum(operator, steps=12)
    assert "parts of 4 batches" in operator.attributes["mode_reason"]
    assert found.eigenvalues == pytest.approx(expected.eigenvalues, rel=1e-9)
    assert found.nodes == pytest.approx(expected.nodes, rel=1e-6)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS bounds memory on Linux only")
@pytest.mark.long
@pytest.mark.parametrize("mode_name", ["traced", "double backward"])
def test_a_process_that_runs_out_of_memory_goes_on(mode_name):
    script = Path(__file__).parents[2] / "scripts" / "out_of_memory.py"
    done = subprocess.run([sys.executable, script, mode_name], capture_output=True, text=True, check=True)  # noqa: S603
    found = json.loads(done.stdout)
    assert found["mode"] == mode_name
    assert "out of memory (RuntimeError)" in found["mode_reason"]
    assert "parts of 3 batches" in found["mode_reason"]
    assert max(found["errors"]) < 5e-6


@pytest.mark.parametrize(
    ("samples", "side", "expected"), [(100, 8, "double backward"), (300, 32, "traced")], ids=["digits", "images"]
)
def test_tracing_is_chosen_where_it_pays(samples, side, expected, monkeypatch):
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * side**2, 10),
    )
    operator = hesspec.Hessian(model, CE, [(torch.zeros(samples, 1, side, side), torch.zeros(samples).long())])
    built = operator._passes()
    built.bytes(next(iter(operator._risk.batches)))
    assert built.mode == expected
    assert ("a trace pays" in built.why) == (expected == "traced")
    assert "s saved in 64 products" in built.why


def test_the_same_problem_takes_the_same_way():
    found = [hessian() for _ in range(2)]
    products = [operator @ vector(operator) for operator in found]
    assert torch.equal(*products)
    first, second = ({**operator.attributes, "build_seconds": 0} for operator in found)
    assert first == second


def test_what_was_decided_is_in_the_log_and_in_the_spectrum(caplog):
    operator = hesspec.Hessian(mlp(), CE, batches((5,), labels(4)), memory="1GB")
    with caplog.at_level(logging.INFO):
        spectrum = hesspec.spectrum(operator, steps=4)
    for name in ("mode", "mode_reason", "precision", "kept_batches", "kept_bytes", "predicted_peak_bytes"):
        assert spectrum.attributes[name] == operator.attributes[name]
    assert any(operator.attributes["mode_reason"] in record.getMessage() for record in caplog.records)
