"""The parts of G by its class structure as dense matrices, from Jacobians of plain autograd and the definitions."""

import torch
from cases import Case
from torch import Tensor, nn
from torch.func import functional_call, jacrev

PARTS = ("class", "cross", "same", "within")


def rows(case: Case, names: tuple[str, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Jacobians (R, C, p), probabilities (R, C), classes (R,) and weights in the loss (R,) of all rows that count."""
    parameters = dict(case.model.named_parameters())
    chosen = {name: parameters[name].detach() for name in names}
    x, y = (torch.cat(parts) for parts in zip(*case.data, strict=True))
    blocks = jacrev(lambda named: functional_call(case.model, named, (x,)))(chosen)
    logits = case.model(x).detach()
    jacobian = torch.cat([block.reshape(*logits.shape, -1) for block in blocks.values()], -1)
    classes = logits.shape[1]
    jacobian = jacobian.movedim(1, -2).reshape(-1, classes, jacobian.shape[-1])
    p, y = logits.movedim(1, -1).reshape(-1, classes).softmax(1), y.reshape(-1)
    loss = case.loss if isinstance(case.loss, nn.Module) else nn.CrossEntropyLoss()
    weight = torch.ones(classes, dtype=p.dtype) if loss.weight is None else loss.weight
    kept = y != loss.ignore_index
    jacobian, p, y = jacobian[kept], p[kept], y[kept]
    smoothing = loss.label_smoothing
    scale = (1 - smoothing) * weight[y] + smoothing * weight.mean()
    return jacobian, p, y, scale / (weight[y].sum() if loss.reduction == "mean" else 1)


def means(case: Case, names: tuple[str, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """w_{c,c'} (C, C), g_{c,c'} (C, C, p), and of each row w_{i,c'} (R, C) and g_{i,c'} (R, C, p)."""
    jacobian, p, y, scale = rows(case, names)
    classes = p.shape[1]
    w = scale[:, None] * p
    g = torch.einsum("rkp,rck->rcp", jacobian, torch.eye(classes, dtype=p.dtype)[None] - p[:, None])
    weights = torch.stack([w[y == c].sum(0) for c in range(classes)])
    mean = torch.stack([(w[y == c][:, :, None] * g[y == c]).sum(0) for c in range(classes)]) / weights[:, :, None]
    return weights, mean, w, g


def reference(case: Case) -> dict[str, Tensor]:
    """The four parts of G, and G as "full", (p, p)."""
    chosen = case.options.get("params")
    names = tuple(
        n for n, _ in case.model.named_parameters() if not chosen or n.startswith(tuple(c[:-1] for c in chosen))
    )
    weights, mean, w, g = means(case, names)
    y = rows(case, names)[2]
    classes, p = len(weights), g.shape[-1]
    parts = {part: torch.zeros(p, p, dtype=g.dtype) for part in PARTS}
    for c in range(classes):
        others = [k for k in range(classes) if k != c]
        total = weights[c, others].sum()
        centre = (weights[c, others, None] * mean[c, others]).sum(0) / total
        parts["class"] += total * torch.outer(centre, centre)
        parts["same"] += weights[c, c] * torch.outer(mean[c, c], mean[c, c])
        for k in others:
            parts["cross"] += weights[c, k] * torch.outer(mean[c, k] - centre, mean[c, k] - centre)
    within = (g - mean[y]).reshape(-1, p)
    parts["within"] = within.T @ (w.reshape(-1, 1) * within)
    flat = g.reshape(-1, p)
    return {**parts, "full": flat.T @ (w.reshape(-1, 1) * flat)}
