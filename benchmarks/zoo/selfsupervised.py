"""Self-supervised, contrastive and reinforcement learning."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Example, Family
from zoo.parts import CE, Forward, classes, mlp

selfsupervised = Family("self-supervised")
reinforcement = Family("reinforcement learning")


def _two_views(width: int = 8) -> list[Any]:
    return [((torch.randn(n, width), torch.randn(n, width)), torch.zeros(n)) for n in (8, 5)]


def _contrast(a: Tensor, b: Tensor, temperature: float = 0.3) -> Tensor:
    z = F.normalize(torch.cat([a, b]), dim=1)
    similar = (z @ z.T / temperature).masked_fill(torch.eye(len(z), dtype=torch.bool), float("-inf"))
    return F.cross_entropy(similar, torch.arange(len(z)).roll(len(a)))


def _encoder(**more: Any) -> nn.Module:
    return Forward(lambda self, a, b: (self.f(a), self.f(b)), f=mlp(8, 4), **more)


@selfsupervised.case()
def simclr() -> Example:
    """SimCLR (NT-Xent), two batches."""
    return Example(_encoder(), lambda o, _: _contrast(*o), _two_views())


@selfsupervised.case()
def supervised_contrast() -> Example:
    """Supervised contrastive loss."""

    def loss(z: Tensor, y: Tensor) -> Tensor:
        z = F.normalize(z, dim=1)
        self_ = torch.eye(len(z), dtype=torch.bool)
        log = (z @ z.T / 0.3).masked_fill(self_, -1e4).log_softmax(1)
        same = (y[:, None] == y) & ~self_
        return -(log * same).sum(1).div(same.sum(1).clamp_min(1)).mean()

    return Example(mlp(8, 4), loss, [(torch.randn(n, 8), classes(3, n)) for n in (9, 6)])


@selfsupervised.case()
def barlow_twins() -> Example:
    """Barlow Twins: cross-correlation of the batch."""

    def loss(o: Any, _: Any) -> Tensor:
        a, b = ((z - z.mean(0)) / (z.std(0) + 1e-4) for z in o)
        c = a.T @ b / len(a)
        return (c.diagonal() - 1).square().sum() + 0.05 * (c - torch.diag(c.diagonal())).square().sum()

    return Example(_encoder(), loss, _two_views())


@selfsupervised.case()
def vicreg() -> Example:
    """VICReg: variance, invariance, covariance."""

    def loss(o: Any, _: Any) -> Tensor:
        total = F.mse_loss(*o)
        for view in o:
            z = view - view.mean(0)
            c = z.T @ z / (len(z) - 1)
            total = (
                total
                + F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean()
                + 0.1 * (c - torch.diag(c.diagonal())).square().sum()
            )
        return total

    return Example(_encoder(), loss, _two_views())


@selfsupervised.case()
def byol() -> Example:
    """BYOL: predictor against a frozen target."""
    model = Forward(
        lambda self, a, b: (self.p(self.f(a)), self.t(b).detach()),
        f=mlp(8, 6),
        p=mlp(6, 6, 8, nn.ReLU),
        t=mlp(8, 6).requires_grad_(False),
    )
    return Example(model, lambda o, _: (2 - 2 * F.cosine_similarity(*o)).mean(), _two_views())


@selfsupervised.case()
def simsiam() -> Example:
    """SimSiam: stop-gradient of the same network."""
    model = Forward(lambda self, a, b: (self.p(self.f(a)), self.f(b).detach()), f=mlp(8, 6), p=mlp(6, 6))
    return Example(model, lambda o, _: -F.cosine_similarity(*o).mean(), _two_views())


@selfsupervised.case()
def momentum_contrast() -> Example:
    """MoCo: momentum encoder under no_grad and a queue in a buffer."""

    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        q = F.normalize(self.f(a), dim=1)
        with torch.no_grad():
            k = F.normalize(self.slow(b), dim=1)
        return torch.cat([(q * k).sum(1, keepdim=True), q @ self.queue.T], 1) / 0.3

    model = Forward(forward, f=mlp(8, 4), slow=mlp(8, 4).requires_grad_(False))
    model.register_buffer("queue", F.normalize(torch.randn(12, 4), dim=1))
    return Example(model, CE, [(views, torch.zeros(len(views[0]), dtype=torch.long)) for views, _ in _two_views()])


@selfsupervised.case()
def dino() -> Example:
    """DINO: centred and sharpened teacher, cross-entropy of prototypes."""

    def forward(self: Any, a: Tensor, b: Tensor) -> Any:
        with torch.no_grad():
            told = ((self.teacher(b) - self.center) / 0.1).softmax(1)
        return self.student(a) / 0.3, told

    model = Forward(forward, student=mlp(8, 10), teacher=mlp(8, 10).requires_grad_(False))
    model.register_buffer("center", torch.randn(10) / 10)
    return Example(model, lambda o, _: -(o[1] * o[0].log_softmax(1)).sum(1).mean(), _two_views())


@selfsupervised.case()
def masked_autoencoder() -> Example:
    """Masked autoencoder with a boolean mask given as an input."""

    def forward(self: Any, x: Tensor, mask: Tensor) -> Tensor:
        z = torch.where(mask[..., None], self.token, self.e(x))
        return (self.d(self.t(z)) - x)[mask]

    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    model = Forward(forward, e=nn.Linear(4, 8), t=layer, d=nn.Linear(8, 4))
    model.token = nn.Parameter(torch.randn(8))
    data = []
    for n in (4, 2):
        mask = torch.zeros(n, 6, dtype=torch.bool)
        mask[:, ::2] = True
        data.append(((torch.randn(n, 6, 4), mask), torch.zeros(n)))
    return Example(model, lambda o, _: o.square().mean(), data)


@selfsupervised.case()
def deep_clustering() -> Example:
    """Deep embedded clustering with a detached target distribution."""

    def loss(q: Tensor, _: Any) -> Tensor:
        p = (q**2 / q.sum(0)).detach()
        p = p / p.sum(1, keepdim=True)
        return (p * (p.log() - q.log())).sum(1).mean()

    def forward(self: Any, x: Tensor) -> Tensor:
        near = 1 / (1 + (self.f(x)[:, None] - self.centers).square().sum(-1))
        return near / near.sum(1, keepdim=True)

    model = Forward(forward, f=mlp(8, 3))
    model.centers = nn.Parameter(torch.randn(4, 3))
    # The target is detached, so that it is a constant, although without it the derivative of the gradient is nearly
    # symmetric too.
    return Example(model, loss, [(torch.randn(n, 8), torch.zeros(n)) for n in (9, 5)], constants=True)


@selfsupervised.case()
def face_margin() -> Example:
    """ArcFace: an angular margin by arccos in the model."""

    def forward(self: Any, x: Tensor, y: Tensor) -> Tensor:
        cosine = F.normalize(self.f(x), dim=1) @ F.normalize(self.w, dim=1).T
        angle = torch.acos(cosine.clamp(-0.99, 0.99))
        return 6 * torch.cos(angle + 0.3 * F.one_hot(y, 5))

    model = Forward(forward, f=mlp(8, 4))
    model.w = nn.Parameter(torch.randn(5, 4))
    return Example(model, CE, [((torch.randn(n, 8), y), y) for n, y in ((n, classes(5, n)) for n in (9, 5))])


# ------------------------------------------------------------------ reinforcement learning
@reinforcement.case()
def clipped_policy() -> Example:
    """PPO: clipped policy, value and entropy."""
    model = Forward(lambda self, s: (self.pi(s), self.v(s)[:, 0]), pi=mlp(6, 4), v=mlp(6, 1))

    def loss(o: Any, batch: Any) -> Tensor:
        action, before, gain, worth = batch
        log = o[0].log_softmax(1)
        ratio = torch.exp(log.gather(1, action[:, None])[:, 0] - before)
        clipped = torch.minimum(ratio * gain, ratio.clamp(0.8, 1.2) * gain)
        return -clipped.mean() + 0.5 * F.mse_loss(o[1], worth) + 0.01 * (log.exp() * log).sum(1).mean()

    data = [
        (
            torch.randn(n, 6),
            (classes(4, n), torch.full((n,), -1.4) + 0.1 * torch.randn(n), torch.randn(n), torch.randn(n)),
        )
        for n in (10, 5)
    ]
    return Example(model, loss, data)


@reinforcement.case()
def q_learning() -> Example:
    """DQN: Huber loss against a frozen target network."""

    def forward(self: Any, s: Tensor, action: Tensor, reward: Tensor, following: Tensor) -> Any:
        with torch.no_grad():
            told = reward + 0.9 * self.target(following).amax(1)
        return self.q(s).gather(1, action[:, None])[:, 0], told

    model = Forward(forward, q=mlp(6, 4), target=mlp(6, 4).requires_grad_(False))
    data = [((torch.randn(n, 6), classes(4, n), torch.randn(n), torch.randn(n, 6)), torch.zeros(n)) for n in (10, 5)]
    return Example(model, lambda o, _: F.huber_loss(*o), data)


@reinforcement.case()
def bootstrapped_q_learning() -> Example:
    """Double Q-learning whose targets come from the same network, detached."""

    def forward(self: Any, s: Tensor, action: Tensor, reward: Tensor, following: Tensor) -> Any:
        told = reward + 0.9 * self.q(following).amax(1).detach()
        return self.q(s).gather(1, action[:, None])[:, 0], told

    data = [((torch.randn(n, 6), classes(4, n), torch.randn(n), torch.randn(n, 6)), torch.zeros(n)) for n in (10, 5)]
    return Example(Forward(forward, q=mlp(6, 4)), lambda o, _: F.mse_loss(*o), data)


@reinforcement.case()
def soft_actor() -> Example:
    """SAC actor: squashed Gaussian with given noise, frozen critic."""

    def forward(self: Any, s: Tensor, eps: Tensor) -> Any:
        mean, log = self.pi(s).chunk(2, 1)
        log = log.clamp(-5, 2)
        raw = mean + log.exp() * eps
        chance = (-0.5 * eps**2 - log).sum(1) - (2 * (0.6931 - raw - F.softplus(-2 * raw))).sum(1)
        return chance, self.q(torch.cat([s, raw.tanh()], 1))[:, 0]

    model = Forward(forward, pi=mlp(6, 4), q=mlp(8, 1).requires_grad_(False))
    data = [((torch.randn(n, 6), torch.randn(n, 2)), torch.zeros(n)) for n in (10, 5)]
    return Example(model, lambda o, _: (0.2 * o[0] - o[1]).mean(), data)


@reinforcement.case()
def policy_gradient() -> Example:
    """REINFORCE with a Categorical distribution in the loss."""

    def loss(o: Tensor, batch: Any) -> Tensor:
        return -(torch.distributions.Categorical(logits=o).log_prob(batch[0]) * batch[1]).mean()

    return Example(mlp(6, 4), loss, [(torch.randn(n, 6), (classes(4, n), torch.randn(n))) for n in (10, 5)])


@reinforcement.case()
def distributional() -> Example:
    """Quantile regression DQN."""

    def loss(o: Tensor, y: Tensor) -> Tensor:
        level = (torch.arange(5).to(o) + 0.5) / 5
        gap = y[:, None] - o
        return (
            (level - (gap.detach() < 0).to(o))
            .abs()
            .mul(F.huber_loss(o, y[:, None].expand_as(o), reduction="none"))
            .mean()
        )

    return Example(mlp(6, 5), loss, [(torch.randn(n, 6), torch.randn(n)) for n in (10, 5)])


@reinforcement.case()
def world_model() -> Example:
    """World model: recurrent latent dynamics unrolled, reward and observation heads."""

    def forward(self: Any, seen: Tensor, actions: Tensor) -> Any:
        h, out, rewards = seen.new_zeros(len(seen), 6), [], []
        for x, a in zip(seen.unbind(1), actions.unbind(1), strict=True):
            h = self.cell(torch.cat([x, a], 1), h)
            out.append(self.d(h))
            rewards.append(self.r(h))
        return torch.stack(out, 1), torch.stack(rewards, 1)[..., 0]

    model = Forward(forward, cell=nn.GRUCell(6, 6), d=nn.Linear(6, 4), r=nn.Linear(6, 1))
    loss = lambda o, y: F.mse_loss(o[0], y[0]) + F.mse_loss(o[1], y[1])
    return Example(
        model,
        loss,
        [((torch.randn(n, 4, 4), torch.randn(n, 4, 2)), (torch.randn(n, 4, 4), torch.randn(n, 4))) for n in (4, 2)],
    )
