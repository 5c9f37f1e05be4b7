"""Digests of what is not hesspec's own and results of studies depend on: the user's code, texts and weights."""

import itertools
from pathlib import Path

from hesspec.backend.files import digest_of
from hesspec.study.checkpoints import has_tensors
from hesspec.study.config import StudyConfig
from hesspec.study.imports import code_digest
from hesspec.study.networks import network_digest
from hesspec.study.starting import start_key
from hesspec.study.text_files import is_text, text_digest

__all__ = ["code_of", "data_digest"]


def code_of(config: StudyConfig) -> dict[str, str]:
    """Digests of the user's own code, texts and weights, by the names of networks, data sets and starts.

    See `network_digest`, `data_digest` and `digest_of`. What is missing or damaged has none; the checks
    of a study report it.
    """
    digests = {name: network_digest(name) for name in config.networks}
    data = [(each.name, each.tokenizer) for each in config.datasets]
    data += [(each.dataset, each.tokenizer) for each in config.start if each.dataset is not None]
    for name, tokenizer in data:
        digests[name] = data_digest(name, tokenizer)
    for start, network, seed in itertools.product(config.start, config.networks, config.seeds):
        file = start.file(network, seed)
        if file is not None and file.is_file() and has_tensors(file):
            digests[start_key(start.name, network, seed)] = digest_of({"": file})
    return {name: digest for name, digest in digests.items() if digest}


def data_digest(name: str, tokenizer: Path | None) -> str:
    """Compute a digest of a text, or of the user's own code of a data set; empty for hesspec's own."""
    if is_text(name):
        return text_digest(name, tokenizer)
    return code_digest(name) if ":" in name else ""
