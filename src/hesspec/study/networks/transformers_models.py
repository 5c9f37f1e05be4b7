"""Causal language models of transformers, from a local folder or a configuration."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from hesspec.backend.extras import require
from hesspec.backend.files import digest_of, refuse_special_files
from hesspec.study.checkpoints import has_tensors
from hesspec.study.foreign_weights import INDEX, shards_of
from hesspec.study.networks.layers import check_tokens

__all__ = ["TRANSFORMERS", "has_weights", "transformers_digest", "transformers_network"]

TRANSFORMERS: Final = "transformers"
CONFIG: Final = "config.json"


def transformers_network(name: str, *, classes: int, size: int) -> nn.Module:
    """A causal language model of transformers, which returns logits (N, V, L) for tokens (N, L).

    Its parameters have the names that transformers gives them. Attention is "eager", a product of matrices and a
    softmax: fused attention cannot be differentiated twice. Dropout takes no part in evaluation mode, in which spectra
    are measured. Nothing is downloaded, and no code of the folder is run.

    Parameters
    ----------
    name
        A folder with `config.json` and weights in safetensors, as `model.save_pretrained(FOLDER)` writes it; or the
        file of a configuration alone, whose model has random weights, from torch's generator.
    classes
        Number of tokens of the data set; the model's vocabulary may be larger.
    size
        Tokens in a sequence.

    Returns
    -------
    nn.Module
        The model of transformers, in training mode.

    Raises
    ------
    FileNotFoundError
        If there is no such file or folder, or it has no configuration or no weights.
    ModuleNotFoundError
        If transformers is not installed.
    ValueError
        If transformers cannot make a causal language model of it, its weights are not all of the model's, its
        vocabulary is smaller than that of the data set, or it has fewer positions than the sequences; if the folder has
        pipes or devices, or an index of weights elsewhere than in its own safetensors files.
    """
    path = _configuration(name)
    require(f"'{TRANSFORMERS}:{name}'", "hesspec[text]", "transformers")
    transformers: Any = importlib.import_module("transformers")
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        with _without_progress_bars(transformers):
            config = transformers.AutoConfig.from_pretrained(path, **local)
            _check_size(name, config, classes, size)
            auto = transformers.AutoModelForCausalLM
            if Path(name).expanduser().is_dir():
                model, found = auto.from_pretrained(
                    Path(name).expanduser(),
                    config=config,
                    attn_implementation="eager",
                    use_safetensors=True,
                    output_loading_info=True,
                    **local,
                )
                _check_loaded(name, sorted(found["missing_keys"]))
            else:
                model = auto.from_config(config, attn_implementation="eager", trust_remote_code=False)
    except _UnfitError as error:
        raise ValueError(str(error)) from error
    # Values of a configuration make the constructors of transformers raise anything.
    except Exception as error:
        reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        raise ValueError(
            f"transformers cannot make a causal language model of {name!r}: {reason}. Name a folder that "
            "model.save_pretrained(FOLDER) has written, or a configuration file."
        ) from error
    # A subclass, as a module around the model would change the names of its parameters.
    model.__class__ = _of_logits(type(model))
    network: nn.Module = model.float().train()
    return network


def _of_logits(kind: Any) -> type[nn.Module]:
    """Return a subclass of a model's class that takes tokens (N, L) and returns logits (N, V, L)."""

    def forward(self: nn.Module, tokens: Tensor) -> Tensor:
        check_tokens(tokens)
        # Classes are in the second dimension, where CrossEntropyLoss has them. Cached keys and values would be outputs
        # that no loss depends on.
        logits: Tensor = kind.forward(self, input_ids=tokens, use_cache=False).logits.transpose(1, 2)
        return logits

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


class _UnfitError(Exception):
    """The configuration does not suit the data set."""


def _check_size(name: str, config: Any, classes: int, size: int) -> None:
    vocabulary, positions = getattr(config, "vocab_size", None), getattr(config, "max_position_embeddings", None)
    if isinstance(vocabulary, int) and vocabulary < classes:
        raise _UnfitError(
            f"The model {name!r} has a vocabulary of {vocabulary:,} tokens, but the data set has {classes:,}: use the "
            "model's own tokenizer."
        )
    if isinstance(positions, int) and positions < size:
        raise _UnfitError(
            f"The sequences have {size:,} tokens, but the model {name!r} has {positions:,} positions: choose shorter "
            "sequences with a smaller size."
        )


def _check_loaded(name: str, missing: list[str]) -> None:
    # transformers draws them at random, and only logs it.
    if missing:
        raise _UnfitError(
            f"The weights in {name!r} lack {len(missing)} of the parameters of a causal language model, such as "
            f"{missing[0]!r}: they belong to another model."
        )


def _configuration(name: str) -> Path:
    """Return the file of the configuration; weights are there if a folder is named."""
    path = Path(name).expanduser()
    if name and path.is_file():
        return path
    if not name or not path.is_dir():
        raise FileNotFoundError(
            f"There is no file or folder {name!r} for the network '{TRANSFORMERS}:{name}'. Name a local folder with "
            f"{CONFIG} and weights, or a configuration file; nothing is downloaded."
        )
    if not (path / CONFIG).is_file():
        raise FileNotFoundError(f"The folder {name!r} has no {CONFIG}, which describes a model of transformers.")
    if not any(path.glob("*.safetensors")):
        raise FileNotFoundError(
            f"The folder {name!r} has no weights in safetensors (model.safetensors). For random weights, name its "
            f"configuration: '{TRANSFORMERS}:{path / CONFIG}'."
        )
    _check_files(path)
    return path / CONFIG


def _check_files(folder: Path) -> None:
    # transformers follows an index to any path, and reads files of other formats that it names.
    refuse_special_files(folder)
    for index in folder.glob(f"*{INDEX}"):
        shards_of(index)


def has_weights(name: str) -> bool:
    """Whether the name of a network is that of a folder of transformers with weights."""
    library, _, folder = name.partition(":")
    return library == TRANSFORMERS and Path(folder).expanduser().is_dir()


def transformers_digest(name: str) -> str:
    """Compute a digest of the configuration and the weights of a model; empty if they are missing."""
    path = Path(name).expanduser()
    weights = filter(has_tensors, path.glob("*.safetensors"))
    files = [path] if path.is_file() else [*path.glob(CONFIG), *weights]
    return digest_of({file.name: file for file in files})


@contextmanager
def _without_progress_bars(transformers: Any) -> Iterator[None]:
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
