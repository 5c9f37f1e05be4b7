"""Speech and sound in plain PyTorch."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from zoo.case import Example, Family
from zoo.parts import CE, MSE, Forward, classes, mlp

speech = Family("speech")


def _spoken(frames: int, width: int, count: int) -> list[Any]:
    """Features with words of unequal lengths."""
    data = []
    for lengths in ((3, 2, 4), (2, 3)):
        n = len(lengths)
        words = torch.randint(1, count, (n, max(lengths)))
        data.append((torch.randn(n, frames, width), (words, torch.full((n,), frames), torch.tensor(lengths))))
    return data


def _ctc(o: Tensor, t: Any) -> Tensor:
    return F.ctc_loss(o.log_softmax(-1).transpose(0, 1), *t)


def _count(batch: Any) -> float:
    return float(len(batch[1][0]))


@speech.case()
def deep_speech() -> Example:
    """DeepSpeech 2: bidirectional GRU with CTC."""
    model = Forward(
        lambda self, x: self.h(self.g(x)[0]), g=nn.GRU(5, 6, batch_first=True, bidirectional=True), h=nn.Linear(12, 6)
    )
    return Example(model, _ctc, _spoken(10, 5, 6), weight=_count)


@speech.case()
def convolutional_ctc() -> Example:
    """QuartzNet-like separable convolutions with nn.CTCLoss."""
    model = nn.Sequential(
        nn.Conv1d(5, 5, 3, padding=1, groups=5),
        nn.Conv1d(5, 8, 1),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Conv1d(8, 6, 1),
        nn.LogSoftmax(1),
    )
    ctc = nn.CTCLoss(zero_infinity=True)
    data = [(x.transpose(1, 2), t) for x, t in _spoken(10, 5, 6)]
    # Log-probabilities are logits whose log-softmax they are.
    again = lambda o, b: ctc(o.log_softmax(1).permute(2, 0, 1), *b[1])
    return Example(model, lambda o, t: ctc(o.permute(2, 0, 1), *t), data, weight=_count, criterion=again)


@speech.case()
def conformer() -> Example:
    """Conformer block with CTC."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = x + 0.5 * self.f(self.n1(x))
        x = x + self.a(*(self.n2(x),) * 3, need_weights=False)[0]
        y = F.glu(self.wide(self.n3(x).transpose(1, 2)), 1)
        x = x + self.point(F.silu(self.m(self.depth(y)))).transpose(1, 2)
        return self.h(x)

    parts: dict[str, nn.Module] = {
        "f": mlp(8, 8, 16, nn.SiLU),
        "a": nn.MultiheadAttention(8, 2, batch_first=True),
        "h": nn.Linear(8, 6),
    }
    parts |= {f"n{i}": nn.LayerNorm(8) for i in (1, 2, 3)}
    parts |= {
        "wide": nn.Conv1d(8, 16, 1),
        "depth": nn.Conv1d(8, 8, 3, padding=1, groups=8),
        "m": nn.BatchNorm1d(8),
        "point": nn.Conv1d(8, 8, 1),
    }
    return Example(Forward(forward, **parts), _ctc, _spoken(10, 8, 6), weight=_count)


@speech.case()
def transducer() -> Example:
    """RNN transducer: the lattice summed by log-sum-exp."""

    def forward(self: Any, x: Tensor, words: Tensor) -> Tensor:
        heard = self.e(x)[0]
        said = self.p(F.pad(self.words(words), (0, 0, 1, 0)))[0]
        return self.j(torch.tanh(heard[:, :, None] + said[:, None]))

    def loss(o: Tensor, words: Tensor) -> Tensor:
        log = o.log_softmax(-1)
        blank = log[..., 0]
        emit = log[:, :, :-1].gather(3, words[:, None, :, None].expand(-1, o.shape[1], -1, 1))[..., 0]
        rows = []
        for t in range(o.shape[1]):
            row = []
            for u in range(o.shape[2]):
                ways = ([rows[t - 1][u] + blank[:, t - 1, u]] if t else []) + (
                    [row[u - 1] + emit[:, t, u - 1]] if u else []
                )
                row.append(torch.logsumexp(torch.stack(ways), 0) if ways else o.new_zeros(len(o)))
            rows.append(row)
        return -(rows[-1][-1] + blank[:, -1, -1]).mean()

    model = Forward(
        forward,
        e=nn.GRU(4, 6, batch_first=True),
        words=nn.Embedding(6, 4),
        p=nn.GRU(4, 6, batch_first=True),
        j=nn.Linear(6, 6),
    )
    data = []
    for n in (3, 2):
        words = torch.randint(1, 6, (n, 3))
        data.append(((torch.randn(n, 4, 4), words), words))
    return Example(model, loss, data)


def _spectrum(x: Tensor, size: int) -> Tensor:
    found = torch.stft(x, size, window=torch.hann_window(size).to(x), return_complex=True)
    return (found.abs().square() + 1e-3).sqrt()


@speech.case()
def short_time_fourier() -> Example:
    """Multi-resolution STFT loss of a vocoder with weight norm."""
    norm = parametrizations.weight_norm
    model = nn.Sequential(
        norm(nn.ConvTranspose1d(4, 6, 4, 2, 1)),
        nn.LeakyReLU(0.1),
        norm(nn.ConvTranspose1d(6, 4, 4, 2, 1)),
        nn.LeakyReLU(0.1),
        norm(nn.Conv1d(4, 1, 3, padding=1)),
        nn.Tanh(),
    )

    def loss(o: Tensor, y: Tensor) -> Tensor:
        total = 0
        for size in (8, 16):
            a, b = _spectrum(o[:, 0], size), _spectrum(y, size)
            total = total + ((a - b).norm(dim=(1, 2)) / b.norm(dim=(1, 2))).mean() + (a.log() - b.log()).square().mean()
        return total

    return Example(model, loss, [(torch.randn(n, 4, 8), torch.randn(n, 32)) for n in (2, 1)])


@speech.case()
def wave_net() -> Example:
    """WaveNet: gated dilated causal convolutions, classes of amplitude."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x, total = self.e(x).transpose(1, 2), 0
        for i, (gate, out) in enumerate(zip(self.gates, self.outs, strict=True)):
            a, b = gate(F.pad(x, (2**i, 0))).chunk(2, 1)
            z = out(a.tanh() * b.sigmoid())
            x, total = x + z, total + z
        return self.h(F.relu(total))

    model = Forward(
        forward,
        e=nn.Embedding(12, 6),
        gates=nn.ModuleList(nn.Conv1d(6, 12, 2, dilation=2**i) for i in range(3)),
        outs=nn.ModuleList(nn.Conv1d(6, 6, 1) for _ in range(3)),
        h=nn.Conv1d(6, 12, 1),
    )
    return Example(model, CE, [(x[:, :-1], x[:, 1:]) for x in (classes(12, n, 12) for n in (2, 1))])


@speech.case()
def key_words() -> Example:
    """Key words from raw sound: learned band-pass filters (SincNet)."""

    def forward(self: Any, x: Tensor) -> Tensor:
        t = torch.arange(-7, 8).to(x)
        low = self.low.abs() + 0.02
        high = low + self.band.abs() + 0.02
        sinc = lambda f: 2 * f[:, None] * torch.sinc(2 * f[:, None] * t)
        filters = (sinc(high) - sinc(low)) * torch.hamming_window(15).to(x)
        z = F.conv1d(x[:, None], filters[:, None], stride=4)
        return self.h(torch.log(z.square().mean(-1) + 1e-3))

    model = Forward(forward, h=nn.Linear(6, 4))
    model.low, model.band = nn.Parameter(torch.rand(6) / 5), nn.Parameter(torch.rand(6) / 5)
    return Example(model, CE, [(torch.randn(n, 80), classes(4, n)) for n in (4, 2)])


@speech.case()
def speakers() -> Example:
    """Speaker embeddings (GE2E) of an LSTM, a loss over the batch."""

    def loss(z: Tensor, _: Any) -> Tensor:
        z = F.normalize(z, dim=1).view(2, -1, z.shape[1])
        center = F.normalize(z.mean(1), dim=1)
        return F.cross_entropy(5 * z.flatten(0, 1) @ center.T, torch.arange(2).repeat_interleave(z.shape[1]))

    model = Forward(lambda self, x: self.h(self.g(x)[1][0][-1]), g=nn.LSTM(4, 6, batch_first=True), h=nn.Linear(6, 4))
    return Example(model, loss, [(torch.randn(6, 5, 4), torch.zeros(6)), (torch.randn(4, 5, 4), torch.zeros(4))])


@speech.case()
def text_to_speech() -> Example:
    """Tacotron-like synthesis: location-sensitive attention, stop token."""

    def forward(self: Any, words: Tensor, frames: Tensor) -> Any:
        memory = self.e(words)
        state, weight, out, stop = memory.new_zeros(len(words), 8), memory.new_zeros(words.shape), [], []
        for frame in frames.unbind(1):
            place = self.location(weight[:, None]).transpose(1, 2)
            weight = self.score(torch.tanh(self.q(state)[:, None] + self.k(memory) + place))[..., 0].softmax(1)
            context = (weight[..., None] * memory).sum(1)
            state = self.cell(torch.cat([frame, context], 1), state)
            out.append(self.h(state))
            stop.append(self.stop(state)[:, 0])
        return torch.stack(out, 1), torch.stack(stop, 1)

    parts = {
        "e": nn.Embedding(10, 6),
        "q": nn.Linear(8, 6),
        "k": nn.Linear(6, 6),
        "location": nn.Conv1d(1, 6, 3, padding=1),
        "score": nn.Linear(6, 1),
        "cell": nn.GRUCell(10, 8),
        "h": nn.Linear(8, 4),
        "stop": nn.Linear(8, 1),
    }
    loss = lambda o, y: F.mse_loss(o[0], y[0]) + F.binary_cross_entropy_with_logits(o[1], y[1])
    data = [
        ((classes(10, n, 5), torch.randn(n, 3, 4)), (torch.randn(n, 3, 4), torch.rand(n, 3).round())) for n in (3, 2)
    ]
    return Example(Forward(forward, **parts), loss, data)


@speech.case()
def separation() -> Example:
    """Source separation with permutation-invariant SI-SDR (Conv-TasNet's kind)."""

    def forward(self: Any, x: Tensor) -> Tensor:
        z = F.relu(self.e(x[:, None]))
        mask = self.m(z).view(len(x), 2, *z.shape[1:]).sigmoid()
        return torch.stack([self.d(mask[:, i] * z)[:, 0] for i in range(2)], 1)

    def ratio(a: Tensor, b: Tensor) -> Tensor:
        target = (a * b).sum(-1, keepdim=True) / (b * b).sum(-1, keepdim=True) * b
        return -10 / math.log(10) * ((target**2).sum(-1) / ((a - target) ** 2).sum(-1)).log()

    def loss(o: Tensor, y: Tensor) -> Tensor:
        straight = ratio(o[:, 0], y[:, 0]) + ratio(o[:, 1], y[:, 1])
        crossed = ratio(o[:, 0], y[:, 1]) + ratio(o[:, 1], y[:, 0])
        return torch.minimum(straight, crossed).mean() / 2

    model = Forward(
        forward, e=nn.Conv1d(1, 6, 4, 2), m=nn.Conv1d(6, 12, 3, padding=1), d=nn.ConvTranspose1d(6, 1, 4, 2)
    )
    return Example(model, loss, [(torch.randn(n, 24), torch.randn(n, 2, 24)) for n in (3, 2)])


@speech.case()
def codec() -> Example:
    """Neural codec: residual vector quantisation, straight-through."""

    def forward(self: Any, x: Tensor) -> Any:
        z = self.e(x)
        left, total, rest = z, 0, 0
        for codes in self.codes:
            near = (left[..., None, :] - codes).square().sum(-1).argmin(-1)
            code = codes[near]
            rest = rest + (code.detach() - left).square().mean() + (code - left.detach()).square().mean()
            total, left = total + code, left - code.detach()
        return self.d(z + (total - z).detach()), rest

    model = Forward(forward, e=mlp(6, 3), d=mlp(3, 6), codes=nn.ParameterList([torch.randn(5, 3) for _ in range(2)]))
    return Example(
        model, lambda o, y: F.mse_loss(o[0], y) + 0.3 * o[1], [(x, x) for x in (torch.randn(n, 6) for n in (8, 4))]
    )


@speech.case()
def enhancement() -> Example:
    """Complex masks of a spectrogram, inverse STFT."""

    def forward(self: Any, x: Tensor) -> Tensor:
        window = torch.hann_window(8).to(x)
        spectrum = torch.stft(x, 8, window=window, return_complex=True)
        parts = torch.view_as_real(spectrum).permute(0, 3, 1, 2)
        mask = torch.view_as_complex(self.f(parts).permute(0, 2, 3, 1).contiguous())
        return torch.istft(spectrum * mask, 8, window=window, length=x.shape[1])

    model = Forward(forward, f=nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 2, 3, padding=1)))
    return Example(model, MSE, [(torch.randn(n, 24), torch.randn(n, 24)) for n in (3, 2)])
