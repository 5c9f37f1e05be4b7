"""Reward models as classifiers of pairs, so that the loss of preferences is a cross-entropy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hesspec.operators.data.items import arguments
from hesspec.operators.data.structures import describe, map_tensors, tensors_of

__all__ = ["Pairwise", "Ranking"]


class Pairwise(nn.Module):
    r"""Rewards of the two sequences of a pair as two logits, of which the first should be larger.

    With `torch.nn.CrossEntropyLoss` and targets 0 the loss of a pair is log(1 + exp(r_bad - r_good)), that of
    preference models. Both sequences are in one sample and stay together when a batch is split.

    Parameters
    ----------
    reward_model : torch.nn.Module
        Model that returns a reward (N,) or (N, 1) for each sequence, such as `ValueHead`.

    Notes
    -----
    Askell et al., "A General Language Assistant as a Laboratory for Alignment" (arXiv 2112.00861), for the loss. With
    m = r_good - r_bad, G = (1/N) sum sigmoid(m) sigmoid(-m) d d^T, d = grad m, of rank N at most. Parameters
    that shift all rewards by the same amount, such as the bias of a head, are in the null space of Hess, G and H
    (ours). Where rewards are nearly equal, cancellation in d leaves few digits: compare with float64.

    Examples
    --------
    >>> import torch, hesspec
    >>> reward = torch.nn.Linear(3, 1)
    >>> good, bad = torch.randn(8, 3), torch.randn(8, 3)
    >>> data = hesspec.language.pairs(good, bad)
    >>> loss = torch.nn.CrossEntropyLoss()(hesspec.language.Pairwise(reward)(good, bad), data[0][1])
    >>> torch.allclose(loss, torch.nn.functional.softplus(reward(bad) - reward(good)).mean())
    True
    """

    def __init__(self, reward_model: nn.Module) -> None:
        super().__init__()
        self.reward_model = reward_model

    def forward(self, good: Any, bad: Any) -> Tensor:
        """Compute the rewards (N, 2).

        Parameters
        ----------
        good, bad
            Inputs of the reward model for the sequences that are preferred and for the others: a tensor, or a tuple of
            positional or a mapping of keyword arguments.

        Raises
        ------
        ValueError
            If the model does not return one reward for each sequence, or the numbers of good and bad sequences
            differ.
        """
        first, second = _rewards(self.reward_model, good), _rewards(self.reward_model, bad)
        if first.shape != second.shape:
            raise ValueError(
                f"There are {len(first)} good and {len(second)} bad sequences; a pair has one of each, in this order."
            )
        return torch.stack([first, second], dim=1)


class Ranking(nn.Module):
    """Rewards of K ranked responses as two logits for each of their K (K - 1) / 2 pairs.

    With `torch.nn.CrossEntropyLoss` and targets 0 the loss is the mean over all pairs of log(1 + exp(r_worse -
    r_better)). A target of -100, the loss's `ignore_index`, leaves a pair out, as for ties.

    Parameters
    ----------
    reward_model : torch.nn.Module
        As for `Pairwise`.

    Examples
    --------
    >>> import torch, hesspec
    >>> responses = torch.randn(5, 4, 3)  # 5 prompts, 4 responses each, best first
    >>> hesspec.language.Ranking(torch.nn.Linear(3, 1))(responses).shape
    torch.Size([5, 2, 6])
    """

    def __init__(self, reward_model: nn.Module) -> None:
        super().__init__()
        self.reward_model = reward_model

    def forward(self, responses: Any) -> Tensor:
        """Compute the logits (N, 2, K (K - 1) / 2): the rewards of the better and of the worse response of each pair.

        Parameters
        ----------
        responses
            Inputs of the reward model with a dimension of K responses after that of samples, best first: a tensor
            (N, K, ...), or a tuple or mapping of such tensors.

        Raises
        ------
        ValueError
            If the tensors have no common N and K, K is below 2, or the model does not return one reward for each
            response.
        """
        shapes = {tuple(tensor.shape[:2]) for tensor in tensors_of(responses)}
        shape = next(iter(shapes)) if len(shapes) == 1 else ()
        if len(shape) != 2 or shape[1] < 2:
            raise ValueError(
                f"The responses are {describe(responses)}; a ranking needs tensors (N, K, ...) of K responses to each "
                "of N prompts, at least 2."
            )
        flat = map_tensors(lambda tensor: tensor.flatten(0, 1), responses)
        rewards = _rewards(self.reward_model, flat).reshape(shape)
        better, worse = torch.triu_indices(shape[1], shape[1], offset=1, device=rewards.device)
        return torch.stack([rewards[:, better], rewards[:, worse]], dim=1)


def _rewards(model: nn.Module, inputs: Any) -> Tensor:
    positional, named = arguments(inputs)
    found = model(*positional, **named)
    if isinstance(found, Tensor) and found.dim() == 2 and found.shape[1] == 1:
        found = found.squeeze(1)
    if not isinstance(found, Tensor) or found.dim() != 1:
        raise ValueError(
            f"The reward model returned {describe(found)}; it must return one reward for each sequence, (N,) or "
            "(N, 1), as hesspec.language.ValueHead does."
        )
    return found
