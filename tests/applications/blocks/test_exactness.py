"""Products of diagonal blocks against dense matrices, and their spectra against exact eigenvalues."""

import numpy as np
import pytest
import torch
from reference import gauss_newton_of, hessian_of
from torch import nn
from torch.nn.functional import cross_entropy

import hesspec
from hesspec.applications.blocks.measuring import diagonal_blocks

CLASSES = 3
# Some 50 roundings on the way of an entry, relative to the norm of a product.
TOLERANCE = {torch.float32: 6e-6, torch.float64: 1e-14 * 50}


class Small(nn.Module):
    """Tied weights, an attention with a fused projection, and a parameter that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm = nn.LayerNorm(4)
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.first.weight
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x):
        h = torch.tanh(self.first(x))
        h = self.norm(h + self.attention(h, h, h)[0])
        return self.head(torch.tanh(self.tied(h))).mean(1)


def problem(dtype):
    torch.manual_seed(3)
    model = Small().eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.3 * torch.randn_like(value))
    # The same numbers in both precisions.
    x, y = torch.randn(6, 3, 4).to(dtype), torch.randint(CLASSES, (6,))
    return model.to(dtype), [(x[:3], y[:3]), (x[3:], y[3:])]


@pytest.fixture(scope="module")
def dense():
    model, data = problem(torch.float64)
    x, y = torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])
    whole = hessian_of(model, lambda: cross_entropy(model(x), y))
    part = gauss_newton_of(model, lambda: model(x), lambda f: cross_entropy(f, y))
    return {"Hessian": whole, "GaussNewton": part, "Residual": whole - part}


WEIGHT = "attention.in_proj_weight"
BLOCKS = [
    "parameter",
    "layer",
    "head",
    "projection",
    {
        "rows": {"first.weight": np.s_[1:3], "head.bias": [0, 2]},
        "some": {WEIGHT: np.s_[:, ::2]},
        "all": ["head.weight"],
    },
]


def entries_of(model, blocks):
    """Entries of the blocks in flat vectors, by writing numbers into the parameters."""
    numbers, begin = {}, 0
    for name, value in model.named_parameters():
        numbers[name] = np.arange(begin, begin + value.numel()).reshape(value.shape)
        begin += value.numel()
    if blocks == "parameter":
        return {name: [places.ravel()] for name, places in numbers.items()}
    if blocks == "layer":
        names = {"first": ["first"], "attention": ["attention"], "attention.out_proj": ["attention.out_proj", "norm"]}
        names["head"] = ["head"]
        return {
            block: [numbers[name].ravel() for name in numbers if name.rpartition(".")[0] in owners]
            for block, owners in names.items()
        }
    fused, bias, out = (numbers[f"attention.{name}"] for name in ("in_proj_weight", "in_proj_bias", "out_proj.weight"))
    if blocks == "head":
        return {
            f"attention, head {h}": [
                *(fused[4 * part + 2 * h : 4 * part + 2 * h + 2].ravel() for part in range(3)),
                *(bias[4 * part + 2 * h : 4 * part + 2 * h + 2] for part in range(3)),
                out[:, 2 * h : 2 * h + 2].ravel(),
            ]
            for h in range(2)
        }
    if blocks == "projection":
        found = {
            f"attention, {letter}": [fused[4 * part : 4 * part + 4].ravel(), bias[4 * part : 4 * part + 4]]
            for part, letter in enumerate("qkv")
        }
        found["attention, o"] = [out.ravel(), numbers["attention.out_proj.bias"]]
        for module in ("first", "norm", "head"):
            found[module] = [places.ravel() for name, places in numbers.items() if name.rpartition(".")[0] == module]
        return found
    return {
        "rows": [numbers["first.weight"][1:3].ravel(), numbers["head.bias"][[0, 2]]],
        "some": [numbers[WEIGHT][:, ::2].ravel()],
        "all": [numbers["head.weight"].ravel()],
    }


@pytest.mark.parametrize("mode", ["traced", "double backward"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("matrix", ["Hessian", "GaussNewton", "Residual"])
def test_products_of_all_kinds_of_blocks_are_exact(matrix, dtype, mode, dense):
    model, data = problem(dtype)
    operator = getattr(hesspec, matrix)(model, nn.CrossEntropyLoss(), data, mode=mode)
    for blocks in BLOCKS:
        diagonal, expected = diagonal_blocks(operator, blocks)[0], entries_of(model, blocks)
        assert set(expected) | {"rest"} >= set(diagonal.blocks)
        inside = {name: np.sort(np.concatenate(places)) for name, places in expected.items()}
        taken = np.concatenate(list(inside.values()))
        inside["rest"] = np.setdiff1d(np.arange(len(dense[matrix])), taken)
        torch.manual_seed(0)
        pairs = [(name, torch.randn(diagonal.size(name), dtype=dtype)) for name in diagonal.blocks]
        products = diagonal.products(pairs)
        assert all(diagonal._agrees.values())
        for (name, vector), product in zip(pairs, products, strict=True):
            assert diagonal.entries(name).tolist() == inside[name].tolist()
            true = dense[matrix][np.ix_(inside[name], inside[name])] @ vector.double()
            error = (product.double() - true).norm() / true.norm().clamp(min=1e-3)
            assert error < TOLERANCE[dtype], (name, float(error))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_spectra_of_blocks_are_exact_after_as_many_steps_as_parameters(dtype, dense):
    model, data = problem(dtype)
    result = hesspec.by_block(
        model, nn.CrossEntropyLoss(), data, blocks="projection", steps=200, mode="double backward"
    )
    inside = entries_of(model, "projection")
    whole = dense["Hessian"]
    scale = float(torch.linalg.matrix_norm(whole, 2))
    for name, spectrum in result.spectra.items():
        places = np.sort(np.concatenate(inside[name]))
        true = np.linalg.eigvalsh(whole[np.ix_(places, places)].numpy())
        assert spectrum.exact
        assert spectrum.trace == pytest.approx(true.sum(), abs=200 * torch.finfo(dtype).eps * scale)
        outermost = true[np.argmax(np.abs(true))]
        assert abs(spectrum.eigenvalues[0] - outermost) <= spectrum.error_bounds[0] + torch.finfo(dtype).eps * scale
    # The parameters are tied, so that each counts once; the traces of all blocks sum to that of the matrix.
    assert result.is_whole
    assert result.trace == pytest.approx(float(whole.trace()), abs=500 * torch.finfo(dtype).eps * scale)
    assert result.trace_standard_error == 0


def test_blocks_of_any_symmetric_operator_by_index():
    torch.manual_seed(0)
    matrix = torch.randn(30, 30, dtype=torch.float64)
    matrix = matrix + matrix.T
    result = hesspec.by_block(matrix, blocks={"a": slice(0, 10), "b": [12, 11, 20]}, steps=40)
    assert list(result) == ["a", "b", "rest"]
    for name, places in {"a": range(10), "b": [11, 12, 20], "rest": [10, *range(13, 20), *range(21, 30)]}.items():
        true = np.linalg.eigvalsh(matrix[np.ix_(list(places), list(places))].numpy())
        assert np.sort(result[name].eigenvalues) == pytest.approx(true, abs=1e-12)


def test_combinations_of_curvature_matrices_have_blocks_too(dense):
    model, data = problem(torch.float64)
    whole, part = (
        getattr(hesspec, name)(model, nn.CrossEntropyLoss(), data, mode="double backward")
        for name in ("Hessian", "GaussNewton")
    )
    result = hesspec.by_block(whole - part, blocks={"a": slice(0, 12)}, rest=False, steps=20)
    true = np.linalg.eigvalsh(dense["Residual"][:12, :12].numpy())
    assert result["a"].eigenvalues[0] == pytest.approx(true[np.argmax(np.abs(true))], abs=1e-12)
    assert np.isnan(result.trace_shares).all()


def test_probes_of_blocks_are_independent_and_repeatable():
    model, data = problem(torch.float64)
    settings = {"blocks": "parameter", "steps": 4, "probes": 2, "mode": "double backward"}
    first, again = (hesspec.by_block(model, nn.CrossEntropyLoss(), data, seed=5, **settings) for _ in range(2))
    assert first.ritz_values.tolist() == again.ritz_values.tolist()
    assert first.seeds.tolist() == list(range(5, 5 + len(first)))
    alone = hesspec.Hessian(model, nn.CrossEntropyLoss(), data, params="head.weight", mode="double backward")
    spectrum = hesspec.spectrum(alone, steps=4, probes=2, seed=first["head.weight"].attributes["seed"])
    assert first["head.weight"].ritz_values == pytest.approx(spectrum.ritz_values, rel=1e-9)
    assert first["head.weight"].matvecs == spectrum.matvecs


def test_a_lower_precision_is_in_the_bounds():
    model, data = problem(torch.float32)
    precise, rough = (
        hesspec.by_block(
            model, nn.CrossEntropyLoss(), data, blocks="layer", steps=60, precision=precision, mode="traced"
        )
        for precision in ("full", "bfloat16")
    )
    for name in precise:
        apart = abs(precise[name].eigenvalues[0] - rough[name].eigenvalues[0])
        assert apart <= rough[name].error_bounds[0] + precise[name].error_bounds[0]
        assert rough[name].error_bounds[0] > precise[name].error_bounds[0]
