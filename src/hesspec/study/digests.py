"""Digests of what is not hesspec's own and results of studies depend on: the user's code, texts and weights."""

from hesspec.study.config import StudyConfig
from hesspec.study.imports import code_digest
from hesspec.study.networks import network_digest
from hesspec.study.text_files import is_text, text_digest

__all__ = ["code_of"]


def code_of(config: StudyConfig) -> dict[str, str]:
    """Digests of the user's own code, texts and weights, by the names of networks and data sets.

    See `network_digest`, `code_digest` and `text_digest`. What is missing has none; the checks of a study report it.
    """
    digests = {name: network_digest(name) for name in config.networks}
    for data in config.datasets:
        if is_text(data.name):
            digests[data.name] = text_digest(data.name, data.tokenizer)
        elif ":" in data.name:
            digests[data.name] = code_digest(data.name)
    return {name: digest for name, digest in digests.items() if digest}
