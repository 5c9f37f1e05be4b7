"""Transformers in plain PyTorch: torch.nn's own, and attention of all kinds."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

from zoo.case import Example, Family
from zoo.parts import CE, MSE, Forward, classes, counted, mlp, per_token

attention = Family("attention")


def _texts(vocabulary: int, count: int) -> list[Any]:
    return [(classes(vocabulary, n, t), classes(count, n)) for n, t in ((4, 6), (2, 6))]


@attention.case()
def encoder() -> Example:
    """nn.TransformerEncoder with a padding mask (fast path)."""

    def forward(self: Any, words: Tensor, pad: Tensor) -> Tensor:
        return self.h(self.t(self.embed(words), src_key_padding_mask=pad).mean(1))

    layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 24, batch_first=True), 2)
    model = Forward(forward, embed=nn.Embedding(30, 16), t=layers, h=nn.Linear(16, 3))

    def batch(n: int) -> Any:
        pad = torch.zeros(n, 6, dtype=torch.bool)
        pad[0, 4:] = True
        return (classes(30, n, 6), pad), classes(3, n)

    return Example(model, CE, [batch(4), batch(2)])


@attention.case()
def encoder_lengths() -> Example:
    """nn.TransformerEncoderLayer, texts of another length in each batch."""
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, norm_first=True, activation="gelu")
    model = Forward(
        lambda self, w: self.h(self.t(self.embed(w)).mean(1)), embed=nn.Embedding(30, 16), t=layer, h=nn.Linear(16, 3)
    )
    return Example(model, CE, [(classes(30, n, t), classes(3, n)) for n, t in ((3, 6), (2, 8))])


@attention.case()
def decoder() -> Example:
    """nn.TransformerDecoder, causal, with memory."""

    def forward(self: Any, target: Tensor, memory: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1]).to(memory)
        return self.h(self.t(self.embed(target), memory, tgt_mask=mask, tgt_is_causal=True))

    layers = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 2, 24, batch_first=True), 1)
    model = Forward(forward, embed=nn.Embedding(20, 16), t=layers, h=nn.Linear(16, 20))
    data = [((classes(20, n, 5), torch.randn(n, 4, 16)), classes(20, n, 5)) for n in (3, 2)]
    return Example(model, per_token, data)


@attention.case()
def whole() -> Example:
    """nn.Transformer, sequences of other lengths on both sides."""

    def forward(self: Any, source: Tensor, target: Tensor) -> Tensor:
        return self.h(self.t(self.embed(source), self.embed(target)))

    layers = nn.Transformer(16, 2, 1, 1, 24, batch_first=True)
    model = Forward(forward, embed=nn.Embedding(20, 16), t=layers, h=nn.Linear(16, 20))
    return Example(model, per_token, [((classes(20, n, 6), classes(20, n, 4)), classes(20, n, 4)) for n in (3, 2)])


@attention.case()
def multihead() -> Example:
    """nn.MultiheadAttention with weights."""
    model = Forward(
        lambda self, x: self.h(self.a(x, x, x, need_weights=True)[0].mean(1)),
        a=nn.MultiheadAttention(16, 4, batch_first=True),
        h=nn.Linear(16, 3),
    )
    return Example(model, CE, [(torch.randn(n, 6, 16), classes(3, n)) for n in (4, 2)])


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, attend: Any) -> None:
        super().__init__()
        self.m, self.n = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp, self.heads, self.attend = mlp(width, width, 2 * width, nn.GELU), heads, attend

    def forward(self, x: Tensor) -> Tensor:
        split = (len(x), x.shape[1], self.heads, -1)
        q, k, v = (part.view(split).transpose(1, 2) for part in self.qkv(self.m(x)).chunk(3, -1))
        x = x + self.out(self.attend(self, q, k, v).transpose(1, 2).reshape(x.shape))
        return x + self.mlp(self.n(x))


class _Language(nn.Module):
    """A language model of one block with a tied head."""

    def __init__(self, attend: Any, *, positions: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(24, 16)
        self.positions = nn.Embedding(12, 16) if positions else None
        self.blocks = nn.ModuleList([_Block(16, 2, attend)])
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 24, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words)
        if self.positions is not None:
            x = x + self.positions(torch.arange(words.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def _language(attend: Any, *, loss: Any = per_token, ignored: bool = False, **settings: Any) -> Example:
    """Two batches of token losses; if some are ignored, more than half of the second's are not counted."""
    model = _Language(attend, **settings)
    with torch.no_grad():
        model.embed.weight.mul_(0.3)
    data = [(classes(24, 2, 6), classes(24, 2, 6)) for _ in range(2)]
    if ignored:
        data[1][1][:, :4] = -100
    return Example(model, loss, data, weight=counted)


def _causal(_: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def _rotary(_: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    half = q.shape[-1] // 2
    angle = torch.arange(q.shape[2], dtype=q.dtype)[:, None] / 10 ** (torch.arange(half, dtype=q.dtype) / half)
    cos, sin = angle.cos(), angle.sin()
    turn = lambda x: torch.cat(
        [x[..., :half] * cos - x[..., half:] * sin, x[..., half:] * cos + x[..., :half] * sin], -1
    )
    return F.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True)


def _alibi(_: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    t = torch.arange(q.shape[2])
    far = (t[None] - t[:, None]).to(q)
    bias = torch.tensor([0.5, 0.25]).to(q)[:, None, None] * far
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.masked_fill(far > 0, float("-inf")))


def _by_hand(_: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
    mask = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(mask, float("-inf")).softmax(-1) @ v


def _linear(_: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k = F.elu(q) + 1, F.elu(k) + 1
    state = (k[..., :, None] * v[..., None, :]).cumsum(2)
    return torch.einsum("bhtd,bhtde->bhte", q, state) / (q * k.cumsum(2)).sum(-1, keepdim=True)


def _normalised(_: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, is_causal=True, scale=4.0)


def _windowed(_: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    t = torch.arange(q.shape[2])
    near = (t[:, None] - t[None]).clamp(-9, 9)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=(near >= 0) & (near < 3))


def _capped(_: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = 5 * torch.tanh(q @ k.transpose(2, 3) / 5 / math.sqrt(q.shape[-1]))
    mask = torch.full(scores.shape[-2:], float("-inf"), dtype=scores.dtype).triu(1)
    return (scores + mask).softmax(-1) @ v


def _retained(_: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    t = torch.arange(q.shape[2], dtype=q.dtype)
    decay = torch.where(t[:, None] >= t, 0.9 ** (t[:, None] - t), 0.0)
    return (
        F.group_norm((q @ k.transpose(2, 3) * decay @ v).transpose(1, 2).flatten(0, 1), 2)
        .view(len(q), -1, *q.shape[1::2])
        .transpose(1, 2)
    )


def _summed_tokens() -> Example:
    example = _language(
        _causal, ignored=True, loss=lambda o, y: F.cross_entropy(o.flatten(0, 1), y.flatten(), reduction="sum")
    )
    example.summed = True
    return example


def _with_z(o: Tensor, y: Tensor) -> Tensor:
    kept = y != -100
    return per_token(o, y) + 1e-2 * (torch.logsumexp(o, -1) ** 2)[kept].mean()


def _chunked(o: Tensor, y: Tensor) -> Tensor:
    logits, labels = o.flatten(0, 1).split(4), y.flatten().split(4)
    parts = [F.cross_entropy(a, b, reduction="sum") for a, b in zip(logits, labels, strict=True)]
    return sum(parts) / (y != -100).sum()


def _ahead(o: Tensor, y: Tensor) -> Tensor:
    each = F.cross_entropy(o.flatten(0, 1), y.flatten(), reduction="none", ignore_index=-100)
    return each.sum() / (y != -100).sum()


attention.add("causal language model, fused attention, tied head", lambda: _language(_causal))
attention.add("rotary positions", lambda: _language(_rotary, positions=False))
attention.add("ALiBi", lambda: _language(_alibi, positions=False))
attention.add("attention by hand", lambda: _language(_by_hand))
attention.add("linear attention by cumulative sums", lambda: _language(_linear))
attention.add("normalised queries and keys", lambda: _language(_normalised))
attention.add("sliding window by a boolean mask", lambda: _language(_windowed))
attention.add("soft-capped scores", lambda: _language(_capped))
attention.add("retention with group norm", lambda: _language(_retained, positions=False))
attention.add("token losses, some ignored", lambda: _language(_causal, ignored=True))
attention.add("token losses summed", _summed_tokens)
attention.add("z-loss beside the token losses", lambda: _language(_causal, loss=_with_z, ignored=True))
attention.add("loss in chunks of tokens", lambda: _language(_causal, loss=_chunked, ignored=True))
attention.add("several tokens predicted ahead", lambda: _language(_causal, loss=_ahead, ignored=True))


def _causal_score(score: Tensor, _: Tensor, __: Tensor, to: Tensor, at: Tensor) -> Tensor:
    return torch.where(to >= at, score, -float("inf"))


@attention.case(sentence="flex_attention has no backward pass on the CPU")
def flex() -> Example:
    """flex_attention with a score function."""

    def attend(_: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flex_attention(q, k, v, score_mod=_causal_score)

    return _language(attend)


@attention.case()
def fully_masked_rows() -> Example:
    """Rows of attention that are masked entirely."""

    def forward(self: Any, x: Tensor, kept: Tensor) -> Tensor:
        q, k, v = self.f(x).chunk(3, -1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=kept[:, None] & kept[:, :, None])
        return self.h((y * kept[..., None]).sum(1) / kept.sum(1, keepdim=True))

    def batch(n: int) -> Any:
        kept = torch.ones(n, 5, dtype=torch.bool)
        kept[0, 3:] = False
        return (torch.randn(n, 5, 8), kept), classes(3, n)

    return Example(Forward(forward, f=nn.Linear(8, 24), h=nn.Linear(8, 3)), CE, [batch(4), batch(2)])


@attention.case()
def perceiver() -> Example:
    """Perceiver: learned latents attend to inputs of any length."""

    def forward(self: Any, x: Tensor) -> Tensor:
        z = self.latents.expand(len(x), -1, -1)
        y = self.embed(x)
        z = z + self.cross(z, y, y, need_weights=False)[0]
        return self.h((z + self.inner(z, z, z, need_weights=False)[0]).mean(1))

    attend = lambda: nn.MultiheadAttention(12, 2, batch_first=True)
    model = Forward(forward, embed=nn.Linear(4, 12), cross=attend(), inner=attend(), h=nn.Linear(12, 3))
    model.latents = nn.Parameter(torch.randn(1, 3, 12))
    return Example(model, CE, [(torch.randn(n, t, 4), classes(3, n)) for n, t in ((3, 7), (2, 5))])


@attention.case()
def relative_bias() -> Example:
    """Relative position bias by bucket (T5's)."""

    def forward(self: Any, x: Tensor) -> Tensor:
        q, k, v = (part.view(len(x), -1, 2, 4).transpose(1, 2) for part in self.f(x).chunk(3, -1))
        t = torch.arange(x.shape[1])
        bias = self.bias((t[None] - t[:, None]).clamp(-3, 3) + 3).permute(2, 0, 1)
        return self.h(F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2).mean(1))

    return Example(
        Forward(forward, f=nn.Linear(8, 24), bias=nn.Embedding(7, 2), h=nn.Linear(8, 3)),
        CE,
        [(torch.randn(n, 6, 8), classes(3, n)) for n in (4, 2)],
    )


@attention.case()
def performer() -> Example:
    """Performer: positive random features."""

    def forward(self: Any, x: Tensor) -> Tensor:
        q, k, v = self.f(x).chunk(3, -1)
        phi = lambda z: torch.exp(z @ self.omega - z.square().sum(-1, keepdim=True) / 2)
        a, b = phi(q), phi(k)
        return self.h(((a @ (b.transpose(1, 2) @ v)) / (a @ b.sum(1)[..., None])).mean(1))

    model = Forward(forward, f=nn.Linear(8, 24), h=nn.Linear(8, 3))
    model.register_buffer("omega", torch.randn(8, 16))
    return Example(model, CE, [(torch.randn(n, 6, 8), classes(3, n)) for n in (4, 2)])


@attention.case()
def vision_patches() -> Example:
    """Vision transformer by hand, class token and learned positions."""

    def forward(self: Any, x: Tensor) -> Tensor:
        z = self.patch(x).flatten(2).transpose(1, 2)
        z = torch.cat([self.token.expand(len(x), -1, -1), z], 1) + self.place
        return self.h(self.block(z)[:, 0])

    full = lambda _, q, k, v: F.scaled_dot_product_attention(q, k, v)
    model = Forward(forward, patch=nn.Conv2d(3, 12, 4, 4), block=_Block(12, 2, full), h=nn.Linear(12, 5))
    model.token, model.place = nn.Parameter(torch.randn(1, 1, 12)), nn.Parameter(torch.randn(1, 10, 12))
    return Example(model, CE, [(torch.randn(n, 3, 12, 12), classes(5, n)) for n in (4, 2)])


state_spaces = Family("state spaces")


@state_spaces.case()
def long_convolution() -> Example:
    """S4: long convolution by FFT."""

    def forward(self: Any, x: Tensor) -> Tensor:
        n = x.shape[1]
        kernel = self.b[:, None] * torch.exp(-F.softplus(self.a)[:, None] * torch.arange(n, dtype=x.dtype))
        y = torch.fft.irfft(torch.fft.rfft(x.transpose(1, 2), 2 * n) * torch.fft.rfft(kernel, 2 * n), 2 * n)
        return self.h(F.gelu(y[..., :n]).mean(-1))

    model = Forward(forward, h=nn.Linear(6, 3))
    model.a, model.b = nn.Parameter(torch.rand(6)), nn.Parameter(torch.randn(6))
    return Example(model, CE, [(torch.randn(n, t, 6), classes(3, n)) for n, t in ((4, 16), (2, 12))])


@state_spaces.case()
def selective() -> Example:
    """Mamba: selective scan in a loop."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x, gate = self.f(x).chunk(2, -1)
        step = F.softplus(self.step(x))
        b, c = self.bc(x).chunk(2, -1)
        a = torch.exp(-step[..., None] * self.a.exp())
        drive = (step * x)[..., None] * b[:, :, None]
        state, out = x.new_zeros(len(x), 8, 4), []
        for t in range(x.shape[1]):
            state = a[:, t] * state + drive[:, t]
            out.append((state * c[:, t, None]).sum(-1))
        return self.h((torch.stack(out, 1) * F.silu(gate)).mean(1))

    model = Forward(forward, f=nn.Linear(6, 16), step=nn.Linear(8, 8), bc=nn.Linear(8, 8), h=nn.Linear(8, 3))
    model.a = nn.Parameter(torch.arange(1.0, 5).log().repeat(8, 1))
    return Example(model, CE, [(torch.randn(n, 6, 6), classes(3, n)) for n in (3, 2)])


@state_spaces.case()
def diagonal_complex() -> Example:
    """LRU: complex diagonal recurrence by cumulative sums."""

    def forward(self: Any, x: Tensor) -> Tensor:
        t = torch.arange(x.shape[1], dtype=x.dtype)
        rate = torch.complex(-self.decay.exp(), self.turn)
        power = torch.exp(rate[:, None] * t)
        state = ((x @ self.b).transpose(1, 2) / power).cumsum(-1) * power
        return self.h(state.real.mean(-1))

    model = Forward(forward, h=nn.Linear(6, 3))
    model.decay, model.turn = nn.Parameter(torch.randn(6) / 4 - 2), nn.Parameter(torch.randn(6))
    model.b = nn.Parameter(torch.randn(4, 6) / 2)
    return Example(model, CE, [(torch.randn(n, 8, 4), classes(3, n)) for n in (4, 2)])


@state_spaces.case()
def receptance() -> Example:
    """RWKV: receptance and decayed sums of keys, log-sum-exp stabilised."""

    def forward(self: Any, x: Tensor) -> Tensor:
        r, k, v = self.f(x).chunk(3, -1)
        top, bottom, most = torch.zeros_like(k[:, 0]), torch.zeros_like(k[:, 0]), k.new_full(k[:, 0].shape, -30.0)
        out = []
        for t in range(x.shape[1]):
            new = torch.maximum(most - self.decay.exp(), k[:, t])
            old, now = torch.exp(most - self.decay.exp() - new), torch.exp(k[:, t] - new)
            top, bottom, most = old * top + now * v[:, t], old * bottom + now, new
            out.append(r[:, t].sigmoid() * top / bottom)
        return self.h(torch.stack(out, 1).mean(1))

    model = Forward(forward, f=nn.Linear(6, 24), h=nn.Linear(8, 3))
    model.decay = nn.Parameter(torch.randn(8) / 2)
    return Example(model, CE, [(torch.randn(n, 5, 6), classes(3, n)) for n in (4, 2)])


@state_spaces.case()
def hyena() -> Example:
    """Hyena: gated long convolutions with implicit filters."""

    def forward(self: Any, x: Tensor) -> Tensor:
        n = x.shape[1]
        a, b, v = self.f(x).transpose(1, 2).chunk(3, 1)
        t = torch.linspace(0, 1, n, dtype=x.dtype)[:, None]
        filters = (self.filter(torch.cat([t, (6 * t).sin()], 1)) * torch.exp(-3 * t)).T
        long = torch.fft.irfft(torch.fft.rfft(a * v, 2 * n) * torch.fft.rfft(filters, 2 * n), 2 * n)[..., :n]
        return self.h((b * long).mean(-1))

    model = Forward(forward, f=nn.Linear(4, 18), filter=mlp(2, 6), h=nn.Linear(6, 3))
    return Example(model, CE, [(torch.randn(n, 10, 4), classes(3, n)) for n in (4, 2)])


@state_spaces.case()
def memory_network() -> Example:
    """Modern Hopfield memory and a differentiable key-value store."""

    def forward(self: Any, x: Tensor) -> Tensor:
        state = self.f(x)
        for _ in range(3):
            state = (4 * state @ self.memory.T).softmax(-1) @ self.memory
        return self.h(state)

    model = Forward(forward, f=nn.Linear(6, 8), h=nn.Linear(8, 3))
    model.memory = nn.Parameter(torch.randn(7, 8))
    return Example(model, CE, [(torch.randn(n, 6), classes(3, n)) for n in (6, 3)])


@state_spaces.case()
def forecasting_patches() -> Example:
    """Patch transformer for time series, reversible normalisation."""

    def forward(self: Any, x: Tensor) -> Tensor:
        mean, scale = x.mean(1, keepdim=True), x.std(1, keepdim=True) + 1e-5
        z = self.embed(((x - mean) / scale).unfold(1, 4, 4))
        return self.h(self.t(z).flatten(1)) * scale + mean

    layer = nn.TransformerEncoderLayer(12, 2, 16, batch_first=True)
    model = Forward(forward, embed=nn.Linear(4, 12), t=layer, h=nn.Linear(48, 3))
    return Example(model, MSE, [(torch.randn(n, 16), torch.randn(n, 3)) for n in (4, 2)])
