"""Writing where there is no room, no right or no folder: a sentence, nothing half-written, and what was there stays."""

import errno
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import hesspec
from hesspec.backend.files import atomic_path, write_bytes, writing_failed
from hesspec.backend.text import in_words
from hesspec.spectra.spectrum import Spectrum


@pytest.fixture
def small_files() -> Iterator[None]:
    """Files of this process may have 8 kB: writing on fails, as where a quota or a disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(  # noqa: S603 - of this test
        ["/bin/mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["/bin/umount", folder], check=True)  # noqa: S603 - as above


def only(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def size(tmp_path_factory, spectrum) -> str:
    """How long the file of the spectrum is, as text."""
    path = tmp_path_factory.mktemp("whole") / "a.nc"
    spectrum().save(path)
    return in_words(path.stat().st_size)


def test_a_result_that_does_not_fit_leaves_the_one_before(tmp_path, spectrum, size, small_files):
    del small_files  # which comes after the size
    path = tmp_path / "a.nc"
    path.write_bytes(b"before")
    with pytest.raises(OSError, match="it exceeds the largest file size") as raised:
        spectrum().save(path)
    assert raised.value.errno == errno.EFBIG
    assert f"cannot be written to the folder {str(tmp_path)!r}" in str(raised.value)
    assert f" The file needs {size}; " in str(raised.value)
    assert " are free there." in str(raised.value)
    assert path.read_bytes() == b"before"
    assert only(tmp_path) == ["a.nc"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk_leaves_what_was_there_and_the_process_alive(small_disk, spectrum, size):
    for number in range(10):
        try:
            spectrum().save(small_disk / f"{number}.nc")
        except OSError as error:
            said = str(error)
            break
    assert f"there is no space left. The file needs {size}; " in said
    assert " are free there." in said
    assert only(small_disk) == [f"{before}.nc" for before in range(number)]
    for name in only(small_disk):
        hesspec.load(small_disk / name)


def test_a_file_system_that_can_only_be_read(tmp_path, spectrum, monkeypatch):
    def refused(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.mkstemp", refused)
    with pytest.raises(OSError, match="'a.nc' cannot be written to the folder .*: the file system is read-only"):
        spectrum().save(tmp_path / "a.nc")


def test_a_folder_that_goes_while_a_file_is_written(tmp_path):
    def write() -> None:
        with atomic_path(tmp_path / "new" / "a.txt") as temporary:
            temporary.write_text("x")
            shutil.rmtree(tmp_path / "new")

    with pytest.raises(FileNotFoundError, match=r"the folder does not exist\.$"):
        write()
    assert only(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "kind", "reason"),
    [
        (errno.ENOSPC, OSError, "there is no space left. The file needs 1.5 MB; "),
        (errno.EDQUOT, OSError, "your quota of disk space is used up. The file needs 1.5 MB; "),
        (errno.EACCES, PermissionError, "it may not be written to. The file needs 1.5 MB."),
        (errno.EIO, OSError, "input/output error. The file needs 1.5 MB; "),
    ],
)
def test_each_error_of_the_system_is_a_sentence_of_its_own_kind(tmp_path, number, kind, reason):
    error = writing_failed(tmp_path / "a.nc", number, 1_500_000)
    assert type(error) is kind
    assert error.errno == number
    assert reason in str(error)


@pytest.mark.parametrize(
    "name", ["a b.nc", "a\nb.nc", "ä" * 120 + ".nc", "x" * 252 + ".nc", "'\"`$(id).nc", "<script>.nc"]
)
def test_any_name_that_a_file_system_takes(tmp_path, spectrum, name):
    spectrum().save(tmp_path / name)
    assert only(tmp_path) == [name]
    hesspec.load(tmp_path / name)


def test_a_name_that_is_too_long_is_said_to_be(tmp_path):
    with pytest.raises(OSError, match="the name is too long"):
        write_bytes(tmp_path / ("x" * 300), b"")
    assert only(tmp_path) == []


def test_a_link_in_the_place_of_the_file_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "theirs").write_bytes(b"theirs")
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    write_bytes(tmp_path / "link", b"ours")
    assert (tmp_path / "theirs").read_bytes() == b"theirs"
    assert not (tmp_path / "link").is_symlink()


def test_a_file_is_as_readable_as_others(tmp_path):
    before = os.umask(0o027)
    write_bytes(tmp_path / "a", b"")
    os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def without_links(*_: object, **__: object) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("links", [True, False])
def test_of_many_that_write_one_new_file_one_does(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr("os.link", without_links)
    begin, errors = threading.Barrier(8), []

    def write(number: int) -> None:
        begin.wait()
        try:
            write_bytes(tmp_path / "a", str(number).encode() * 10_000, overwrite=False)
        except FileExistsError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 7
    assert all("was written by another process meanwhile, and was not replaced" in error for error in errors)
    assert (tmp_path / "a").read_bytes() in {str(number).encode() * 10_000 for number in range(8)}
    assert only(tmp_path) == ["a"]


def test_a_result_that_is_there_is_not_replaced_where_that_is_asked_for(tmp_path, spectrum: Callable[..., Spectrum]):
    spectrum(note="first").save(tmp_path / "a.nc", overwrite=False)
    with pytest.raises(FileExistsError, match=r"a\.nc' was written by another"):
        spectrum(note="second").save(tmp_path / "a.nc", overwrite=False)
    assert hesspec.load(tmp_path / "a.nc").attributes["note"] == "first"
    (tmp_path / "link.nc").symlink_to(tmp_path / "nowhere.nc")
    with pytest.raises(FileExistsError):
        spectrum().save(tmp_path / "link.nc", overwrite=False)
    assert only(tmp_path) == ["a.nc", "link.nc"]


KILLED = """
import os, signal, sys
from pathlib import Path
from hesspec.backend.files import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_that_is_killed_leaves_the_file_before(tmp_path):
    (tmp_path / "a.nc").write_bytes(b"before")
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "a.nc"], check=False)  # noqa: S603 - as above
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "a.nc").read_bytes() == b"before"
