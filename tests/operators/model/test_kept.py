"""What a model or a loss keeps between calls elsewhere than in its modules is what it was after products."""

import functools
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

import hesspec
from hesspec.operators.engine import passes
from hesspec.operators.model.kept import Holder, Results

DICTIONARY, LIST, SET, MODULE = {}, [], set(), types.ModuleType("caches")
MODULE.table = None
BATCHES = (6, 4)


class Shared:
    table = None
    tables: dict = {}  # noqa: RUF012 - what users write


def table(n):
    return torch.arange(1, n + 1) / n


@functools.lru_cache
def remembered(n):
    return table(n)


@functools.cache
def remembered_in_a_pair(n):
    return n, (table(n),)


def in_a_dictionary(n):
    if n not in DICTIONARY:
        DICTIONARY[n] = table(n)
    return DICTIONARY[n]


def in_a_tuple_of_a_dictionary(n):
    if n not in DICTIONARY:
        DICTIONARY[n] = (n, table(n))
    return DICTIONARY[n][1]


def in_a_dictionary_of_a_class(n):
    if n not in Shared.tables:
        Shared.tables[n] = table(n)
    return Shared.tables[n]


def in_a_class(n):
    if Shared.table is None or len(Shared.table) != n:
        Shared.table = table(n)
    return Shared.table


def in_a_module(n):
    if MODULE.table is None or len(MODULE.table) != n:
        MODULE.table = table(n)
    return MODULE.table


def closed():
    kept = None

    def in_a_closure(n):
        nonlocal kept
        if kept is None or len(kept) != n:
            kept = table(n)
        return kept

    return in_a_closure


def in_a_list(n):
    LIST.append(table(n))
    return LIST[-1]


def in_a_set(n):
    SET.add(found := table(n))
    return found


KEEPERS = {
    each.__name__: each
    for each in (
        in_a_dictionary,
        in_a_tuple_of_a_dictionary,
        in_a_dictionary_of_a_class,
        in_a_class,
        in_a_module,
        closed(),
        in_a_list,
        in_a_set,
    )
} | {"lru_cache": remembered, "cache": lambda n: remembered_in_a_pair(n)[1][0]}


@pytest.fixture(autouse=True)
def _empty():
    for each in (DICTIONARY, LIST, SET, Shared.tables):
        each.clear()
    remembered.cache_clear()
    remembered_in_a_pair.cache_clear()
    Shared.table = MODULE.table = None


def kept():
    found = [*DICTIONARY.values(), *LIST, *SET, *Shared.tables.values(), Shared.table, MODULE.table]
    sizes = remembered.cache_info().currsize, remembered_in_a_pair.cache_info().currsize
    return [one for one in found if one is not None], sizes


class Weighted(nn.Module):
    """Samples are scaled by a table of as many numbers."""

    def __init__(self, keep) -> None:
        super().__init__()
        self.a, self.b, self.keep = nn.Linear(4, 6), nn.Linear(6, 3), keep

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)) * self.keep(len(x))[:, None])


def product(model, loss=F.cross_entropy, matrix="Hessian", **options):
    generator = torch.Generator().manual_seed(1)
    data = [(torch.randn(n, 4, generator=generator), torch.randint(3, (n,), generator=generator)) for n in BATCHES]
    operator = getattr(hesspec, matrix)(model, loss, data, **options)
    return operator @ torch.linspace(-1, 1, operator.shape[0])


def seeded(keep):
    torch.manual_seed(0)
    return Weighted(keep)


def close(one, other):
    return torch.allclose(one, other, rtol=0, atol=1e-5 * float(other.norm()))


@pytest.mark.parametrize("mode", passes.WAYS)
@pytest.mark.parametrize("name", KEEPERS)
@pytest.mark.few(6)
def test_a_cache_of_the_model_is_what_it_was(name, mode):
    model = seeded(KEEPERS[name])
    found = product(model, mode=mode)
    assert kept() == ([], (0, 0))
    assert close(found, product(seeded(table), mode="double backward"))
    # The user's own pass fills it as before.
    assert model(torch.ones(BATCHES[0], 4)).dtype == torch.float32


@pytest.mark.parametrize("mode", passes.WAYS)
@pytest.mark.few(2)
def test_a_cache_of_the_loss_is_what_it_was(mode):
    found, exact = (
        product(seeded(torch.ones), lambda o, y, scale=scale: F.cross_entropy(o * scale(o.shape[1]), y), mode=each)
        for scale, each in ((in_a_dictionary, mode), (table, "double backward"))
    )
    assert kept() == ([], (0, 0))
    assert close(found, exact)


class Keyed(nn.Module):
    """A function of a weight that is kept by the weight's identity, or by its address."""

    def __init__(self, key=None) -> None:
        super().__init__()
        self.a, self.b, self.key = nn.Linear(4, 6), nn.Linear(6, 3), key

    def forward(self, x):
        weight = self.a.weight
        if self.key is None:
            scale = weight.square().sum()
        else:
            if self.key(weight) not in DICTIONARY:
                DICTIONARY[self.key(weight)] = weight.square().sum()
            scale = DICTIONARY[self.key(weight)]
        return self.b(torch.tanh(self.a(x)) * scale)


@pytest.mark.parametrize("mode", ["auto", *passes.WAYS])
@pytest.mark.parametrize("key", [id, lambda weight: "weight"])
@pytest.mark.parametrize("matrix", ["Hessian", "GaussNewton"])
@pytest.mark.few(4)
def test_a_cache_of_functions_of_the_weights(matrix, key, mode):
    models = []
    for each in (key, None):
        torch.manual_seed(0)
        models.append(Keyed(each))
    found = product(models[0], matrix=matrix, mode=mode)
    assert DICTIONARY == {}
    assert close(found, product(models[1], matrix=matrix, mode="double backward"))


def test_what_was_kept_before_stays():
    """Entries of the user's own passes are the same tensors, and are used."""
    model = seeded(in_a_dictionary)
    before = {n: in_a_dictionary(n) for n in (2, *BATCHES)}
    assert close(product(model), product(seeded(table)))
    assert DICTIONARY.keys() == before.keys()
    assert all(DICTIONARY[n] is before[n] for n in before)


@pytest.mark.parametrize("failing", [False, True])
def test_a_cache_that_only_a_trace_fills(monkeypatch, failing):
    monkeypatch.setattr(passes, "trace_pays", lambda *_, **__: (True, "forced"))

    def late(n):
        found = table(n)
        if type(found) is FakeTensor or torch._is_functional_tensor(found):
            DICTIONARY[n] = found
        # A trace has no value for it.
        return found * float(found[-1]) if failing else found

    generator = torch.Generator().manual_seed(1)
    data = [(torch.randn(40, 4, generator=generator), torch.randint(3, (40,), generator=generator)) for _ in range(2)]
    operators = [hesspec.Hessian(seeded(keep), F.cross_entropy, data) for keep in (late, table)]
    found, exact = (operator @ torch.linspace(-1, 1, operator.shape[0]) for operator in operators)
    assert operators[0].attributes["mode"] == "double backward"
    assert failing or "keeps tensors between calls in a dictionary" in operators[0].attributes["mode_reason"]
    assert all(type(value) is torch.Tensor for value in DICTIONARY.values())
    assert close(found, exact)


def test_nothing_is_found_where_nothing_is_kept():
    results = Results()
    with results:
        x = torch.ones(3)
        y = (x * 2).sum()
        x.add_(1)
        x.contiguous()
    del x, y
    assert results.alive() == []


def test_holders_of_tensors_are_restored():
    tensors = [torch.ones(2), torch.zeros(2)]
    kept_by = types.SimpleNamespace(first=tensors[0], other=1)
    entries = {"a": tensors[1], "b": 2}
    found = Holder.of(tensors)
    assert len(tensors) == 2
    assert vars(kept_by) == {"first": None, "other": 1}
    assert entries == {"b": 2}
    entries["c"] = torch.ones(1)
    for holder in found:
        holder.restore()
    assert entries == {"b": 2}
