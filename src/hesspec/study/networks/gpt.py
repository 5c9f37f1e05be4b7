"""Small language models: decoder-only transformers (GPT) with pre-norm and causal attention, without dropout."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from hesspec.study.networks.layers import check_tokens

__all__ = ["GPT", "gpt_small", "gpt_tiny"]

# Standard deviation of initial weights, as in GPT-2; of layers that write to the residual stream it is divided by
# sqrt(2 layers), so that the stream's variance does not grow with depth.
INITIAL_STD = 0.02


class GPT(nn.Module):
    """Decoder-only transformer: next-token logits at each position, from the tokens up to it.

    Layers are pre-norm: x + attention(norm(x)), then x + mlp(norm(x)), with a final layer norm before the head. The
    architecture is that of GPT-2 (Radford et al. 2019): learned positions, GELU, an MLP of four times the width, biases
    everywhere except in the head; the head has its own weights, or those of the token embedding if they are tied. It
    has no dropout, so training and evaluation mode compute the same function. Attention consists of matrix products and
    a softmax, which can be traced and differentiated any number of times.

    Parameters
    ----------
    classes : int
        Number of tokens in the vocabulary, V.
    size : int
        Largest number of positions.
    layers, heads, width : int
        Number of layers, of heads in each, and width of the residual stream, a multiple of `heads`.
    tied : bool
        Whether the head has the weights of the token embedding.

    Raises
    ------
    ValueError
        If a number is below 1, or the width is not a multiple of the number of heads.
    """

    def __init__(self, classes: int, size: int, *, layers: int, heads: int, width: int, tied: bool = False) -> None:
        super().__init__()
        for name, value in (("classes", classes), ("size", size), ("layers", layers), ("heads", heads)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, but it is {value}.")
        if width < 1 or width % heads:
            raise ValueError(f"width must be a multiple of the {heads} heads, but it is {width}.")
        self.tokens = nn.Embedding(classes, width)
        self.positions = nn.Embedding(size, width)
        self.layers = nn.ModuleList(_Layer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes, bias=False)
        if tied:
            self.head.weight = self.tokens.weight
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                writes = name.endswith(("output.weight", "down.weight"))
                nn.init.normal_(parameter, std=INITIAL_STD / (math.sqrt(2 * layers) if writes else 1))
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute logits (N, V, L) of the next token at each position, from tokens (N, L).

        Raises
        ------
        ValueError
            If the sequences have more positions than the model, or the tokens are not a tensor (N, L) of integers.
        """
        check_tokens(tokens)
        length, most = tokens.shape[1], self.positions.num_embeddings
        if length > most:
            raise ValueError(
                f"The sequences have {length:,} tokens, but the model has {most:,} positions: use shorter sequences, "
                "or a model with more positions."
            )
        stream = self.tokens(tokens) + self.positions(torch.arange(length, device=tokens.device))
        for layer in self.layers:
            stream = layer(stream)
        # Classes are in the second dimension, where CrossEntropyLoss has them.
        logits: Tensor = self.head(self.norm(stream)).transpose(1, 2)
        return logits


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = _Attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = _MLP(width)

    def forward(self, stream: Tensor) -> Tensor:
        stream = stream + self.attention(self.attention_norm(stream))
        moved: Tensor = stream + self.mlp(self.mlp_norm(stream))
        return moved


class _Attention(nn.Module):
    """Causal self-attention, softmax(q k^T / sqrt(d)) v in each head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, stream: Tensor) -> Tensor:
        length, width = stream.shape[-2:]
        query, key, value = (
            part(stream).unflatten(-1, (self.heads, -1)).transpose(-2, -3)
            for part in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(-1, -2) / math.sqrt(width // self.heads)
        later = torch.ones(length, length, dtype=torch.bool, device=stream.device).triu(1)
        attended = torch.softmax(scores.masked_fill(later, -torch.inf), -1) @ value
        mixed: Tensor = self.output(attended.transpose(-2, -3).flatten(-2))
        return mixed


class _MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, stream: Tensor) -> Tensor:
        changed: Tensor = self.down(gelu(self.up(stream)))
        return changed


def gpt_tiny(classes: int, size: int) -> GPT:
    """GPT of 2 layers with 4 heads and width 48, for studies of a few minutes.

    Parameters
    ----------
    classes : int
        Number of tokens in the vocabulary.
    size : int
        Largest number of positions.

    Returns
    -------
    GPT
        For bytes and 128 positions it has 87,360 parameters.

    Examples
    --------
    >>> import torch
    >>> gpt_tiny(256, 128)(torch.zeros(2, 128, dtype=torch.int64)).shape
    torch.Size([2, 256, 128])
    """
    return GPT(classes, size, layers=2, heads=4, width=48)


def gpt_small(classes: int, size: int) -> GPT:
    """GPT of 8 layers with 8 heads and width 320.

    Parameters
    ----------
    classes : int
        Number of tokens in the vocabulary.
    size : int
        Largest number of positions.

    Returns
    -------
    GPT
        For bytes and 256 positions it has 10,110,080 parameters.
    """
    return GPT(classes, size, layers=8, heads=8, width=320)
