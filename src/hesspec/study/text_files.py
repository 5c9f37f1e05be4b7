"""Text in local files: the source of the standard library of Python, a file, a folder; split into train and test."""

import hashlib
import os
import sysconfig
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from hesspec.backend.files import content_of, digest_of

__all__ = ["STDLIB", "TEXT", "is_text", "read_documents", "text_digest"]

STDLIB: Final = "python-stdlib"
TEXT: Final = "text"
"""Name of the data set of the standard library, and the prefix of those that are named by a path."""

# Folders within the standard library that do not belong to it, or that distributions leave out.
_NOT_STDLIB: Final = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
# Texts are held in memory, as 8 bytes for each token of the sequences that are used.
LARGEST_TEXT: Final = 1 << 32
# The test split has at least the first share of the bytes, and a file that would give it more than the second is
# skipped.
LEAST, MOST = 0.1, 0.15
# Suffixes of the files of tokenizers in folders of transformers, which may have weights as well.
TOKENIZER_FILES: Final = {".json", ".txt", ".model"}


def is_text(name: str) -> bool:
    """Whether a name is that of a data set of text."""
    return name == STDLIB or name.startswith(f"{TEXT}:")


def read_documents(name: str, split: str) -> list[tuple[str, bytes]]:
    """Read the files of one split, in the order of their paths.

    The files are put into the order of the SHA-256 digests of their paths, relative to the folder. In this order they
    go to the test split until it has a tenth of all bytes; a file that would give it more than 15% is skipped. If
    there is a single file, or no file fits, the text is cut instead: the last tenth of all bytes is the test split.

    Parameters
    ----------
    name : str
        "python-stdlib": the `.py` files of the standard library of the running Python, without its tests; or
        "text:PATH": a file, or all files in a folder and its subfolders except hidden ones.
    split : {"train", "test"}

    Returns
    -------
    list of (str, bytes)
        Path and content of every file. A file that is cut is in both splits, each with its part.

    Raises
    ------
    FileNotFoundError
        If there is no such file or folder.
    ValueError
        If there is no text in it, or it is too large.
    """
    folder, files = _files(name)
    sizes = {file: (folder / file).stat().st_size for file in files}
    total = sum(sizes.values())
    if total == 0:
        what = f"the {len(files)} files are empty" if len(files) > 1 else "it is empty" if files else "it has no files"
        raise ValueError(f"There is no text in {str(folder if len(files) != 1 else folder / files[0])!r}: {what}.")
    if total > LARGEST_TEXT:
        raise ValueError(
            f"The text in {str(folder)!r} has {total:,} bytes, but may have at most {LARGEST_TEXT:,}: name a part "
            "of it."
        )
    test: set[str] = set()
    for file in sorted(files, key=lambda file: hashlib.sha256(file.encode("utf-8", "surrogateescape")).digest()):
        taken = sum(sizes[each] for each in test)
        if taken < LEAST * total and taken + sizes[file] <= MOST * total:
            test.add(file)
    if sum(sizes[each] for each in test) > 0:
        chosen = [file for file in files if (file in test) == (split == "test")]
        return [(str(folder / file), content_of(folder / file)) for file in chosen]
    return _cut([(str(folder / file), content_of(folder / file)) for file in files], total, split)


def _cut(documents: Sequence[tuple[str, bytes]], total: int, split: str) -> list[tuple[str, bytes]]:
    """Cut documents after nine tenths of their bytes, and not within a character of UTF-8."""
    left = total - int(LEAST * total)
    found = []
    for path, content in documents:
        place = min(max(left, 0), len(content))
        while 0 < place < len(content) and content[place] & 0xC0 == 0x80:
            place -= 1
        part = content[:place] if split == "train" else content[place:]
        left -= len(content)
        if part:
            found.append((path, part))
    return found


def text_digest(name: str, tokenizer: Path | None = None) -> str:
    """Compute a digest of the paths and contents of all files of a text and of its tokenizer.

    Returns
    -------
    str
        The digest; empty if there is no such text or tokenizer, or the text is too large to be read.
    """
    if tokenizer is not None and not tokenizer.is_dir():
        return ""
    try:
        folder, files = _files(name)
    except FileNotFoundError:
        return ""
    if sum((folder / file).stat().st_size for file in files) > LARGEST_TEXT:
        return ""
    of_tokenizer = [] if tokenizer is None else [file for file in tokenizer.iterdir() if file.suffix in TOKENIZER_FILES]
    # No path of a text is absolute.
    return digest_of({each: folder / each for each in files} | {f"/{file.name}": file for file in of_tokenizer})


def _files(name: str) -> tuple[Path, list[str]]:
    """Return the folder of a text, and the paths of its files relative to it, ascending."""
    if name == STDLIB:
        folder = Path(sysconfig.get_path("stdlib"))
        files = _below(folder, without=_NOT_STDLIB, suffix=".py")
        if not files:
            raise FileNotFoundError(
                f"There are no sources of the standard library in {str(folder)!r}; some distributions of Python come "
                "without them. Name another text: 'text:PATH'."
            )
        return folder, files
    given = name.partition(":")[2]
    path = Path(given).expanduser()
    if given and path.is_dir():
        return path, _below(path)
    if given and path.is_file():
        return path.parent, [path.name]
    raise FileNotFoundError(
        f"There is no file or folder {given!r} for the data set {name!r}; a text is named 'text:PATH', a relative path "
        f"being relative to {str(Path.cwd())!r}."
    )


def _below(folder: Path, *, without: Collection[str] = (), suffix: str = "") -> list[str]:
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [each for each in folders if not each.startswith((".", "__pycache__")) and each not in without]
        found += [
            (Path(parent) / file).relative_to(folder).as_posix()
            for file in files
            if not file.startswith(".") and file.endswith(suffix) and (Path(parent) / file).is_file()
        ]
    return sorted(found)
