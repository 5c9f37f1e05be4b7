"""Snapshots of somebody else: nothing in them is run, and what is damaged or hostile is refused with a sentence."""

import _pickle
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from snapshots import PHASES, RUNS, content, forge, interrupt, resume, same, state

from hesspec.krylov import snapshot_reader
from hesspec.krylov.snapshot import STATE

REFUSED = "The snapshot in|is not a folder of snapshots"


@pytest.fixture(params=list(zip(RUNS, PHASES, strict=True)), ids=list(RUNS))
def run(request):
    """The name of a run, which is interrupted in each of its phases."""
    return request.param


@pytest.fixture
def pickles_forbidden(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("something was unpickled")

    for module, name in [
        *((pickle, name) for name in ("load", "loads", "Unpickler")),
        *((_pickle, name) for name in ("load", "loads", "Unpickler")),
        *((torch, name) for name in ("load",)),
        *((np, name) for name in ("load",)),
    ]:
        monkeypatch.setattr(module, name, refuse)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_is_unpickled(tmp_path, run, dtype, pickles_forbidden):
    name, phase = run
    interrupt(tmp_path, name, dtype)
    assert content(tmp_path)[0]["state"]["tree"]["phase"] == phase
    assert resume(tmp_path, name, dtype).norm == pytest.approx(9, rel=0.1)


class Payload:
    """Whoever unpickles this makes a file."""

    def __init__(self, mark):
        self._mark = mark

    def __reduce__(self):
        return Path.touch, (self._mark,)


def as_folder(path, mark):
    path.unlink()
    path.mkdir()
    (path / ".metadata").write_bytes(pickle.dumps(Payload(mark)))


def as_link(path, mark):
    elsewhere = mark.with_name("elsewhere")
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def as_pipe(path, mark):
    path.unlink()
    os.mkfifo(path)


def as_loop(path, mark):
    path.unlink()
    path.symlink_to(path.name)


REPLACED = {
    "a folder with a pickle": as_folder,
    "a pickle": lambda path, mark: path.write_bytes(pickle.dumps(Payload(mark))),
    "a pickle of PyTorch": lambda path, mark: torch.save({"a": Payload(mark)}, path),
    "a link": as_link,
    "a link to itself": as_loop,
    "a pipe": as_pipe,
    "nothing": lambda path, mark: path.unlink(),
    "an empty file": lambda path, mark: path.write_bytes(b""),
    "half of it": lambda path, mark: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "more than it": lambda path, mark: path.write_bytes(path.read_bytes() + b"\0"),
}


@pytest.mark.parametrize("kind", ["state", "rows", "vectors"])
@pytest.mark.parametrize("what", REPLACED)
def test_something_in_the_place_of_a_file_is_refused_and_not_run(tmp_path, kind, what):
    folder, mark = tmp_path / "snapshot", tmp_path / "mark"
    interrupt(folder)
    REPLACED[what](next(folder.glob(f"{kind}*")), mark)
    before = sorted(path.name for path in folder.rglob("*"))
    with pytest.raises(ValueError, match=REFUSED):
        resume(folder)
    assert not mark.exists()
    assert sorted(path.name for path in folder.rglob("*")) == before


def test_files_that_are_exchanged_are_refused(tmp_path):
    interrupt(tmp_path)
    one, other, *_ = sorted(tmp_path.glob("rows-*"))
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    with pytest.raises(ValueError, match="is damaged"):
        resume(tmp_path)


@pytest.mark.long
def test_a_bit_that_is_flipped_anywhere_is_seen(tmp_path):
    interrupt(tmp_path, "several probes")
    identity = content(tmp_path)[0]["identity"]
    expected, harmless = state(tmp_path, identity), 0
    for kind in ("state", "rows", "vectors"):
        path = next(tmp_path.glob(f"{kind}*"))
        whole = path.read_bytes()
        # The beginning, where a header begins, and some of the rest.
        places = [*range(100), *range(100, len(whole), len(whole) // 150 + 1)]
        for place in places:
            changed = bytearray(whole)
            changed[place] ^= 1 << place % 8
            path.write_bytes(changed)
            try:
                found = state(tmp_path, identity)
            except ValueError:
                continue
            assert same(found, expected)
            harmless += 1
        path.write_bytes(whole)
    assert same(state(tmp_path, identity), expected)
    # Spaces that pad a header may become other white space.
    assert harmless <= 8


def leaves(value, path=()):
    """Paths to all values in a record, and to the first of each list."""
    yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for name, entry in entries:
        yield from leaves(entry, (*path, name))


def replaced(record, path, value):
    if not path:
        return value
    changed = json.loads(json.dumps(record))
    inner = changed
    for name in path[:-1]:
        inner = inner[name]
    if value is Ellipsis:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return changed


OTHERS = [None, "x", -1, 10**9, 1e300, [], {}, True, ..., [[]], 0]


def assert_refused_or_run(folder, run, record, arrays):
    forge(folder, record, arrays)
    said = None
    try:
        resume(folder, run)
    except (ValueError, MemoryError) as error:
        said = str(error)
    # Numbers that a run may have, and that are not those of this operator, are found by what it multiplies.
    starts = "The snapshot in", repr(str(folder)), "The operator is not"
    assert said is None or said.startswith(starts), said
    return said is not None


@pytest.mark.parametrize("run", ["full", "several probes"])
@pytest.mark.few(1)
def test_a_record_that_was_tampered_with_is_refused_or_does_no_harm(tmp_path, run):
    interrupt(tmp_path, run)
    record, arrays = content(tmp_path)
    paths = list(leaves(record))
    refused = sum(
        assert_refused_or_run(tmp_path, run, replaced(record, path, OTHERS[1:][i % 10] if path else []), arrays)
        for i, path in enumerate(paths)
    )
    # Others are values that say the same, or that a run may have.
    assert refused > 0.8 * len(paths)


@pytest.mark.hours
@pytest.mark.parametrize("run", RUNS)
def test_no_change_of_a_record_ends_in_anything_else(tmp_path, run):
    interrupt(tmp_path, run)
    record, arrays = content(tmp_path)
    for path in leaves(record):
        for other in OTHERS:
            if path or other is not Ellipsis:
                assert_refused_or_run(tmp_path, run, replaced(record, path, other), arrays)


def test_text_of_others_does_nothing_to_a_terminal(tmp_path):
    interrupt(tmp_path)
    record, arrays = content(tmp_path)
    record["identity"]["seed"] = "\x1b]0;owned\x07\x1b[2J" + "x" * 10_000
    forge(tmp_path, record, arrays)
    with pytest.raises(ValueError, match="belongs to another run: its seed is") as caught:
        resume(tmp_path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_a_basis_that_does_not_fit_is_refused_before_it_is_read(tmp_path, monkeypatch):
    interrupt(tmp_path)
    monkeypatch.setattr(snapshot_reader, "free_memory", lambda _: 1000)
    with pytest.raises(
        MemoryError, match=r"basis of 5 vectors of 60 numbers, stored as 'full', which needs 1.2 kB; 1 kB"
    ):
        resume(tmp_path)


def test_hostile_files_are_refused_in_little_memory(tmp_path):
    for run in ("full", "several probes"):
        interrupt(tmp_path / run, run)
    script = Path(__file__).parents[1] / "scripts" / "hostile_snapshot.py"
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(script.parents[1] / "helpers"), *sys.path]),
    }
    ended = subprocess.run(  # noqa: S603 - this very Python and a script of the tests
        [sys.executable, script, tmp_path / "full"], capture_output=True, text=True, check=False, env=environment
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert len(found) >= 30
    wrong = {case: said for case, said in found.items() if not said.startswith("ValueError: ")}
    assert not wrong
    assert all("snapshot" in said for said in found.values())


def test_a_state_of_another_program_is_neither_read_nor_replaced(tmp_path):
    weights = {"weight": torch.ones(3)}
    from safetensors.torch import save_file  # noqa: PLC0415 - here only

    save_file(weights, tmp_path / STATE)
    before = (tmp_path / STATE).read_bytes()
    with pytest.raises(ValueError, match="is not a folder of snapshots: state.safetensors in it is not one"):
        resume(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {STATE: before}
    shutil.rmtree(tmp_path)
