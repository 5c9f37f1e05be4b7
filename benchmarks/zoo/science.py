"""Networks of the sciences: differential equations, operators, fields."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import hessian, jacrev, vmap

from zoo.case import Example, Family
from zoo.parts import CE, MSE, Forward, mlp, vectors

pinns = Family("physics-informed")
odes = Family("neural ODE")
operators = Family("neural operators and fields")


def _solution() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 1))


def _points(width: int = 2) -> list[Any]:
    return [(torch.rand(n, width), torch.zeros(n)) for n in (14, 6)]


def _squares(o: Tensor, _: Any) -> Tensor:
    return o.square().mean()


@pinns.case()
def burgers() -> Example:
    """Burgers' equation: residual by autograd.grad in forward."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        with torch.enable_grad():
            u = self.f(x)
            (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
            (ddu,) = torch.autograd.grad(du[:, 1].sum(), x, create_graph=True)
        return du[:, 0] + u[:, 0] * du[:, 1] - 0.01 * ddu[:, 1]

    return Example(Forward(forward, f=_solution()), _squares, _points())


@pinns.case()
def heat_by_func() -> Example:
    """Heat equation: residual by torch.func (vmap of jacrev and hessian) in forward."""

    def forward(self: Any, x: Tensor) -> Tensor:
        u = lambda point: self.f(point)[0]
        return vmap(jacrev(u))(x)[:, 0] - vmap(hessian(u))(x)[:, 1, 1]

    return Example(Forward(forward, f=_solution()), MSE, _points())


@pinns.case()
def ritz() -> Example:
    """Deep Ritz: energy of the gradient, boundary penalty."""

    def forward(self: Any, x: Tensor) -> Any:
        x = x.clone().requires_grad_()
        with torch.enable_grad():
            u = self.f(x)
            (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        edge = torch.cat([x.detach()[:, :1], torch.zeros_like(x[:, 1:])], 1)
        return u[:, 0], du, self.f(edge)[:, 0]

    loss = lambda o, _: (0.5 * (o[1] ** 2).sum(1) - o[0]).mean() + 100 * (o[2] ** 2).mean()
    return Example(Forward(forward, f=_solution()), loss, _points())


@pinns.case(unsplit="the loss differentiates the outputs by the inputs, and is not a function of them alone")
def derivative_in_loss() -> Example:
    """The loss differentiates outputs by inputs that the model makes require a gradient."""

    def forward(self: Any, x: Tensor) -> Any:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            return self.f(x), x

    def loss(o: Any, y: Tensor) -> Tensor:
        (du,) = torch.autograd.grad(o[0].sum(), o[1], create_graph=True)
        return ((du[:, 0] - y) ** 2).mean()

    def slope(model: Any, batch: Any) -> Tensor:
        u, x = model(batch[0])
        return torch.autograd.grad(u.sum(), x, create_graph=True)[0]

    return Example(
        Forward(forward, f=_solution()),
        loss,
        _points(),
        outputs=slope,
        criterion=lambda o, b: ((o[:, 0] - b[1]) ** 2).mean(),
    )


@pinns.case()
def inverse() -> Example:
    """Inverse problem: an unknown coefficient beside the network."""

    def forward(self: Any, x: Tensor) -> Any:
        x = x.clone().requires_grad_()
        with torch.enable_grad():
            u = self.f(x)
            (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        return du[:, 0] + self.rate.exp() * u[:, 0], u[:, 0]

    model = Forward(forward, f=_solution())
    model.rate = nn.Parameter(torch.tensor(0.3))
    loss = lambda o, y: (o[0] ** 2).mean() + ((o[1] - y) ** 2).mean()
    return Example(model, loss, [(torch.rand(n, 2), torch.randn(n)) for n in (14, 6)])


@pinns.case()
def hamiltonian() -> Example:
    """Hamiltonian network: time derivatives from the gradient of an energy."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(self.f(x).sum(), x, create_graph=True)
        return torch.stack([slope[:, 1], -slope[:, 0]], 1)

    return Example(Forward(forward, f=_solution()), MSE, [(torch.randn(n, 2), torch.randn(n, 2)) for n in (10, 5)])


@pinns.case()
def lagrangian() -> Example:
    """Lagrangian network: accelerations by a linear solve with a Hessian (torch.func)."""

    def forward(self: Any, state: Tensor) -> Tensor:
        def acceleration(both: Tensor) -> Tensor:
            energy = lambda z: self.f(z)[0] + (z[2:] ** 2).sum()
            slope, curve = jacrev(energy)(both), hessian(energy)(both)
            return torch.linalg.solve(curve[2:, 2:], slope[:2] - curve[2:, :2] @ both[2:])

        return vmap(acceleration)(state)

    return Example(
        Forward(forward, f=mlp(4, 1, 10, nn.Softplus)), MSE, [(torch.randn(n, 4), torch.randn(n, 2)) for n in (6, 3)]
    )


# ------------------------------------------------------------------ neural ODE
def _runge_kutta(f: Any, x: Tensor, steps: int, h: float) -> Tensor:
    for k in range(steps):
        t = x.new_full((len(x), 1), k * h)
        a = f(t, x)
        b = f(t + h / 2, x + h * a / 2)
        c = f(t + h / 2, x + h * b / 2)
        x = x + h * (a + 2 * b + 2 * c + f(t + h, x + h * c)) / 6
    return x


@odes.case()
def fixed_steps() -> Example:
    """Neural ODE, fourth-order Runge-Kutta, fixed steps."""
    model = Forward(
        lambda self, x: self.h(_runge_kutta(lambda t, y: self.f(torch.cat([t, y], 1)), x, 4, 0.25)),
        f=mlp(4, 3),
        h=nn.Linear(3, 2),
    )
    return Example(model, CE, vectors(3, 2, 8, 4))


@odes.case()
def adaptive_steps() -> Example:
    """Neural ODE, adaptive Heun-Euler steps (a loop on values)."""

    def forward(self: Any, x: Tensor) -> Tensor:
        t, h = 0.0, 0.3
        while t < 1 - 1e-6:
            h = min(h, 1 - t)
            a = self.f(x)
            b = self.f(x + h * a)
            error = float((h * (b - a) / 2).detach().abs().max())
            if error < 5e-2:
                x, t = x + h * (a + b) / 2, t + h
            h = h * 1.3 if error < 1e-2 else h * 0.7 if error >= 5e-2 else h
        return self.h(x)

    return Example(Forward(forward, f=mlp(3, 3), h=nn.Linear(3, 2)), CE, vectors(3, 2, 8, 4))


@odes.case()
def adjoint() -> Example:
    """Neural ODE by the adjoint method: a Function that integrates backwards."""

    class Adjoint(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, f: Any, x: Tensor, *weights: Tensor) -> Tensor:
            with torch.no_grad():
                end = _runge_kutta(lambda _, y: f(y), x, 4, 0.25)
            ctx.f = f
            ctx.save_for_backward(x, *weights)
            return end

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, grad: Tensor) -> Any:
            x, *weights = ctx.saved_tensors
            with torch.enable_grad():
                start = x.detach().requires_grad_()
                end = _runge_kutta(lambda _, y: ctx.f(y), start, 4, 0.25)
            return None, *torch.autograd.grad(end, [start, *weights], grad)

    model = Forward(
        lambda self, x: self.h(Adjoint.apply(self.f, x, *self.f.parameters())), f=mlp(3, 3), h=nn.Linear(3, 2)
    )
    return Example(model, CE, vectors(3, 2, 8, 4))


@odes.case()
def stochastic() -> Example:
    """Neural SDE, Euler-Maruyama with given increments."""

    def forward(self: Any, x: Tensor, noise: Tensor) -> Tensor:
        for step in noise.unbind(1):
            x = x + 0.2 * self.drift(x) + 0.2**0.5 * F.softplus(self.spread(x)) * step
        return self.h(x)

    model = Forward(forward, drift=mlp(3, 3), spread=mlp(3, 3), h=nn.Linear(3, 1))
    return Example(model, MSE, [((torch.randn(n, 3), torch.randn(n, 5, 3)), torch.randn(n, 1)) for n in (8, 4)])


@odes.case()
def latent() -> Example:
    """Latent ODE: a GRU encodes, the solution is read at given times."""

    def forward(self: Any, x: Tensor, times: Tensor) -> Tensor:
        state = self.g(x)[1][0]
        out = []
        for h in times.diff(prepend=times.new_zeros(1)):
            state = state + h * self.f(state + h / 2 * self.f(state))
            out.append(self.h(state))
        return torch.stack(out, 1)

    model = Forward(forward, g=nn.GRU(2, 6, batch_first=True), f=mlp(6, 6), h=nn.Linear(6, 2))
    return Example(
        model, MSE, [((torch.randn(n, 4, 2), torch.linspace(0.2, 1, 3)), torch.randn(n, 3, 2)) for n in (4, 2)]
    )


# ------------------------------------------------------------------ operators and fields
class _Spectral(nn.Module):
    def __init__(self, width: int, modes: int) -> None:
        super().__init__()
        self.weight, self.modes = nn.Parameter(torch.randn(width, width, modes, 2) / width), modes

    def forward(self, x: Tensor) -> Tensor:
        modes = torch.fft.rfft(x)
        mixed = torch.einsum("bim,iom->bom", modes[..., : self.modes], torch.view_as_complex(self.weight))
        return torch.fft.irfft(F.pad(mixed, (0, modes.shape[-1] - self.modes)), n=x.shape[-1])


@operators.case()
def fourier_operator() -> Example:
    """Fourier neural operator, pairs of reals viewed as complex, two resolutions."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.p(x)
        for s, w in zip(self.s, self.w, strict=True):
            x = F.gelu(s(x) + w(x))
        return self.q(x)

    model = Forward(
        forward,
        p=nn.Conv1d(1, 6, 1),
        s=nn.ModuleList(_Spectral(6, 4) for _ in range(2)),
        w=nn.ModuleList(nn.Conv1d(6, 6, 1) for _ in range(2)),
        q=nn.Conv1d(6, 1, 1),
    )
    return Example(
        model,
        MSE,
        [(torch.randn(n, 1, side), torch.randn(n, 1, side)) for n, side in ((3, 16), (2, 24))],
        weight=lambda b: b[1].numel(),
    )


@operators.case()
def complex_fourier_operator() -> Example:
    """Fourier neural operator in two dimensions, complex parameters."""

    class Spectral2(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4, 3, 3, dtype=torch.complex64) / 4)

        def forward(self, x: Tensor) -> Tensor:
            modes = torch.fft.rfft2(x)
            out = torch.zeros_like(modes)
            out[..., :3, :3] = torch.einsum("bixy,ioxy->boxy", modes[..., :3, :3], self.weight)
            return torch.fft.irfft2(out, s=x.shape[-2:])

    model = nn.Sequential(nn.Conv2d(1, 4, 1), Spectral2(), nn.GELU(), nn.Conv2d(4, 1, 1))
    return Example(model, MSE, [(torch.randn(n, 1, 8, 8), torch.randn(n, 1, 8, 8)) for n in (3, 2)])


@operators.case()
def deep_operator() -> Example:
    """DeepONet."""
    model = Forward(
        lambda self, u, y: torch.einsum("bi,pi->bp", self.b(u), self.t(y)),
        b=mlp(10, 8, 16, nn.GELU),
        t=mlp(1, 8, 16, nn.GELU),
    )
    return Example(model, MSE, [((torch.randn(n, 10), torch.rand(12, 1)), torch.randn(n, 12)) for n in (6, 3)])


@operators.case()
def siren() -> Example:
    """SIREN: sines of frequency 30."""

    class Sine(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(30 * x)

    model = nn.Sequential(nn.Linear(2, 16), Sine(), nn.Linear(16, 16), Sine(), nn.Linear(16, 3))
    with torch.no_grad():
        model[0].weight.uniform_(-1 / 2, 1 / 2)
        model[2].weight.uniform_(-math.sqrt(6 / 16) / 30, math.sqrt(6 / 16) / 30)
    return Example(model, MSE, [(torch.rand(n, 2) * 2 - 1, torch.rand(n, 3)) for n in (20, 9)])


@operators.case()
def radiance_field() -> Example:
    """NeRF: positional encoding, volume rendering by cumprod."""

    def forward(self: Any, points: Tensor) -> Tensor:
        angle = (points[..., None] * 2.0 ** torch.arange(3)).flatten(-2)
        o = self.f(torch.cat([points, angle.sin(), angle.cos()], -1))
        alpha = 1 - torch.exp(-F.softplus(o[..., 3]) * 0.2)
        clear = torch.cumprod(torch.cat([torch.ones_like(alpha[:, :1]), 1 - alpha + 1e-10], 1), 1)[:, :-1]
        return ((alpha * clear)[..., None] * o[..., :3].sigmoid()).sum(1)

    return Example(
        Forward(forward, f=mlp(21, 4, 24, nn.ReLU)), MSE, [(torch.rand(n, 8, 3), torch.rand(n, 3)) for n in (8, 4)]
    )


@operators.case()
def hash_grid() -> Example:
    """Instant-NGP: features of a hashed grid, interpolated."""

    def forward(self: Any, x: Tensor) -> Tensor:
        found = []
        for level, table in enumerate(self.tables):
            at = x * (4 * 2**level)
            low, part = at.floor().long(), at - at.floor()
            total = 0
            for corner in ((0, 0), (0, 1), (1, 0), (1, 1)):
                place = low + torch.tensor(corner)
                weight = torch.where(torch.tensor(corner) == 1, part, 1 - part).prod(1, keepdim=True)
                total = total + weight * table(((place[:, 0] * 1) ^ (place[:, 1] * 2654435761)) % 16)
            found.append(total)
        return self.f(torch.cat(found, 1))

    model = Forward(forward, tables=nn.ModuleList(nn.Embedding(16, 2) for _ in range(3)), f=mlp(6, 3, 12, nn.ReLU))
    return Example(model, MSE, [(torch.rand(n, 2), torch.rand(n, 3)) for n in (16, 7)])


@operators.case()
def splats() -> Example:
    """Gaussian splatting of a picture: sorted, alpha composited."""

    def forward(self: Any, grid: Tensor) -> Tensor:
        order = self.depth.argsort()
        near = torch.exp(-((grid[:, None] - self.place[order]) ** 2).sum(-1) * self.size.exp()[order])
        alpha = self.opacity.sigmoid()[order] * near
        clear = torch.cumprod(torch.cat([torch.ones_like(alpha[:, :1]), 1 - alpha[:, :-1]], 1), 1)
        return (alpha * clear) @ self.color[order]

    model = Forward(forward)
    model.place, model.color = nn.Parameter(torch.rand(7, 2)), nn.Parameter(torch.rand(7, 3))
    model.size, model.opacity = nn.Parameter(torch.rand(7) + 1), nn.Parameter(torch.randn(7))
    model.register_buffer("depth", torch.rand(7))
    return Example(model, MSE, [(torch.rand(n, 2), torch.rand(n, 3)) for n in (20, 9)])


@operators.case()
def differentiable_physics() -> Example:
    """Differentiable simulation: a spring chain with learned stiffness and a controller."""

    def forward(self: Any, x: Tensor) -> Tensor:
        v = torch.zeros_like(x)
        for _ in range(6):
            stretch = x.diff(dim=1)
            force = F.pad(stretch, (0, 1)) - F.pad(stretch, (1, 0))
            v = 0.95 * v + 0.1 * (self.stiff.exp() * force + self.f(x))
            x = x + 0.1 * v
        return x

    model = Forward(forward, f=mlp(5, 5))
    model.stiff = nn.Parameter(torch.randn(5) / 4)
    return Example(model, MSE, [(torch.randn(n, 5), torch.randn(n, 5)) for n in (6, 3)])


@operators.case()
def quantum() -> Example:
    """Variational quantum circuit by complex matrix products."""

    def forward(self: Any, x: Tensor) -> Tensor:
        state = torch.zeros(len(x), 4, dtype=torch.complex64 if x.dtype == torch.float32 else torch.complex128)
        state[:, 0] = 1
        for i, angles in enumerate(self.angles):
            half = (angles + x if i == 0 else angles.expand(len(x), -1)) / 2
            gate = lambda a: torch.stack(
                [torch.stack([a.cos(), -a.sin()], -1), torch.stack([a.sin(), a.cos()], -1)], -2
            )
            both = torch.einsum("nab,ncd->nacbd", gate(half[:, 0]), gate(half[:, 1])).reshape(len(x), 4, 4)
            state = (both.to(state) @ state[..., None])[..., 0] * torch.tensor([1, 1, 1, -1])
        chance = state.abs() ** 2
        return chance[:, :2].sum(1) - chance[:, 2:].sum(1)

    model = Forward(forward)
    model.angles = nn.Parameter(torch.randn(3, 2))
    return Example(model, MSE, [(torch.randn(n, 2), torch.randn(n).sign()) for n in (8, 4)])
