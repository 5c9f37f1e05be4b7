"""Writing of safetensors files, with errors that say what to do."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, Final

import safetensors
import torch
from torch import Tensor

from hesspec.backend.memory import in_words

__all__ = ["DIGEST", "DTYPES", "bytes_of", "digest_of", "write", "writing"]

DTYPES: Final = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of dtypes in a file."""

# SHA-256, which most processors compute in hardware: 1.4 GB/s on one core of an AMD EPYC, where BLAKE2b took twice as
# long. It runs in parallel with writing, which takes longer.
DIGEST: Final = "sha256"
# Pattern of system errors, which concern the disk rather than the request.
OS_ERROR: Final = re.compile(r"\(os error (\d+)\)")


def write(file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """Write tensors in the safetensors format.

    The library's own `save_file` writes to a temporary file with an arbitrary name, which could not be identified after
    the process was killed, and reports a full disk as an error that is not an `OSError`.

    Parameters
    ----------
    file : binary file
        Empty file, open for writing.
    tensors : mapping of str to Tensor
        Tensors on any device.
    metadata : mapping of str to str, optional
        Metadata of the file.

    Returns
    -------
    str
        Digest of the file's bytes, as from `digest_of`.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    # Larger dtypes first, so that each number is aligned to its size, as readers that map the file expect.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    content, end = [], 0
    for name, tensor in ordered:
        content.append(bytes_of(tensor))
        begin, end = end, end + content[-1].nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    blocks = [memoryview(struct.pack("<Q", len(text)) + text), *content]
    # Both release the interpreter's lock.
    with ThreadPoolExecutor(1) as beside:
        digest = beside.submit(_digest, blocks)
        file.writelines(blocks)
        return digest.result()


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the numbers of a tensor as bytes, in row-major order."""
    # An empty tensor may have strides that are invalid for bytes.
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def _digest(blocks: list[memoryview]) -> str:
    found = hashlib.new(DIGEST)
    for block in blocks:
        found.update(block)
    return found.hexdigest()


def digest_of(file: BufferedReader) -> str:
    """Compute the digest of the bytes of a file from its current position."""
    return hashlib.file_digest(file, DIGEST).hexdigest()


@contextmanager
def writing(folder: str | os.PathLike[str], size: int | None = None, *, after: str = "") -> Iterator[None]:
    """Convert errors of writing a file to an `OSError` that names folder, size and free space.

    This includes errors of safetensors, which are not `OSError`.

    Parameters
    ----------
    folder : path
        Folder of the file.
    size : int, optional
        Size of the file in bytes, if it matters.
    after : str
        Final sentence if the folder exists: the state of existing files, or advice.
    """
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        number = error.errno if isinstance(error, OSError) else next(map(int, OS_ERROR.findall(str(error))), None)
        cause = str(error) if number is None else os.strerror(number)
        room = "" if size is None else _room(folder, size)
        if not Path(folder).is_dir():
            room, after = "The folder does not exist.", ""
        said = [f"{str(folder)!r} cannot be written to: {cause}.", room, after]
        raised = OSError(" ".join(filter(None, said)))
        raised.errno = number
        raise raised from error


def _room(folder: str | os.PathLike[str], size: int) -> str:
    try:
        free = f"{in_words(shutil.disk_usage(folder).free)} are free"
    except OSError:
        free = "the free space is unknown"
    return f"The file needs {in_words(size)}, and {free}."
