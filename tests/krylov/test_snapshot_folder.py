"""The folder of a snapshot: what is in it of others stays, one run at a time uses it, and nothing is left in it."""

import errno
import fcntl
import logging
import os
import re
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from snapshots import StopError, content, interrupt, operator, resume, stop_at

import hesspec
from hesspec.backend.file_lock import FileLock
from hesspec.krylov.snapshot import STATE, remove_snapshot
from hesspec.krylov.snapshot_files import LOCK, read_record

# Names that begin as those of a snapshot do, or are of its form with the tokens of another run.
NAMES = [
    *("state-dict.pt", "vectors-of-words.npy", "rows-of-table.csv", "notes.txt", "state", ".state-abc.safetensors"),
    *("rows-000001-000000.safetensors", "vectors-000001.safetensors", "snapshot.json", "command.json", "rows-1"),
    *("rows-0123456789ab-0123456789ab-000000.0.safetensors", ".state-0123456789ab-0123456789ab.safetensors"),
]


def fill(folder):
    """Put files of others into a folder."""
    for name in NAMES:
        (folder / name).write_text(f"my {name}")
    (folder / "vectors-2026" / "chapters").mkdir(parents=True)
    (folder / "vectors-2026" / "chapters" / "one.tex").write_text("mine")
    outside = folder.with_name("outside")
    outside.mkdir()
    (outside / "photo.jpg").write_text("mine")
    (folder / "rows-link").symlink_to(outside)
    (folder / "vectors-dangling").symlink_to("nowhere")


def everything(folder):
    """What is in a folder and below it, links and their targets included."""
    return {
        str(path.relative_to(folder)): path.readlink() if path.is_symlink() else path.read_bytes()
        for top in (folder, folder.with_name("outside"))
        for path in top.rglob("*")
        if path.is_symlink() or path.is_file()
        for folder in (top,)
    }


def test_a_folder_of_others_is_refused_and_left_as_it_is(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    fill(folder)
    before = everything(folder)
    for action in (lambda: resume(folder), lambda: remove_snapshot(folder)):
        with pytest.raises(ValueError, match=r"is not a folder of snapshots: it contains '\.state-.*' and \d+ more"):
            action()
        assert everything(folder) == before


@pytest.mark.parametrize("name", NAMES)
def test_one_file_of_others_is_enough_to_refuse_a_folder(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(
        ValueError, match=f"it contains {re.escape(repr(name))}, but no snapshot. Use a new or an empty"
    ):
        resume(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: "mine"}


def test_files_of_others_beside_a_snapshot_stay_to_the_end(tmp_path):
    folder = tmp_path / "folder"
    interrupt(folder)
    fill(folder)
    own = {STATE, *read_record(folder).files}
    before = {name: kept for name, kept in everything(folder).items() if name not in own}
    hesspec.spectrum(operator(), steps=14, snapshot=folder, every=0)
    after = read_record(folder).files
    assert {name: kept for name, kept in everything(folder).items() if name not in {STATE, *after}} == before
    remove_snapshot(folder)
    assert everything(folder) == before


def test_a_link_in_the_place_of_a_file_is_removed_and_its_target_stays(tmp_path):
    folder, target = tmp_path / "folder", tmp_path / "target"
    interrupt(folder)
    target.write_text("mine")
    listed = folder / min(read_record(folder).files)
    listed.unlink()
    listed.symlink_to(target)
    remove_snapshot(folder)
    assert target.read_text() == "mine"
    assert not folder.exists()


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    for action in (resume, remove_snapshot):
        with pytest.raises(NotADirectoryError, match="'.*file' is a file, but snapshots need a folder"):
            action(tmp_path / "file")


def test_a_folder_that_is_empty_or_new_is_taken(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "new" / "below"):
        interrupt(folder)
        assert (folder / STATE).is_file()
        resume(folder)


def test_a_run_that_writes_nothing_leaves_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "new"):
        seen = []
        hesspec.spectrum(
            operator(),
            steps=5,
            snapshot=folder,
            every="1h",
            on_step=lambda _, __, seen=seen, folder=folder: seen.append(sorted(p.name for p in folder.iterdir())),
        )
        assert seen == [[LOCK]] * 5
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    assert not list((tmp_path / "empty").iterdir())
    remove_snapshot(tmp_path / "new")


# Locks ----------------------------------------------------------------------------------------------------------------


def test_a_second_run_in_the_folder_is_refused_at_once(tmp_path):
    refused = []

    def second(done, _):
        for action in (lambda: resume(tmp_path), lambda: remove_snapshot(tmp_path)):
            with pytest.raises(BlockingIOError, match="Another run uses the snapshots in") as caught:
                action()
            refused.append(str(caught.value))

    hesspec.spectrum(operator(), steps=6, snapshot=tmp_path, every=0, on_step=second)
    assert len(refused) == 12
    assert all(f"is locked by process {os.getpid()}. Wait until it ends, or use another folder" in s for s in refused)
    assert resume(tmp_path).steps == 14


def in_child(action):
    """Run an action in a forked child, which then ends without a word; its exit status."""
    process = os.fork()
    if process == 0:
        try:
            action()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(process, 0)[1]


def test_a_lock_ends_with_its_process(tmp_path):
    path = tmp_path / LOCK
    assert in_child(lambda: FileLock(path).leave({"run": "abc"})) == 0
    lock = FileLock(path)
    assert lock.note["run"] == "abc"
    assert lock.note["pid"] != os.getpid()
    # A child does not get it, and forgets the one of its parent without giving it up.
    assert in_child(lambda: FileLock(path)) != 0
    with pytest.raises(BlockingIOError):
        FileLock(path)
    lock.release()
    assert not path.exists()
    FileLock(path).release()


def test_a_child_that_outlives_its_parent_does_not_hold_its_lock(tmp_path):
    path = tmp_path / LOCK
    lock = FileLock(path)
    read, write = os.pipe()
    begun, begin = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write)
        os.write(begin, b".")
        os.read(read, 1)  # until the parent is done
        os._exit(0)
    os.read(begun, 1)
    lock.close()
    FileLock(path).release()
    os.close(write)
    assert os.waitpid(child, 0)[1] == 0
    for end in (read, begun, begin):
        os.close(end)


def test_a_lock_that_was_removed_while_it_was_waited_for_is_not_taken(tmp_path, monkeypatch):
    path, flock, left = tmp_path / LOCK, fcntl.flock, [1]

    def late(file, operation):
        if left:
            left.pop()
            path.unlink()  # as the holder before does in its end
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    lock = FileLock(path)
    assert os.path.samestat(os.fstat(lock._file), path.stat())
    lock.release()


@pytest.mark.parametrize("text", ["mine", "[1]", "\n", "[" * 3000])
def test_a_file_of_others_is_not_taken_for_a_lock(tmp_path, text):
    (tmp_path / LOCK).write_text(text)
    with pytest.raises(ValueError, match="is not a lock file of hesspec"):
        resume(tmp_path)
    assert (tmp_path / LOCK).read_text() == text


@pytest.mark.parametrize("what", ["a pipe", "a link", "a folder"])
def test_something_else_in_the_place_of_the_lock_is_refused(tmp_path, what):
    folder, lock = tmp_path / "folder", tmp_path / "folder" / LOCK
    interrupt(folder)
    if what == "a pipe":
        os.mkfifo(lock)
    elif what == "a link":
        lock.symlink_to(tmp_path / "elsewhere")
    else:
        lock.mkdir()
    with pytest.raises((ValueError, OSError), match="is not a lock file of hesspec|cannot be written to"):
        resume(folder)
    assert not (tmp_path / "elsewhere").exists()


@contextmanager
def without_locks(monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", flock)
        yield


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog):
    with without_locks(monkeypatch), caplog.at_level(logging.WARNING):
        interrupt(tmp_path)
        resume(tmp_path)
    assert [record.message for record in caplog.records] == [
        (
            f"The file system of {tmp_path} has no locks (No locks available): "
            "make sure that no other run uses this folder."
        )
    ] * 2


@pytest.mark.parametrize("first", ["before any snapshot", "after a snapshot"])
def test_without_locks_two_runs_do_not_mix(tmp_path, monkeypatch, first):
    """The one that finds the other's snapshot in the place of its own ends, and the other's is whole."""
    one, other = operator(), operator() + torch.eye(60)
    folder = tmp_path / "folder"

    def begin(done, _):
        if done == 5:
            if first == "after a snapshot":
                # As a process that looked before there was one.
                shutil.move(folder, tmp_path / "away")
            with pytest.raises(StopError):
                hesspec.spectrum(other, steps=14, snapshot=folder, every=0, on_step=stop_at(8))

    every = iter([False] * 5 + [True] * 100) if first == "before any snapshot" else iter([True] * 100)
    with without_locks(monkeypatch):
        monkeypatch.setattr(hesspec.krylov.snapshot.Snapshot, "due", lambda self: next(every, True))
        with pytest.raises(OSError, match="was changed or removed by another process while this run used it"):
            hesspec.spectrum(one, steps=14, snapshot=folder, on_step=begin)
        found = hesspec.spectrum(other, steps=14, snapshot=folder)
    assert np.array_equal(found.ritz_values, hesspec.spectrum(other, steps=14).ritz_values)


# Disks that are full, and folders that go ----------------------------------------------------------------------------


@contextmanager
def files_of_at_most(size):
    """A limit for this process, which stands for a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Diagonal:
    """An operator whose vectors have 400 kB."""

    shape, dtype, device = (100_000, 100_000), torch.float32, torch.device("cpu")

    def __matmul__(self, vectors):
        diagonal = torch.linspace(-1, 1, 100_000)
        return diagonal * vectors


def clean(folder):
    """Whether nothing is in a folder but a snapshot."""
    return {path.name for path in folder.iterdir()} == {STATE, *read_record(folder).files}


def test_a_full_disk_leaves_the_snapshot_before(tmp_path):
    whole = hesspec.spectrum(Diagonal(), steps=8)
    with pytest.raises(StopError):
        hesspec.spectrum(Diagonal(), steps=8, snapshot=tmp_path, every=0, on_step=stop_at(4))
    before = read_record(tmp_path).files
    with files_of_at_most(300_000), pytest.raises(OSError, match="File too large") as caught:
        hesspec.spectrum(Diagonal(), steps=8, snapshot=tmp_path, every=0)
    said = (
        rf"{str(tmp_path)!r} cannot be written to: File too large. The file needs 400 kB, and [\d.,]+ [GMk]?B are free."
    )
    assert re.fullmatch(rf"{said} The previous snapshot is unharmed\.", str(caught.value))
    assert caught.value.errno == errno.EFBIG
    assert read_record(tmp_path).files == before
    assert clean(tmp_path)
    found = hesspec.spectrum(Diagonal(), steps=8, snapshot=tmp_path)
    assert np.array_equal(found.ritz_values, whole.ritz_values)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("call", range(7))
def test_an_error_of_the_disk_at_any_time_is_a_sentence(tmp_path, monkeypatch, number, call):
    """In each of the calls that put a file or a name onto the disk: four without new rows, then five."""
    interrupt(tmp_path)
    fsync, calls = os.fsync, []

    def failing(handle):
        calls.append(handle)
        if len(calls) == call + 1:
            raise OSError(number, os.strerror(number))
        fsync(handle)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", failing)
        with pytest.raises(OSError, match=f"cannot be written to: {os.strerror(number)}") as caught:
            hesspec.spectrum(operator(), steps=14, snapshot=tmp_path, every=0)
    assert "The previous snapshot is unharmed." in str(caught.value)
    # In the fourth the new state has its name already, and what the one before listed stays until it is known to be on
    # the disk: the next run removes it.
    assert clean(tmp_path) == (call != 3)
    assert resume(tmp_path).steps == 14
    assert clean(tmp_path)


def test_a_folder_that_is_removed_while_it_is_used_is_named(tmp_path):
    folder = tmp_path / "folder"

    def remove(done, _):
        if done == 4:
            shutil.rmtree(folder)

    with pytest.raises(OSError, match=f"{str(folder)!r} cannot be written to: .*. The folder does not exist"):
        hesspec.spectrum(operator(), steps=14, snapshot=folder, every=0, on_step=remove)
    assert not folder.exists()


def test_a_folder_that_cannot_be_made_is_named():
    with pytest.raises(OSError, match="'/proc/nowhere/snapshot' cannot be written to"):
        resume("/proc/nowhere/snapshot")


def test_a_basis_on_a_full_disk_is_a_sentence():
    with (
        files_of_at_most(1_000_000),
        pytest.raises(OSError, match="Krylov basis on disk needs another 6.4 MB, but only"),
    ):
        hesspec.spectrum(Diagonal(), steps=20, basis="full", offload="disk")


def test_a_basis_on_disk_has_its_room_from_the_beginning(monkeypatch):
    from_file, rooms = torch.from_file, []

    def seen(name, **options):
        rooms.append(Path(name).stat().st_blocks * 512)
        return from_file(name, **options)

    monkeypatch.setattr(torch, "from_file", seen)
    hesspec.spectrum(Diagonal(), steps=3, basis="half", offload="disk")
    assert rooms
    assert min(rooms) >= 3 * 200_000


def test_the_record_of_files_is_all_that_a_snapshot_has(tmp_path):
    interrupt(tmp_path)
    record, _ = content(tmp_path)
    for entry in record["files"].values():
        assert set(entry) == {"first", "last", "dtype", "parts"}
    assert clean(tmp_path)
