"""Files and texts that were made to take all memory or time, or to run code: refused with a sentence, within limits."""

import gzip
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from hesspec.study import load_dataset, load_weights, read_metadata
from hesspec.study.study_file import load_study, parse_study

# Of a process, beyond what it has before; and its processor time for all files.
ROOM, SECONDS = 1 << 29, 30

LIMITED = """
import resource, sys, torch
from torch import nn
from hesspec.study import load_dataset, load_weights
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + {room}, size + {room}))
used = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
resource.setrlimit(resource.RLIMIT_CPU, (used + {seconds}, used + {seconds}))
for path in sys.argv[1:]:
    try:
        if path.endswith((".pt", ".ckpt", ".safetensors")):
            load_weights(nn.Linear(2, 3), path)
        else:
            load_dataset("mnist", "train", folder=path)
    except (ValueError, FileNotFoundError) as error:
        print(" ".join(str(error).split()))
    else:
        print("read")
"""


def within_limits(paths: list[Path]) -> list[str]:
    """What reading says of each file, in a process with limits of memory and time."""
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-c", LIMITED.format(room=ROOM, seconds=SECONDS), *paths],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


# Weights --------------------------------------------------------------------------------------------------------------


class Payload:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, ("executed",)


def header(content: object, size: int | None = None, data: bytes = b"") -> bytes:
    """A safetensors file with this header."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def tensor(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


SAFETENSORS: dict[str, bytes] = {
    "a header of gigabytes": header(b"{}", 1 << 40),
    "a header beyond the file": header(b"{}", 1000),
    "a header that is not JSON": header(b"{" * 1000),
    "a header that is nested": header(b'{"a":' * 100_000),
    "tensors that overlap": header({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, data=bytes(12)),
    "a shape of more than there is": header({"a": tensor([1 << 40], 0, 8)}, data=bytes(8)),
    "a shape that overflows": header({"a": tensor([1 << 62, 16], 0, 0)}),
    "a negative shape": header({"a": tensor([-1], 0, 4)}, data=bytes(4)),
    "data that end before they begin": header({"a": tensor([1], 8, 4)}, data=bytes(8)),
    "data beyond the file": header({"a": tensor([2], 0, 8)}),
    "another type": header({"a": tensor([1], 0, 4, dtype="F99")}, data=bytes(4)),
    "nothing": b"",
}


def compressed(path: Path) -> None:
    """Weights in an archive whose parts are compressed: 800 MB of zeros in 4 MB."""
    torch.save({"weight": torch.zeros(3, 2), "bias": torch.zeros(3)}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {part.filename: archive.read(part) for part in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in parts.items():
            archive.writestr(name, content + (bytes(800_000_000) if name.endswith("data/0") else b""))


def with_payload(path: Path) -> None:
    torch.save({"weight": Payload()}, path)


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(Payload()))


def expanded(path: Path) -> None:
    """A tensor of 4 TB over the memory of one number."""
    torch.save({"weight": torch.zeros(1).expand(1 << 40), "bias": torch.zeros(3)}, path)


PT: dict[str, tuple[Callable[[Path], object], str]] = {
    "compressed": (compressed, "it declares more data than it contains"),
    "payload": (with_payload, "contains Python objects other than tensors"),
    "pickle": (pickled, "contains Python objects other than tensors"),
    "expanded": (expanded, "'weight' of shape (1099511627776,) for (3, 2)"),
    "sparse": (lambda path: torch.save({"weight": torch.eye(2).to_sparse()}, path), "torch.sparse_coo"),
    "meta": (lambda path: torch.save({"weight": torch.empty(3, 2, device="meta")}, path), "without values"),
    "complex": (
        lambda path: torch.save({"weight": torch.zeros(3, 2, dtype=torch.complex64), "bias": torch.zeros(3)}, path),
        "complex numbers, whose imaginary parts would be lost, for 'weight'",
    ),
    "truncated": (lambda path: path.write_bytes(path.with_name("compressed.pt").read_bytes()[:200_000]), "damaged"),
}


def test_hostile_weights_are_refused_within_limits_and_run_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths, reasons = [], []
    for number, content in enumerate(SAFETENSORS.values()):
        paths.append(tmp_path / f"{number}.safetensors")
        paths[-1].write_bytes(content)
        reasons.append("is not a safetensors file, or is damaged")
    for name, (write, reason) in PT.items():
        paths.append(tmp_path / f"{name}.pt")
        write(paths[-1])
        reasons.append(reason)
    with_payload(tmp_path / "payload.ckpt")
    paths.append(tmp_path / "payload.ckpt")
    reasons.append("contains Python objects other than tensors")
    os.mkfifo(tmp_path / "pipe.pt")
    paths.append(tmp_path / "pipe.pt")
    reasons.append("There is no file")
    said = within_limits(paths)
    for path, reason, sentence in zip(paths, reasons, said, strict=True):
        assert str(path) in sentence
        assert reason in sentence
    assert not (tmp_path / "executed").exists()


def test_quantised_weights_are_refused(tmp_path):
    with pytest.warns(UserWarning, match="deprecated|quantiz"):
        value = torch.quantize_per_tensor(torch.zeros(3, 2), 0.1, 0, torch.qint8)
    torch.save({"weight": value, "bias": torch.zeros(3)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="a tensor 'weight' that is quantised"):
        load_weights(nn.Linear(2, 3), tmp_path / "a.pt")


def test_metadata_of_hostile_files_is_not_read(tmp_path):
    for content in SAFETENSORS.values():
        (tmp_path / "a.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.safetensors"):
            read_metadata(tmp_path / "a.safetensors")


# Data -----------------------------------------------------------------------------------------------------------------

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def idx(*shape: int) -> bytes:
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


MEMBER = gzip.compress(bytes(1 << 20), 9)


def bomb(header: bytes = b"") -> bytes:
    """A header and a GiB of zeros: a gzip file may have many members, of which one is compressed here."""
    return gzip.compress(header, 9) + MEMBER * (1 << 10)


DATA: dict[str, tuple[str, bytes, str]] = {
    "a bomb": (f"{IMAGES}.gz", bomb(), "is not an IDX file of bytes in 3 dimension(s)"),
    "a bomb behind a header": (
        f"{IMAGES}.gz",
        bomb(idx(10, 28, 28)),
        "announces 7840 bytes of data, and it has more",
    ),
    "an announced bomb": (
        f"{IMAGES}.gz",
        gzip.compress(idx(1 << 20, 1 << 6, 1 << 6) + bytes(100), 9),
        "announces 4294967296 bytes of data, and a file of its size has",
    ),
    "sizes beyond all memory": (IMAGES, idx((1 << 32) - 1, (1 << 32) - 1, (1 << 32) - 1), "a file of its size has 16"),
    "no data": (IMAGES, idx(10, 28, 28), "announces 7840 bytes of data, and a file of its size has 16"),
    "a header alone": (IMAGES, idx(10, 28, 28)[:7], "is not an IDX file"),
    "no gzip file": (f"{IMAGES}.gz", b"\x1f\x8b\x08" + bytes(20), "is not"),
}


def test_hostile_data_sets_are_refused_within_limits(tmp_path):
    folders = []
    for number, (name, content, _) in enumerate(DATA.values()):
        folders.append(tmp_path / str(number))
        folders[-1].mkdir()
        (folders[-1] / name).write_bytes(content)
        (folders[-1] / LABELS).write_bytes(idx(0))
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / IMAGES)
    said = within_limits([*folders, tmp_path / "pipe"])
    for folder, (name, _, reason), sentence in zip(folders, DATA.values(), said, strict=False):
        assert str(folder / name) in sentence
        assert reason in sentence
    assert "is not in" in said[-1]


OWN = """
import torch
def far(split): return [(torch.ones(3), 0), (torch.ones(3), 10**12)]
def beyond(split): return [(torch.ones(3), 0), (torch.ones(3), 10**30)]
"""


def test_a_label_does_not_ask_for_as_many_classes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hs_labels.py").write_text(OWN)
    with pytest.raises(ValueError, match="has a sample of class 1000000000000, and classes are numbered from 0"):
        load_dataset("hs_labels:far", "train")
    with pytest.raises(ValueError, match="has a sample of class 1000000000000000000000000000000,"):
        load_dataset("hs_labels:beyond", "train")


# Study files ----------------------------------------------------------------------------------------------------------

STUDY = """\
datasets: digits
networks: [small_cnn]
samples_per_class: [2]
training: {epochs: 1, learning_rates: 0.1}
measure: {epochs: [0], steps: 2}
"""
LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 10)}]\n" for i in range(8)
)
YAML: dict[str, tuple[str, str]] = {
    "nested aliases": (LAUGHS + STUDY, "stands for more than 100,000 values"),
    "a list of itself": ("datasets: &a [*a]\n", "contains itself"),
    "a mapping of itself": ("&a {datasets: *a}\n", "contains itself"),
    "brackets": ("a: " + "[" * 3000 + "]" * 3000, "nested too deeply"),
    "braces": ("{a: " * 3000 + "}" * 3000, "nested too deeply"),
    "dashes": ("- " * 3000, "nested too deeply"),
    "long": ("# " + "x" * (1 << 20), "characters, but may have at most 1,048,576"),
    "objects": (STUDY + "seeds: !!python/object/apply:os.mkdir ['executed']\n", "not YAML"),
    "names": (STUDY.replace("digits", "!!python/name:os.system"), "not YAML"),
    "digits": (STUDY.replace("[2]", "[" + "9" * 5000 + "]"), "study.yaml"),
    "many seeds": (f"{STUDY}seeds: [{', '.join(map(str, range(9_000)))}]\nx: 1\n", "there is no key 'x'"),
    "many trainings": (
        STUDY.replace("[2]", str(list(range(1, 2000)))) + f"seeds: {list(range(100))}",
        "199,900 trainings",
    ),
    "many rates": (STUDY.replace("0.1", "{low: 1e-3, high: 1, count: 1000000000}"), "less than or equal to 1000"),
    "many epochs": (STUDY.replace("epochs: 1,", "epochs: 100000000000,"), "less than or equal to 1000000"),
    "a seed of more bits": (STUDY + f"seeds: [{2**64}]\n", "less than"),
    "a date that is none": (STUDY.replace("[2]", "[2020-99-99]"), "study.yaml"),
}


@pytest.mark.parametrize(("text", "reason"), YAML.values(), ids=YAML)
def test_hostile_study_files_are_refused_in_time(tmp_path, monkeypatch, text, reason):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"study\.yaml") as raised:
        parse_study(text, "study.yaml")
    assert reason in str(raised.value)
    assert not (tmp_path / "executed").exists()


def test_merge_keys_and_small_aliases_are_read():
    text = "x: &x {epochs: 1}\n" + STUDY.replace("training: {epochs: 1,", "training: {<<: *x,")
    with pytest.raises(ValueError, match="there is no key 'x'"):
        parse_study(text, "study.yaml")
    text = STUDY.replace("[2]", "&n [2]").replace("training", "seeds: *n\ntraining")
    assert parse_study(text, "study.yaml").seeds == [2]


def test_a_pipe_is_not_a_study_file(tmp_path):
    os.mkfifo(tmp_path / "study.yaml")
    with pytest.raises(FileNotFoundError, match="There is no study file"):
        load_study(tmp_path / "study.yaml")
