"""The record of an interrupted command, and the folder that it lies in."""

import json
import os

import pytest

from hesspec.backend.file_lock import FileLock
from hesspec.cli.command_record import RECORD, UNFINISHED, CommandRecord
from hesspec.krylov.snapshot_files import LOCK

COMMAND = {"NETWORK": "small_cnn", "--seed": "0"}


def test_results_of_an_interrupted_command_are_known_and_nothing_is_left_of_a_finished_one(tmp_path):
    folder = tmp_path / "folder"
    with CommandRecord(folder, COMMAND) as first:
        assert first.results() == []
        first.begin(["Hessian"])
    with CommandRecord(folder, COMMAND) as second:
        assert second.results() == ["Hessian"]
        second.begin(["GaussNewton"])
        assert second.results() == ["GaussNewton", "Hessian"]
    assert second.end() == []
    assert not folder.exists()


def test_a_folder_of_others_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / "photo.jpg").write_text("mine")
    (tmp_path / "more").mkdir()
    message = "is not a folder of snapshots: it contains 'more' and 1 more. Choose a new or"
    with CommandRecord(tmp_path, COMMAND) as record, pytest.raises(ValueError, match=message):
        record.begin(["Hessian"])
    assert {path.name for path in tmp_path.iterdir()} == {"photo.jpg", "more"}


def test_a_second_command_in_the_folder_is_refused_at_once(tmp_path):
    with CommandRecord(tmp_path, COMMAND) as first:
        first.begin(["Hessian"])
        message = "Another command is using the snapshots in .* Wait until it ends"
        with CommandRecord(tmp_path, COMMAND) as second, pytest.raises(BlockingIOError, match=message):
            second.begin(["Hessian"])
        # The lock is still that of the first.
        with pytest.raises(BlockingIOError):
            FileLock(tmp_path / LOCK)
    with CommandRecord(tmp_path, COMMAND) as third:
        third.begin(["Hessian"])


@pytest.mark.parametrize("left", ["a file", "a link"])
def test_what_a_killed_command_has_left_does_not_stay(tmp_path, left):
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    outside.write_text("mine")
    with CommandRecord(folder, COMMAND) as record:
        record.begin(["Hessian"])
    if left == "a file":
        (folder / UNFINISHED).write_text("{")
    else:
        (folder / UNFINISHED).symlink_to(outside)
    (folder / LOCK).write_text("")
    with CommandRecord(folder, COMMAND) as record:
        record.begin(["GaussNewton"])
        assert record.results() == ["GaussNewton", "Hessian"]
    assert record.end() == []
    assert not folder.exists()
    assert outside.read_text() == "mine"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nothing",
        "[]",
        "{}",
        "[" * 100_000,
        '{"command": 1, "results": []}',
        json.dumps({"command": {}}),
        " " * 2**21,
    ],
    ids=lambda text: text[:12],
)
def test_a_record_that_is_none_is_refused(tmp_path, text):
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(ValueError, match="of an interrupted command cannot be read: .*Choose another folder"):
        CommandRecord(tmp_path, COMMAND).results()


def test_text_of_others_does_nothing_to_a_terminal(tmp_path):
    (tmp_path / RECORD).write_text(json.dumps({"command": {"--seed": "\x1b[2J" + "x" * 9999}, "results": []}))
    with pytest.raises(ValueError, match="belong to a different command") as caught:
        CommandRecord(tmp_path, COMMAND).results()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("what", ["a pipe", "a link", "a folder"])
def test_something_else_in_the_place_of_a_record_is_refused_and_stays(tmp_path, what):
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    folder.mkdir()
    outside.write_text(json.dumps({"command": COMMAND, "results": []}))
    if what == "a pipe":
        os.mkfifo(folder / RECORD)
    elif what == "a link":
        (folder / RECORD).symlink_to(outside)
    else:
        (folder / RECORD).mkdir()
    with CommandRecord(folder, COMMAND) as record:
        for action in (record.results, lambda: record.begin(["Hessian"])):
            with pytest.raises(ValueError, match="cannot be read: command.json is (a link|not a regular file)"):
                action()
    assert [path.name for path in folder.iterdir()] == [RECORD]
