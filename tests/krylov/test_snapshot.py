"""A run that ends before its time resumes from its snapshot, to the very same result."""

import dataclasses
import itertools
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import hesspec
from hesspec.krylov import run, snapshot, snapshot_files
from hesspec.krylov.snapshot import parse_duration

SIZE = 300


class StopError(Exception):
    pass


class Interrupted:
    """An operator that can be multiplied so many times."""

    def __init__(self, matrix, products):
        self._matrix, self.left = matrix, products
        self.shape, self.dtype, self.device = matrix.shape, matrix.dtype, matrix.device

    def __matmul__(self, vectors):
        if not self.left:
            raise StopError
        self.left -= 1
        return self._matrix @ vectors

    def identity(self):
        return {"content": str(float(self._matrix.sum()))}


def matrix(dtype, seed=3):
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64))
    values = torch.cat([torch.linspace(-0.1, 0.1, SIZE - 5), torch.tensor([3.0, 4, 5, 6, 9])]).double()
    found = (q * values) @ q.T
    return ((found + found.T) / 2).to(dtype)


def assert_same(one, other):
    for field in dataclasses.fields(one):
        mine, its = getattr(one, field.name), getattr(other, field.name)
        if isinstance(mine, np.ndarray):
            assert mine.tobytes() == its.tobytes(), field.name
        elif field.name != "attributes":
            assert mine == its, field.name


def finish(operator, folder, products=7, **options):
    """The spectrum of runs of so many products each; and how often it was interrupted."""
    interruptions = 0
    while True:
        try:
            found = hesspec.spectrum(Interrupted(operator, products), snapshot=folder, every=0, **options)
        except StopError:
            interruptions += 1
        else:
            return found, interruptions


@pytest.mark.parametrize(
    ("dtype", "partial"), [(torch.float32, 1), (torch.float64, 1 << 30)], ids=["when it is due", "in every step"]
)
@pytest.mark.parametrize(
    "options",
    [
        {"steps": 40},
        {"steps": 30, "probes": 3},
        {"steps": 60, "basis": "restarted", "memory": 24 * 8 * SIZE},
        {"steps": 60, "basis": "restarted", "memory": 24 * 8 * SIZE, "probes": 2},
        {"steps": 40, "basis": "half", "probes": 2},
        {"steps": 40, "basis": "half", "offload": "disk"},
        {"steps": "auto", "tolerance": 0.2},
    ],
    ids=str,
)
@pytest.mark.few(6)
def test_it_resumes_to_the_same_result_bit_for_bit(tmp_path, monkeypatch, options, dtype, partial):
    monkeypatch.setattr(run, "PARTIAL_FROM", partial)
    operator = matrix(dtype)
    whole = hesspec.spectrum(Interrupted(operator, 10**6), **options)
    found, interruptions = finish(operator, tmp_path / "snapshot", **options)
    assert interruptions >= 2
    assert_same(found, whole)


@pytest.mark.parametrize("error", [StopError, KeyboardInterrupt, SystemExit])
def test_a_callback_that_raises_loses_nothing(tmp_path, error):
    options = {"steps": 60, "basis": "restarted", "memory": 24 * 8 * SIZE, "probes": 2, "snapshot": tmp_path}
    seen: list[int] = []

    def raises(done, _):
        # The first call of a run is for the steps of its snapshot.
        if done > max(seen, default=0) + 5:
            seen.append(done)
            raise error("of the user's own")

    while True:
        try:
            found = hesspec.spectrum(matrix(torch.float64), every=0, on_step=raises, **options)
        except error as raised:
            assert str(raised) == "of the user's own"  # noqa: PT017 - raised at every sixth step
        else:
            break
    # A step is repeated after each, and no more.
    assert np.diff(seen).max() == 6
    assert len(seen) > 10
    del options["snapshot"]
    assert_same(found, hesspec.spectrum(matrix(torch.float64), **options))


def test_many_rows_go_into_files_of_a_limited_size(tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot, "FILE_BYTES", 3 * 4 * SIZE)
    operator, asked = matrix(torch.float32), itertools.count()
    with monkeypatch.context() as late:
        late.setattr(snapshot.Snapshot, "due", lambda _: next(asked) == 10)
        with pytest.raises(StopError):
            hesspec.spectrum(Interrupted(operator, 14), steps=40, snapshot=tmp_path, every=0)
    sizes = [path.stat().st_size for path in tmp_path.glob("rows-*")]
    assert len(sizes) == 4  # of 10 rows
    assert max(sizes) < 4 * 4 * SIZE
    seen = []
    found = hesspec.spectrum(
        Interrupted(operator, 10**6), steps=40, snapshot=tmp_path, every=0, on_step=lambda done, _: seen.append(done)
    )
    assert seen[0] == 10
    assert_same(found, hesspec.spectrum(Interrupted(operator, 10**6), steps=40))


@pytest.mark.parametrize("products", range(6))
def test_it_resumes_from_any_step(tmp_path, products):
    operator = matrix(torch.float32)
    with pytest.raises(StopError):
        hesspec.spectrum(Interrupted(operator, products), steps=20, snapshot=tmp_path, every=0)
    found = hesspec.spectrum(Interrupted(operator, 10**6), steps=20, snapshot=tmp_path, every=0)
    assert_same(found, hesspec.spectrum(Interrupted(operator, 10**6), steps=20))


def test_it_resumes_after_an_invariant_space(tmp_path):
    operator = torch.diag(torch.arange(12.0, dtype=torch.float64) % 4)
    whole = hesspec.spectrum(Interrupted(operator, 10**6), steps=12)
    found, _ = finish(operator, tmp_path / "snapshot", products=3, steps=12)
    assert_same(found, whole)


def problem(seed=0, data_seed=1):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    torch.manual_seed(data_seed)
    data = [(torch.randn(6, 5), torch.arange(6) % 3) for _ in range(2)]
    return model, nn.CrossEntropyLoss(), data


def stop_at(product):
    def stop(done, _):
        if done == product:
            raise StopError

    return stop


def stopped(operator, folder, **options):
    with pytest.raises(StopError):
        hesspec.spectrum(operator, steps=12, snapshot=folder, every=0, on_step=stop_at(6), **options)


@pytest.mark.parametrize(
    ("what", "difference"),
    [
        ("model", "weights"),
        ("data", "data"),
        ("matrix", "matrix is Hessian, but here it is GaussNewton"),
        ("seed", "seed is 0, but here it is 1"),
        ("loss", "loss"),
        ("probes", "number of probes is 1, but here it is 2"),
        ("dtype", "dtype is torch.float32, but here it is torch.float64"),
    ],
)
def test_a_snapshot_of_another_run_is_refused_with_the_difference(tmp_path, what, difference):
    folder = tmp_path / "snapshot"
    model, loss, data = problem()
    stopped(hesspec.Hessian(model, loss, data), folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    if what == "model":
        model = problem(seed=5)[0]
    if what == "data":
        data = problem(data_seed=5)[2]
    if what == "dtype":
        model = model.double()
    loss = nn.CrossEntropyLoss(reduction="sum") if what == "loss" else loss
    build = hesspec.GaussNewton if what == "matrix" else hesspec.Hessian
    options = {"seed": 1} if what == "seed" else {"probes": 2} if what == "probes" else {}
    with pytest.raises(ValueError, match=difference) as caught:
        hesspec.spectrum(build(model, loss, data), steps=12, snapshot=folder, **options)
    assert "Use another folder" in str(caught.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def normalised(activation, variance=1.0):
    model = problem()[0]
    norm = nn.BatchNorm1d(8)
    norm.running_var.fill_(variance)
    return nn.Sequential(model[0], norm, activation, model[2]).eval()


SETTINGS = {
    "activation": (
        lambda data: hesspec.Hessian(normalised(nn.ReLU()), nn.CrossEntropyLoss(), data),
        "network is Sequential [0-9a-f]+, but here it is Sequential",
    ),
    "buffer": (lambda data: hesspec.Hessian(normalised(nn.Tanh(), 9.0), nn.CrossEntropyLoss(), data), "weights"),
    "label smoothing": (
        lambda data: hesspec.Hessian(normalised(nn.Tanh()), nn.CrossEntropyLoss(label_smoothing=0.5), data),
        r"loss is .*label_smoothing=0\.0.*here it is .*label_smoothing=0\.5",
    ),
    "class weights": (
        lambda data: hesspec.Hessian(normalised(nn.Tanh()), nn.CrossEntropyLoss(weight=torch.ones(3)), data),
        "loss is .*here it is .*weight=[0-9a-f]+",
    ),
    "an argument of a partial function": (
        lambda data: hesspec.Hessian(normalised(nn.Tanh()), partial(scaled, factor=2), data),
        r"loss is .*here it is scaled\(factor=2\)",
    ),
}


def scaled(outputs, targets, factor):
    return factor * nn.functional.cross_entropy(outputs, targets)


@pytest.mark.parametrize("changed", SETTINGS)
def test_settings_that_leave_weights_as_they_are_are_told_apart(tmp_path, changed):
    other, difference = SETTINGS[changed]
    data = problem()[2]
    stopped(hesspec.Hessian(normalised(nn.Tanh()), nn.CrossEntropyLoss(), data), tmp_path)
    with pytest.raises(ValueError, match=difference):
        hesspec.spectrum(other(data), steps=12, snapshot=tmp_path)


def test_another_part_of_the_output_curvature_is_another_matrix(tmp_path):
    stopped(hesspec.GaussNewton(*problem()), tmp_path)
    part = hesspec.GaussNewton(*problem(), output_curvature="true-vs-rest")
    with pytest.raises(ValueError, match="output curvature is full, but here it is true-vs-rest"):
        hesspec.spectrum(part, steps=12, snapshot=tmp_path)


def test_a_snapshot_in_another_format_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as before:
        before.setattr(snapshot_files, "VERSION", 2)
        stopped(hesspec.Hessian(*problem()), tmp_path)
    with pytest.raises(
        ValueError, match="has version 2 of the format.*Finish the run with the version of hesspec that started it"
    ):
        hesspec.spectrum(hesspec.Hessian(*problem()), steps=12, snapshot=tmp_path)


def test_the_same_data_in_other_batches_is_the_same_run(tmp_path):
    model, loss, data = problem()
    stopped(hesspec.Hessian(model, loss, data), tmp_path)
    whole = [(torch.cat([x for x, _ in data]), torch.cat([y for _, y in data]))]
    found = hesspec.spectrum(hesspec.Hessian(model, loss, whole), steps=12, snapshot=tmp_path)
    assert found.matvecs == 13


def test_more_steps_resume_where_fewer_ended(tmp_path):
    operator = matrix(torch.float64)
    hesspec.spectrum(Interrupted(operator, 21), steps=20, snapshot=tmp_path, every=0)
    longer = Interrupted(operator, 23)  # one to see that it is the same operator, one that it still is at the end
    found = hesspec.spectrum(longer, steps=40, snapshot=tmp_path, every=0)
    assert_same(found, hesspec.spectrum(Interrupted(operator, 10**6), steps=40))
    assert longer.left == 0  # the 20th vector's product came after the last snapshot


def smoothed(share):
    return lambda outputs, targets: nn.functional.cross_entropy(outputs, targets, label_smoothing=share)


class Activated(nn.Module):
    """Its code, and nothing that it prints, depends on the function."""

    def __init__(self, function):
        super().__init__()
        self.layers = problem()[0]
        self._function = function

    def forward(self, inputs):
        return self.layers[2](self._function(self.layers[0](inputs)))


class Foreign:
    def __init__(self, matrix):
        self._matrix, self.shape, self.dtype, self.device = matrix, matrix.shape, matrix.dtype, matrix.device

    def __matmul__(self, vectors):
        return self._matrix @ vectors


OTHERS = {
    "closure": (
        lambda: hesspec.Hessian(problem()[0], smoothed(0.0), problem()[2]),
        lambda: hesspec.Hessian(problem()[0], smoothed(0.05), problem()[2]),
    ),
    "forward": (
        lambda: hesspec.Hessian(Activated(torch.tanh), *problem()[1:]),
        lambda: hesspec.Hessian(Activated(torch.sigmoid), *problem()[1:]),
    ),
    "foreign": (lambda: Foreign(matrix(torch.float32)), lambda: Foreign(matrix(torch.float32, seed=4))),
}


@pytest.mark.parametrize("partial", [1, 1 << 30], ids=["when it is due", "in every step"])
@pytest.mark.parametrize("what", OTHERS)
def test_an_operator_that_says_the_same_of_itself_is_known_by_its_product(tmp_path, monkeypatch, what, partial):
    monkeypatch.setattr(run, "PARTIAL_FROM", partial)
    one, other = OTHERS[what]
    stopped(one(), tmp_path)
    with pytest.raises(ValueError, match="rounding explains.*the code of the network or of the loss is another one"):
        hesspec.spectrum(other(), steps=12, snapshot=tmp_path)
    assert hesspec.spectrum(one(), steps=12, snapshot=tmp_path).matvecs == 13


@pytest.mark.parametrize("options", [{"steps": 60, "basis": "restarted"}, {"steps": 30, "probes": 2}], ids=str)
@pytest.mark.parametrize("products", [25, 38, 50])
def test_another_operator_is_refused_in_any_phase(tmp_path, options, products):
    options = {**options, "memory": 24 * 8 * SIZE, "snapshot": tmp_path, "every": 0}
    with pytest.raises(StopError):
        hesspec.spectrum(Interrupted(matrix(torch.float64), products), **options)
    other = matrix(torch.float64, seed=4)
    same_words = Interrupted(other, 10**6)
    same_words.identity = Interrupted(matrix(torch.float64), 0).identity
    with pytest.raises(ValueError, match="rounding explains"):
        hesspec.spectrum(same_words, **options)


@pytest.mark.parametrize("partial", [1, 1 << 30], ids=["when it is due", "in every step"])
def test_products_that_round_in_another_way_resume_and_are_part_of_the_bounds(tmp_path, monkeypatch, partial):
    monkeypatch.setattr(run, "PARTIAL_FROM", partial)
    exact = matrix(torch.float64)
    # Rounded to 12 bits, 1.2e-4, where float32 has 24.
    rounded = torch.ldexp((torch.frexp(exact)[0] * 4096).round() / 4096, torch.frexp(exact)[1]).float()
    with pytest.raises(StopError):
        hesspec.spectrum(Foreign(rounded), steps=40, snapshot=tmp_path, every=0, on_step=stop_at(20))
    found = hesspec.spectrum(Foreign(exact.float()), steps=40, snapshot=tmp_path)
    whole = hesspec.spectrum(Foreign(exact.float()), steps=40)
    true = torch.linalg.eigvalsh(exact).numpy()
    assert found.eigenvalues.size >= 5
    for value, bound in zip(found.eigenvalues, found.error_bounds, strict=True):
        assert np.abs(true - value).min() <= bound
    assert whole.error_bounds[0] < found.error_bounds[0] < 1e-3 * found.eigenvalues[0]


@pytest.mark.parametrize(("basis", "share"), [("full", 41 / 40), ("half", 44 / 40)])
def test_it_takes_the_room_of_the_basis_and_of_the_next_vectors(tmp_path, basis, share):
    # "half" has both vectors that the next step needs beside it, in full.
    size = 200_000
    operator = torch.linspace(-1, 1, size)

    class Diagonal:
        shape, dtype, device = (size, size), torch.float32, torch.device("cpu")

        def __matmul__(self, vector):
            return operator * vector

    hesspec.spectrum(Diagonal(), steps=41, basis=basis, snapshot=tmp_path, every=0)
    written = sum(path.stat().st_size for path in tmp_path.iterdir())
    held = 40 * size * (4 if basis == "full" else 2)
    # All else, sketches above all, does not grow with the size.
    assert held * share <= written <= held * share + 1.2e6


def test_a_file_that_is_damaged_is_said(tmp_path):
    stopped(hesspec.Hessian(*problem()), tmp_path)
    rows = next(tmp_path.glob("rows-*"))
    rows.write_bytes(rows.read_bytes()[:20])
    with pytest.raises(ValueError, match="cannot be read: rows-.* has 20 bytes.*use another folder"):
        hesspec.spectrum(hesspec.Hessian(*problem()), steps=12, snapshot=tmp_path)
    (tmp_path / "state.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is not a folder of snapshots.*Use a new or an empty folder"):
        hesspec.spectrum(hesspec.Hessian(*problem()), steps=12, snapshot=tmp_path)


@pytest.mark.parametrize(
    ("given", "seconds"), [("10min", 600), ("30s", 30), ("2h", 7200), ("1.5 h", 5400), (7, 7), (0.5, 0.5), ("45", 45)]
)
def test_durations(given, seconds):
    assert parse_duration(given) == seconds


@pytest.mark.parametrize("given", ["soon", "-3s", -1, True, "10 parsecs", None])
def test_what_is_no_duration_is_refused(given):
    with pytest.raises(ValueError, match='is not a valid duration; give a duration such as "10min"'):
        parse_duration(given)
