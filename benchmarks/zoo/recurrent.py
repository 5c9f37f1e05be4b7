"""Recurrent networks: fused, by cells, packed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from zoo.case import Example, Family

recurrent = Family("recurrent")

CE = nn.CrossEntropyLoss()


def _words(*shape: int, of: int = 50, least: int = 0) -> Tensor:
    return torch.randint(least, of, shape)


class _Reader(nn.Module):
    """Embedding, recurrent layers, and a classifier of the last state or of the mean over valid positions."""

    def __init__(self, kind: type[nn.RNNBase], *, padding: int | None = None, **settings: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16, padding_idx=padding)
        self.layers = kind(16, 20, batch_first=True, **settings)
        width = settings.get("proj_size") or 20
        self.head = nn.Linear(width * (2 if settings.get("bidirectional") else 1), 5)

    def forward(self, words: Tensor, lengths: Any = None) -> Tensor:
        x = self.embed(words)
        if lengths is None:
            return self.head(self.layers(x)[0][:, -1])
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        states, counts = pad_packed_sequence(self.layers(packed)[0], batch_first=True)
        return self.head(states.sum(1) / counts[:, None].to(states))


def _reads(kind: type[nn.RNNBase], **settings: Any) -> Example:
    data = [(_words(6, 5), _words(6, of=5)), (_words(4, 4), _words(4, of=5))]
    return Example(_Reader(kind, **settings), CE, data)


recurrent.add("LSTM", lambda: _reads(nn.LSTM))
recurrent.add("LSTM, 2 layers, bidirectional", lambda: _reads(nn.LSTM, num_layers=2, bidirectional=True))
recurrent.add("LSTM with projections", lambda: _reads(nn.LSTM, proj_size=8))
recurrent.add("GRU", lambda: _reads(nn.GRU))
recurrent.add("GRU, 2 layers", lambda: _reads(nn.GRU, num_layers=2))
recurrent.add("RNN, tanh", lambda: _reads(nn.RNN))
recurrent.add("RNN, ReLU", lambda: _reads(nn.RNN, nonlinearity="relu"))
recurrent.add("LSTM with padding_idx, pads read", lambda: _reads(nn.LSTM, padding=0))
recurrent.add("GRU with padding_idx, pads read", lambda: _reads(nn.GRU, padding=0))
recurrent.add("RNN with padding_idx, pads read", lambda: _reads(nn.RNN, padding=0))


def _packs(as_list: bool) -> Example:
    def batch(lengths: list[int]) -> Any:
        return (_words(len(lengths), max(lengths)), lengths if as_list else torch.tensor(lengths)), _words(
            len(lengths), of=5
        )

    model = _Reader(nn.LSTM, bidirectional=True)
    return Example(model, CE, [batch([10, 7, 3, 9]), batch([2, 8, 5])])


recurrent.add("bidirectional LSTM, packed inside, lengths as a tensor", lambda: _packs(as_list=False))
recurrent.add("bidirectional LSTM, packed inside, lengths as a list", lambda: _packs(as_list=True))


class _PackedReader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers, self.head = nn.GRU(6, 10), nn.Linear(10, 3)

    def forward(self, packed: Any) -> Tensor:
        return self.head(self.layers(packed)[1][-1])


def _packed(lengths: list[int]) -> Any:
    return pack_padded_sequence(torch.randn(max(lengths), len(lengths), 6), lengths)


@recurrent.case()
def packed_argument() -> Example:
    """GRU, a PackedSequence as the one argument."""
    data = [(_packed([5, 4, 2, 1]), _words(4, of=3)), (_packed([4, 3, 1]), _words(3, of=3))]
    return Example(_PackedReader(), CE, data, outputs=lambda model, batch: model(batch[0]))


@recurrent.case()
def packed_in_tuple() -> Example:
    """GRU, a PackedSequence in a tuple of arguments."""
    data = [((_packed([5, 4, 2, 1]),), _words(4, of=3)), ((_packed([4, 3, 1]),), _words(3, of=3))]
    return Example(_PackedReader(), CE, data)


class _Cells(nn.Module):
    """A loop over time of cells, all states of which feed the head."""

    def __init__(self, cell: nn.Module, width: int) -> None:
        super().__init__()
        self.cell, self.head, self.width = cell, nn.Linear(width, 2), width

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), self.width)
        memory = state
        for now in x.unbind(1):
            if isinstance(self.cell, nn.LSTMCell):
                state, memory = self.cell(now, (state, memory))
            else:
                state = self.cell(now, state)
        return self.head(state)


def _loops(make: Any) -> Example:
    data = [(torch.randn(n, 5, 5), torch.randn(n, 2)) for n in (8, 3)]
    return Example(_Cells(make(5, 9), 9), nn.MSELoss(), data)


recurrent.add("RNNCell in a loop", lambda: _loops(nn.RNNCell))
recurrent.add("GRUCell in a loop", lambda: _loops(nn.GRUCell))
recurrent.add("LSTMCell in a loop", lambda: _loops(nn.LSTMCell))


class _ConvLSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gates, self.head = nn.Conv2d(1 + 4, 16, 3, padding=1), nn.Conv2d(4, 1, 1)

    def forward(self, frames: Tensor) -> Tensor:
        hidden = frames.new_zeros(len(frames), 4, *frames.shape[-2:])
        memory = hidden
        for frame in frames.unbind(1):
            i, f, o, g = self.gates(torch.cat([frame, hidden], 1)).chunk(4, 1)
            memory = f.sigmoid() * memory + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * memory.tanh()
        return self.head(hidden)


@recurrent.case()
def conv_lstm() -> Example:
    """Convolutional LSTM, next frame."""
    data = [(torch.randn(n, 4, 1, 8, 8), torch.randn(n, 1, 8, 8)) for n in (2, 1)]
    return Example(_ConvLSTM(), nn.MSELoss(), data)


class _Translator(nn.Module):
    """Encoder, decoder with additive attention (Bahdanau), teacher forcing."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(30, 12), nn.Embedding(30, 12)
        self.encoder, self.cell = nn.GRU(12, 16, batch_first=True), nn.GRUCell(12 + 16, 16)
        self.query, self.key, self.score = nn.Linear(16, 8), nn.Linear(16, 8), nn.Linear(8, 1)
        self.head = nn.Linear(16, 30)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, last = self.encoder(self.source(source))
        state, logits = last[0], []
        for word in self.target(target).unbind(1):
            energy = self.score(torch.tanh(self.query(state)[:, None] + self.key(memory)))
            context = (energy.softmax(1) * memory).sum(1)
            state = self.cell(torch.cat([word, context], 1), state)
            logits.append(self.head(state))
        return torch.stack(logits, 1)


@recurrent.case()
def attention_decoder() -> Example:
    """GRU encoder and decoder with additive attention, token losses."""
    data = [((_words(n, t, of=30), _words(n, t, of=30)), _words(n, t, of=30)) for n, t in ((3, 4), (2, 3))]
    loss = lambda o, y: nn.functional.cross_entropy(o.flatten(0, 1), y.flatten())
    return Example(_Translator(), loss, data, weight=lambda batch: batch[1].numel())
