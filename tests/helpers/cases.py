"""Models, losses and data that all tests of the operators run on, and their dense matrices from plain autograd."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

MATRICES = ("Hessian", "GaussNewton", "Residual")
"""Matrices that `dense` computes, of all those in `hesspec.matrices.MATRICES`."""


@dataclass(frozen=True)
class Case:
    """A model, a loss and batches; `options` go to the operator."""

    model: nn.Module
    loss: Callable[..., Tensor]
    data: list[tuple[Any, Any]]
    options: dict[str, Any] = field(default_factory=dict)
    warning: str | None = None

    def to(self, dtype: torch.dtype) -> "Case":
        def convert(leaf: Any) -> Any:
            return leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

        data = [pytree.tree_map(convert, batch) for batch in self.data]
        loss = self.loss.to(dtype) if isinstance(self.loss, nn.Module) else self.loss
        return Case(self.model.to(dtype), loss, data, self.options, self.warning)


class ResidualNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 3, padding=1)
        self.body = nn.Sequential(
            nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Conv2d(3, 3, 1)
        )
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        x = F.relu(x + self.body(x), inplace=True)
        return self.head(x.mean((2, 3)))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=6, dropout=0.1, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x)[:, 0])


class Tied(nn.Module):
    """The decoder is the encoder's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 3, bias=False)
        self.decoder = nn.Linear(3, 6)
        self.again = nn.Linear(6, 3, bias=False)
        self.again.weight = self.encoder.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.decoder(torch.tanh(self.encoder(x))))


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(4, 3)
        self.idle = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.used(x))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 4), nn.Linear(2, 4)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return torch.tanh(self.left(left)) * self.right(right)


class NextTokenLoss(nn.CrossEntropyLoss):
    """Cross-entropy of the next token, (B, T, V) against (B, T)."""

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return super().forward(logits.flatten(0, 1), targets.flatten())


def token_loss(outputs: Any, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.logits.flatten(0, 1), targets.flatten(), ignore_index=-100)


def own_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return (torch.logsumexp(outputs, 1) + torch.cosh(outputs[:, 0] - targets)).mean()


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = build().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            # Statistics other than 0 and 1, as after training.
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 1.5)
    return model


class Recurrent(nn.Module):
    """Sequences (N, T, 3) to 2 outputs by a fused LSTM, which has no forward-mode rule."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def mlp(outputs: int = 4) -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, outputs)))


# Each shape of batches is traced by itself, which takes most of the time: a short last batch is that of cases in which
# something depends on it (how batches are weighted, what a model does with inputs), and not of every loss and model.
SHORT, EVEN = (5, 5, 2), (4, 4, 4)


def batches(shape: tuple[int, ...], targets: Callable[[int], Tensor], sizes: tuple[int, ...] = SHORT) -> list[Any]:
    """Batches of random inputs; unless sizes are given, the last one is short."""
    torch.manual_seed(1)
    return [(torch.randn(size, *shape, dtype=torch.float64), targets(size)) for size in sizes]


def labels(classes: int) -> Callable[[int], Tensor]:
    return lambda size: torch.randint(classes, (size,))


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=7,
        n_positions=5,
        n_embd=4,
        n_layer=1,
        n_head=2,
        n_inner=6,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    return seeded(lambda: transformers.GPT2LMHeadModel(config))


def tokens(sizes: tuple[int, ...] = (3, 2)) -> list[Any]:
    torch.manual_seed(2)
    result = []
    for size in sizes:
        ids = torch.randint(7, (size, 5))
        targets = torch.randint(7, (size, 5))
        targets[0, : len(result) + 3] = -100
        result.append(({"input_ids": ids}, targets))
    return result


def cnn() -> nn.Module:
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1),
            nn.BatchNorm2d(3),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(12, 4),
        )
    )


def frozen() -> nn.Module:
    model = mlp()
    model[0].requires_grad_(False)
    return model


def _mlp_case(
    loss: Callable[..., Tensor],
    targets: Callable[[int], Tensor] = labels(4),  # noqa: B008
    sizes: tuple[int, ...] = EVEN,
    **options: Any,
) -> Case:
    return Case(mlp(), loss, batches((5,), targets, sizes), options)


CASES: dict[str, Callable[[], Case]] = {
    "mlp": lambda: _mlp_case(nn.CrossEntropyLoss(), sizes=SHORT),
    "cnn": lambda: Case(cnn(), nn.CrossEntropyLoss(), batches((1, 4, 4), labels(4))),
    "residual cnn": lambda: Case(seeded(ResidualNetwork), nn.CrossEntropyLoss(), batches((1, 4, 4), labels(4), EVEN)),
    "transformer encoder": lambda: Case(seeded(Encoder), nn.CrossEntropyLoss(), batches((3, 4), labels(3), EVEN)),
    "gpt2, dict inputs, ignored tokens": lambda: Case(gpt2(), NextTokenLoss(), tokens()),
    "gpt2, own loss": lambda: Case(gpt2(), token_loss, tokens((3, 3)), {"terms": lambda y: (y != -100).sum()}),
    "label smoothing": lambda: _mlp_case(nn.CrossEntropyLoss(label_smoothing=0.1)),
    "class weights": lambda: _mlp_case(nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0, 0.7]))),
    "class weights and smoothing": lambda: _mlp_case(
        nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0, 0.7]), label_smoothing=0.2)
    ),
    "ignored class": lambda: _mlp_case(nn.CrossEntropyLoss(ignore_index=1)),
    "sum": lambda: _mlp_case(nn.CrossEntropyLoss(reduction="sum"), sizes=SHORT),
    "functional": lambda: _mlp_case(F.cross_entropy),
    "class probabilities": lambda: _mlp_case(
        nn.CrossEntropyLoss(), lambda size: torch.rand(size, 4, dtype=torch.float64).softmax(1)
    ),
    "mse": lambda: _mlp_case(nn.MSELoss(), lambda size: torch.randn(size, 4, dtype=torch.float64), SHORT),
    "bce": lambda: _mlp_case(nn.BCEWithLogitsLoss(), lambda size: torch.rand(size, 4, dtype=torch.float64)),
    "own loss": lambda: _mlp_case(own_loss, lambda size: torch.randn(size, dtype=torch.float64), SHORT),
    "tied weights": lambda: Case(seeded(Tied), nn.CrossEntropyLoss(), batches((6,), labels(3), EVEN)),
    "frozen parameters": lambda: Case(frozen(), nn.CrossEntropyLoss(), batches((5,), labels(4), EVEN)),
    "unused parameters": lambda: Case(
        seeded(Unused),
        nn.CrossEntropyLoss(),
        batches((4,), labels(3), EVEN),
        warning="do not influence the loss.*idle.weight",
    ),
    "parameter subset": lambda: _mlp_case(nn.CrossEntropyLoss(), params=["2.*", "0.bias"]),
    "tuple inputs": lambda: Case(
        seeded(TwoInputs),
        nn.CrossEntropyLoss(),
        [((x[:, :3], x[:, 3:]), y) for x, y in batches((5,), labels(4), EVEN)],
    ),
}


@dataclass(frozen=True)
class Dense:
    """Dense matrices in float64, of all data as one batch, by plain reverse mode twice."""

    matrices: dict[str, Tensor]
    value: float


def dense(case: Case, names: tuple[str, ...]) -> Dense:
    case = case.to(torch.float64)
    parameters = dict(case.model.named_parameters())
    chosen = [parameters[name].detach() for name in names]
    leaves, structures = zip(*(pytree.tree_flatten(batch) for batch in case.data), strict=True)
    inputs, targets = pytree.tree_unflatten([torch.cat(parts) for parts in zip(*leaves, strict=True)], structures[0])

    def predict(*values: Tensor) -> Any:
        named = dict(zip(names, values, strict=True))
        if isinstance(inputs, dict):
            return functional_call(case.model, named, (), inputs)
        return functional_call(case.model, named, tuple(inputs) if isinstance(inputs, list | tuple) else (inputs,))

    def loss_of(outputs: Any) -> Tensor:
        if isinstance(case.loss, nn.Module) and hasattr(outputs, "logits"):
            outputs = outputs.logits
        return case.loss(outputs, targets)

    def logits(*values: Tensor) -> Tensor:
        outputs = predict(*values)
        return outputs.logits if hasattr(outputs, "logits") else outputs

    def loss_of_logits(tensor: Tensor) -> Tensor:
        if isinstance(case.loss, nn.Module) or isinstance(inputs, Tensor | list | tuple):
            return case.loss(tensor, targets)
        return case.loss(transformers.modeling_outputs.CausalLMOutput(logits=tensor), targets)

    with sdpa_kernel(SDPBackend.MATH):
        blocks = torch.autograd.functional.hessian(lambda *t: loss_of(predict(*t)), tuple(chosen))
        jacobian = jacrev(logits, argnums=tuple(range(len(chosen))))(*chosen)
        outputs = logits(*chosen).detach()
        curvature = torch.autograd.functional.hessian(loss_of_logits, outputs)
        value = float(loss_of(predict(*chosen)).detach())
    sizes = [value_.numel() for value_ in chosen]
    hessian = torch.cat(
        [torch.cat([part.reshape(rows, -1) for part in row], 1) for row, rows in zip(blocks, sizes, strict=True)]
    )
    flat = torch.cat([part.reshape(outputs.numel(), -1) for part in jacobian], 1)
    gauss_newton = flat.T @ curvature.reshape(outputs.numel(), -1) @ flat
    return Dense({"Hessian": hessian, "GaussNewton": gauss_newton, "Residual": hessian - gauss_newton}, value)
