"""Digests of what is not hesspec's own and results of studies depend on: the user's code, texts and weights."""

import itertools

from hesspec.study.config import StudyConfig
from hesspec.study.imports import code_digest
from hesspec.study.networks import network_digest
from hesspec.study.starting import file_digest, start_key
from hesspec.study.text_files import is_text, text_digest

__all__ = ["code_of"]


def code_of(config: StudyConfig) -> dict[str, str]:
    """Digests of the user's own code, texts and weights, by the names of networks, data sets and starts.

    See `network_digest`, `code_digest`, `text_digest` and `file_digest`. What is missing has none; the checks of a
    study report it.
    """
    digests = {name: network_digest(name) for name in config.networks}
    data = [(each.name, each.tokenizer) for each in config.datasets]
    data += [(each.dataset, each.tokenizer) for each in config.start if each.dataset is not None]
    for name, tokenizer in data:
        if is_text(name):
            digests[name] = text_digest(name, tokenizer)
        elif ":" in name:
            digests[name] = code_digest(name)
    for start, network, seed in itertools.product(config.start, config.networks, config.seeds):
        file = start.file(network, seed)
        if file is not None:
            digests[start_key(start.name, network, seed)] = file_digest(file)
    return {name: digest for name, digest in digests.items() if digest}
