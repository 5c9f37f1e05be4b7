"""A head that maps the hidden states of a backbone to one logit for each sequence."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from hesspec.backend.numbers import is_whole
from hesspec.backend.text import kind_of
from hesspec.operators.data.structures import describe

__all__ = ["ValueHead"]

PLACES: Final = ("last", "first", "mean")
# Names of the width of hidden states in configurations of transformers.
WIDTHS: Final = ("hidden_size", "n_embd", "d_model", "dim")
IDS: Final = "input_ids"


class ValueHead(nn.Module):
    r"""One logit for each sequence, w^T h + b, from the hidden state h of a backbone at its last real token.

    With the loss `torch.nn.BCEWithLogitsLoss` and targets between 0 and 1 it is trained on soft labels, such as the
    share k/n of right answers: loss, gradient, Hess and G are those of k labels 1 and n - k labels 0. All functions and
    operators of hesspec accept it as a model.

    Parameters
    ----------
    backbone : torch.nn.Module
        Model that returns hidden states (N, T, D), features (N, D), or an object with `last_hidden_state`, as models of
        transformers without a head do. It is a submodule, not a copy.
    features : int, optional
        D; by default the width that `backbone.config` states.
    at : {"last", "first", "mean"}
        Where hidden states (N, T, D) are read: at the last real token, the first one, or their mean.
    padding : int, optional
        Token that fills sequences up to a common length, on either side. Real tokens are all others; without it, and
        without an `attention_mask`, all tokens are real.

    Raises
    ------
    ValueError
        If an argument is out of range, or `features` is not given and the backbone does not state it.

    Notes
    -----
    The setting is that of Kadavath et al., "Language Models (Mostly) Know What They Know" (arXiv 2207.05221): the logit
    of an additional value head, read at the last token. With a mean over N sequences, P the sigmoid of the logit r and
    t the target, G = (1/N) sum P (1 - P) grad r grad r^T, which does not contain t, and H = (1/N) sum (P - t) Hess r;
    the logit has one class mean, so G has at most one outlier of class structure (ours).

    Examples
    --------
    >>> import torch, hesspec
    >>> backbone = torch.nn.Embedding(10, 4)
    >>> head = hesspec.language.ValueHead(backbone, 4, padding=0)
    >>> tokens = torch.tensor([[3, 7, 0], [5, 0, 0]])
    >>> logits = head(tokens)
    >>> torch.equal(logits, head.head(backbone(torch.tensor([7, 5]))).squeeze(1))
    True
    """

    def __init__(
        self, backbone: nn.Module, features: int | None = None, *, at: str = "last", padding: int | None = None
    ) -> None:
        super().__init__()
        if not isinstance(backbone, nn.Module):
            raise ValueError(f"backbone is {kind_of(backbone)}; it must be a torch.nn.Module.")
        if at not in PLACES:
            raise ValueError(f'at is {at!r}; hidden states can be read at "last", "first" or "mean".')
        if padding is not None and not is_whole(padding):
            raise ValueError(f"padding is {padding!r}; it must be the integer that fills sequences, or None.")
        width = _width(backbone) if features is None else features
        if not is_whole(width, 1):
            raise ValueError(f"features is {width!r}; it must be the width D of the hidden states, a positive integer.")
        self.at, self.padding = at, padding
        like = next(backbone.parameters(), torch.empty(0))
        self.backbone = backbone
        self.head = nn.Linear(int(width), 1, device=like.device, dtype=like.dtype)
        self._takes_mask = "attention_mask" in inspect.signature(backbone.forward).parameters

    def forward(self, *inputs: Any, attention_mask: Tensor | None = None, **named: Any) -> Tensor:
        """Compute the logits (N,).

        Parameters
        ----------
        *inputs, **named
            Inputs of the backbone.
        attention_mask : Tensor (N, T), optional
            1 or True for real tokens; by default those other than `padding`. It is passed on if the backbone has an
            argument of this name.

        Returns
        -------
        Tensor (N,)
            NaN for a sequence without any real token, so that its loss is NaN as well.

        Raises
        ------
        ValueError
            If the outputs of the backbone are not hidden states, or do not fit the head or the mask.
        """
        if "labels" in named:
            raise ValueError(
                "A ValueHead returns logits, and no loss: it takes no labels. Pass batches ({...}, labels), and "
                "torch.nn.BCEWithLogitsLoss() as the loss."
            )
        if attention_mask is None and self.padding is not None:
            attention_mask = self._tokens(inputs, named) != self.padding
        if attention_mask is not None and self._takes_mask:
            named = {**named, "attention_mask": attention_mask}
        hidden = _hidden(self.backbone(*inputs, **named))
        if hidden.dim() not in (2, 3) or hidden.shape[-1] != self.head.in_features:
            raise ValueError(
                f"The backbone returned {describe(hidden)}; a ValueHead of {self.head.in_features} features reads "
                f"hidden states (N, T, {self.head.in_features}) or features (N, {self.head.in_features})."
            )
        if hidden.dim() == 2:
            return self._logits(hidden)
        if attention_mask is None:
            read = {"last": lambda: hidden[:, -1], "first": lambda: hidden[:, 0], "mean": lambda: hidden.mean(1)}
            return self._logits(read[self.at]())
        if attention_mask.shape != hidden.shape[:2]:
            raise ValueError(
                f"The mask has shape {tuple(attention_mask.shape)}, and the hidden states {tuple(hidden.shape)}; the "
                "mask must be (N, T) with one entry for each token."
            )
        real = attention_mask != 0
        logits = self._logits(self._read(hidden, real))
        return torch.where(real.any(1), logits, torch.nan)

    def _tokens(self, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
        tokens = named.get(IDS, inputs[0] if inputs else None)
        if not isinstance(tokens, Tensor) or tokens.is_floating_point() or tokens.dim() != 2:
            raise ValueError(
                f"padding is {self.padding}, but the first input is {describe(tokens)}: padding is found in tokens "
                "(N, T) of an integer dtype. Pass attention_mask= instead."
            )
        return tokens

    def _read(self, hidden: Tensor, real: Tensor) -> Tensor:
        """Return the hidden state (N, D) at the last or first real token, or the mean over real tokens."""
        if self.at == "mean":
            weights = real.to(hidden.dtype).unsqueeze(2)
            return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
        length = real.shape[1]
        places = torch.arange(length, device=real.device).expand(real.shape)
        if self.at == "last":
            place = torch.where(real, places, 0).amax(1)
        else:
            place = torch.where(real, places, length - 1).amin(1)
        return hidden.gather(1, place[:, None, None].expand(-1, 1, hidden.shape[2])).squeeze(1)

    def _logits(self, features: Tensor) -> Tensor:
        logits: Tensor = self.head(features).squeeze(1)
        return logits


def _width(backbone: nn.Module) -> int:
    config = getattr(backbone, "config", None)
    for name in WIDTHS:
        width = getattr(config, name, None)
        if is_whole(width, 1):
            return int(width)
    raise ValueError(
        f"The width of the hidden states of {kind_of(backbone)} is not known: it has no config with "
        f"{', '.join(WIDTHS)}. Pass features=."
    )


def _hidden(outputs: Any) -> Tensor:
    if isinstance(outputs, Tensor):
        return outputs
    found = getattr(outputs, "last_hidden_state", None)
    if isinstance(found, Tensor):
        return found
    if isinstance(getattr(outputs, "logits", None), Tensor):
        raise ValueError(
            f"The backbone returned {kind_of(outputs)} with logits and no last_hidden_state: it has a head of "
            "its own. Pass the model below it, its `base_model` in transformers."
        )
    raise ValueError(
        f"The backbone returned {describe(outputs)}; a ValueHead reads a tensor of hidden states (N, T, D) or features "
        "(N, D), or last_hidden_state. Wrap the backbone in a module that returns it."
    )
