"""Sequences of tokens packed from text: by bytes, or by a tokenizer of transformers from a local folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from hesspec.backend.extras import require
from hesspec.backend.files import refuse_special_files
from hesspec.study.text_files import read_documents

__all__ = ["DEFAULT_LENGTH", "read_sequences"]

DEFAULT_LENGTH: Final = 128
"""Default number of tokens in a sequence."""

BYTES: Final = 256
# Tokens are stored in 32 bits.
MOST_TOKENS: Final = 2**31 - 1
# Ends a document: a byte that text does not contain.
END_OF_DOCUMENT: Final = b"\0"


def read_sequences(
    name: str, split: str, length: int | None = None, tokenizer: str | os.PathLike[str] | None = None
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Read a split of a text as packed sequences.

    All documents of the split are joined into one stream of tokens, each ended by the byte 0, or by the tokenizer's
    end-of-sequence token if it has one. Sequence i has the tokens i L to (i + 1) L - 1 of the stream, and the targets
    are the tokens that follow each. Tokens that are left over at the end are not used.

    Parameters
    ----------
    name, split
        See `hesspec.study.text_files.read_documents`.
    length
        Tokens in a sequence, L; by default 128.
    tokenizer
        Folder of a tokenizer of transformers; None for bytes.

    Returns
    -------
    tokens, targets : Tensor (N, L)
        Views of one stream, uint8 or int32.
    names : tuple of str
        The tokens as text, V of them.

    Raises
    ------
    FileNotFoundError
        If there is no such text, or no folder of the tokenizer.
    ModuleNotFoundError
        If a tokenizer is named, and transformers is not installed.
    ValueError
        If there is not enough text for one sequence, the folder has no tokenizer or has pipes or devices, or a file
        is not a text in UTF-8, as a tokenizer needs it.
    """
    length = DEFAULT_LENGTH if length is None else length
    if length < 1:
        raise ValueError(f"size={length} is the number of tokens in a sequence; it must be at least 1.")
    documents = read_documents(name, split)
    if tokenizer is None:
        text = END_OF_DOCUMENT.join([*(content for _, content in documents), b""])
        stream = torch.from_numpy(np.frombuffer(text, dtype=np.uint8).copy())
        names = tuple(_byte_name(value) for value in range(BYTES))
    else:
        stream, names = _tokenized(documents, Path(tokenizer))
    count = (len(stream) - 1) // length
    if count < 1:
        raise ValueError(
            f"The {split} split of {name!r} has {len(stream):,} tokens, fewer than a sequence of {length:,} and the "
            "token after it: name a longer text, or choose shorter sequences with a smaller size."
        )
    ends = count * length
    return stream[:ends].view(count, length), stream[1 : ends + 1].view(count, length), names


def _byte_name(value: int) -> str:
    """Name of a byte: itself if it is a printable character of ASCII, or its escape sequence."""
    return repr(chr(value))[1:-1] if value < 0x7F else f"\\x{value:02x}"


def _tokenized(documents: Sequence[tuple[str, bytes]], folder: Path) -> tuple[Tensor, tuple[str, ...]]:
    tokenizer = _load_tokenizer(folder)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    parts: list[int] = []
    for path, content in documents:
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"The file {path!r} is not a text in UTF-8 (byte {error.start:,}: {error.reason}), which a tokenizer "
                "needs. Leave the tokenizer out to use the bytes."
            ) from error
        try:
            # Not verbose, as it would warn of documents that are longer than the positions of its model.
            parts += tokenizer.encode(text, add_special_tokens=False, verbose=False) + end
        # Whatever settings make transformers raise that it only looks at here.
        except Exception as error:
            raise ValueError(f"The tokenizer in {str(folder)!r} cannot split {path!r}: {_reason(error)}.") from error
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    if max(parts, default=0) > MOST_TOKENS:
        raise ValueError(
            f"The tokenizer in {str(folder)!r} has a token {max(parts):,}; at most {MOST_TOKENS:,} are supported."
        )
    return torch.tensor(parts, dtype=torch.int32), tuple(str(each) for each in names)


def _load_tokenizer(folder: Path) -> Any:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"There is no folder {str(folder)!r} with a tokenizer. Name a local folder, such as "
            "tokenizer.save_pretrained(FOLDER) of transformers writes; nothing is downloaded."
        )
    refuse_special_files(folder)
    require(f"The tokenizer in {str(folder)!r}", "hesspec[text]", "transformers")
    from transformers import AutoTokenizer  # noqa: PLC0415 - an optional dependency

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    # Whatever a damaged or foreign file makes transformers raise.
    except Exception as error:
        raise ValueError(
            f"The folder {str(folder)!r} has no tokenizer that transformers can load ({_reason(error)}). It needs "
            "files such as tokenizer.json and tokenizer_config.json, which tokenizer.save_pretrained(FOLDER) writes."
        ) from error


def _reason(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
