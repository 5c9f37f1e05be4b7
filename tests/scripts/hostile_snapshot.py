"""Files that are made to take time or memory, in the place of those of a snapshot; what each ends with.

    python hostile_snapshot.py FOLDER

The process may have so many bytes more than it has when it begins, and so many seconds of a processor.
"""

import hashlib
import json
import re
import resource
import shutil
import struct
import sys
from pathlib import Path

from snapshots import content, forge, resume

from hesspec.krylov.snapshot import STATE

BYTES = 400_000_000
SECONDS = 60


def raw(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def tensors(*entries, metadata=None) -> bytes:
    header = {} if metadata is None else {"__metadata__": metadata}
    header |= {
        f"{i:06}": {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        for i, (dtype, shape, offsets) in enumerate(entries)
    }
    return json.dumps(header).encode()


# In the place of a file.
FILES = {
    "a header of 2^62 bytes": raw(b"{}", length=2**62),
    "a header of a terabyte": raw(b"{}", length=2**40),
    "a header beyond the file": raw(b"{}", length=1000),
    "a header that is no JSON": raw(b"\xff" * 100),
    "a header of 10,000,000 brackets": raw(b"[" * 10_000_000),
    "a header of 2,000,000 objects": raw(b'{"a":' * 2_000_000),
    **{
        f"a header of {count:,} tensors": raw(
            b"{" + b",".join(b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(count)) + b"}"
        )
        for count in (130_000, 250_000)
    },
    "tensors that overlap": raw(tensors(("F32", [60], [0, 240]), ("F32", [60], [120, 360])), bytes(360)),
    "tensors with a hole": raw(tensors(("F32", [60], [0, 240]), ("F32", [60], [480, 720])), bytes(720)),
    "a negative shape": raw(tensors(("F32", [-60], [0, 240])), bytes(240)),
    "a shape beyond all numbers": raw(tensors(("F32", [2**40, 2**40], [0, 240])), bytes(240)),
    "a shape of 2^64": raw(tensors(("F32", [2**64], [0, 240])), bytes(240)),
    "offsets beyond the file": raw(tensors(("F32", [2**40], [0, 2**42])), bytes(240)),
    "offsets that go back": raw(tensors(("F32", [60], [240, 0])), bytes(240)),
    "an unknown dtype": raw(tensors(("F33", [60], [0, 240])), bytes(240)),
    "another dtype": raw(tensors(("I32", [60], [0, 240])), bytes(240)),
    "another shape": raw(tensors(("F32", [10, 6], [0, 240])), bytes(240)),
}
# In the place of the record.
RECORDS = {
    "nested": "[" * 100_000,
    "nested objects": '{"a":' * 100_000,
    "a list": "[]",
    "empty": "{}",
    "an endless number": '{"version": ' + "9" * 1_000_000 + "}",
    "a version that is text": '{"version": "\\u001b[2J"}',
    "long": '{"version": 3, "run": "' + "x" * 8_000_000 + '"}',
}


def listed(change):
    """Change of the entry of the first file in a manifest."""

    def apply(record):
        name = min(record["files"])
        record["files"][name] = {**record["files"][name], **change(record["files"][name])}
        return record

    return apply


def renamed(name):
    def apply(record):
        text = json.dumps(record)
        return json.loads(text.replace(min(record["files"]), name))

    return apply


def nested(record):
    inner = record["state"]["tree"]
    for _ in range(400):
        inner["next"] = {}
        inner = inner["next"]
    return record


# In the manifest.
MANIFESTS = {
    "a name outside": renamed("../../etc/passwd"),
    "a name of another file": renamed("rows-of-table"),
    "an absolute name": renamed("/etc/passwd"),
    "a negative first vector": listed(lambda entry: {"first": -1}),
    "a trillion vectors": listed(lambda entry: {"last": 10**12, "parts": [[0, 60, 240 * 10**12 + 100, "0" * 64]]}),
    "a negative size": listed(lambda entry: {"parts": [[0, 60, -1, "0" * 64]]}),
    "another size": listed(lambda entry: {"parts": [[0, 60, 2**62, "0" * 64]]}),
    "parts that overlap": listed(lambda entry: {"parts": [[0, 60, 320, "0" * 64], [30, 60, 240, "0" * 64]]}),
    "parts that go back": listed(lambda entry: {"parts": [[0, 90, 400, "0" * 64], [90, 60, 300, "0" * 64]]}),
    "no parts": listed(lambda entry: {"parts": []}),
    "100,000 parts": listed(lambda entry: {"parts": [[0, 0, 100, "0" * 64]] * 100_000}),
    "a state nested in itself": nested,
}


def attempt(folder: Path) -> str:
    try:
        resume(folder)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what was found
        return f"{'ValueError' if isinstance(error, ValueError) else type(error).__name__}: {error}"
    return "a spectrum"


def with_file(folder: Path, kind: str, data: bytes) -> None:
    """Put data in the place of a file, with the manifest to it."""
    path = min(folder.glob(f"{kind}*"))
    path.write_bytes(data)
    if kind != "state":
        record, arrays = content(folder)
        entry = record["files"][re.sub(r"\.0\.safetensors$", "", path.name)]
        entry["parts"] = [[0, 60, len(data), hashlib.sha256(data).hexdigest()]]
        forge(folder, record, arrays)


def sparse(folder: Path) -> None:
    """A state of a terabyte that takes no room."""
    record, _ = content(folder)
    metadata = {"hesspec": json.dumps(record), "digest": "0" * 64}
    header = tensors(("F64", [2**37], [0, 2**40]), metadata=metadata)
    path = folder / STATE
    path.write_bytes(raw(header))
    with path.open("r+b") as file:
        file.truncate(8 + len(header) + 2**40)


def main(original: Path) -> None:
    folder = original.with_name("hostile")
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + BYTES, size + BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    cases = {
        f"{kind}: {case}": lambda kind=kind, data=data: with_file(folder, kind, data)
        for kind in ("state", "rows", "vectors")
        for case, data in FILES.items()
    }
    cases |= {
        f"record: {case}": lambda text=text: forge(folder, text, content(folder)[1]) for case, text in RECORDS.items()
    }
    cases |= {
        f"manifest: {case}": lambda change=change: forge(folder, change(content(folder)[0]), content(folder)[1])
        for case, change in MANIFESTS.items()
    }
    cases["state: a terabyte of nothing"] = lambda: sparse(folder)
    found = {}
    for case, make in cases.items():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(original, folder)
        make()
        found[case] = attempt(folder)
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]))
