"""Configurations of transformers, shrunk; nothing is downloaded."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn

from zoo.parts import classes

__all__ = ["LENGTH", "SPECIAL", "VIT", "VOCABULARY", "configured", "logits_of", "padded_texts"]

SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
VOCABULARY = 40
LENGTH = 8
VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 16,
    "patch_size": 8,
}


def configured(name: str, **settings: Any) -> Any:
    """A configuration by the name of its class."""
    return getattr(transformers, name)(**settings)


def logits_of(model: nn.Module, batch: Any) -> Tensor:
    """Logits of a model for keyword inputs, without labels, so that no loss is computed."""
    return model(**{name: value for name, value in batch[0].items() if name != "labels"}).logits


def padded_texts(*sizes: int) -> list[dict[str, Tensor]]:
    """Batches of tokens with a mask; the first text of each ends in padding."""
    batches = []
    for n in sizes or (3, 2):
        words = classes(VOCABULARY - 2, n, LENGTH) + 2
        mask = torch.ones_like(words)
        words[0, -2:], mask[0, -2:] = 0, 0
        batches.append({"input_ids": words, "attention_mask": mask})
    return batches
