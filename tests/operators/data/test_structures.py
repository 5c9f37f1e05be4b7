"""Tensors are found and replaced in structures of any kind, and what is not a tensor is told apart."""

import copy
import dataclasses
import enum
import threading
from collections import OrderedDict, UserDict, deque, namedtuple
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from hesspec.operators.data.structures import describe, flatten, map_tensors, named_tensors, tensors_of

Pair = namedtuple("Pair", ["x", "y"])


class Typed(NamedTuple):
    x: torch.Tensor
    scale: float


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    x: torch.Tensor
    scale: float


@dataclasses.dataclass
class Derived:
    x: torch.Tensor
    scale: float = 1.0

    def __post_init__(self) -> None:
        self.double = 2 * self.x


class Plain:
    """An object whose text is always the same."""

    def __init__(self, x, scale=1.0):
        self.x, self.scale = x, scale

    def __repr__(self):
        return "Plain()"


class Encoding(UserDict):
    """As tokenizers return it: keys are attributes too."""

    def __getattr__(self, name):
        try:
            return self.__dict__["data"][name]
        except KeyError:
            raise AttributeError(name) from None


class Storage:
    """Shares all but its first tensor with its copies, as the storage of a graph does."""

    def __init__(self, x, y):
        self.x, self.places, self.whole = x, {"x": y, "both": [x, y]}, self

    def __deepcopy__(self, memo):
        other = Storage.__new__(Storage)
        other.__dict__.update(self.__dict__)
        other.x = copy.deepcopy(self.x, memo)
        return other


class Circular:
    def __init__(self, x):
        self.x, self.me = x, self


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


X, Y = torch.arange(6.0).reshape(2, 3), torch.arange(2)

KNOWN = {
    "tensor": X,
    "list": [X, 2.0, Y],
    "tuple": (X, None, Y),
    "dict": {"x": X, 3: Y},
    "ordered dict": OrderedDict(b=X, a=Y),
    "named tuple": Pair(X, Y),
    "typed named tuple": Typed(X, 2.0),
    "slotted dataclass": Slotted(X, 2.0),
    "nested": {"a": [(X, {"b": Y})], "c": "word"},
    "array": np.arange(6.0).reshape(2, 3),
    "reversed array": np.arange(6.0)[::-1],
    "big-endian array": np.arange(6, dtype=">i4"),
    "read-only array": np.broadcast_to(np.float32(3), (2, 3)),
}
OPAQUE = {
    "user dict": UserDict(x=X, y=Y),
    "encoding": Encoding(x=X, y=Y),
    "dataclass with more than its fields": Derived(X),
    "object": Plain(X, [Y]),
    "object in a list": [Plain(X), 1],
    "deque": deque([X, Y]),
    "set of words": {"a", "b"},
    "circular": Circular(X),
    "copies that share tensors": Storage(X, Y),
    "copies that share tensors, in an object": Plain(Storage(X, Y)),
    "packed sequence": pack_sequence([X, X[:1]], enforce_sorted=False),
    "sparse": X.to_sparse(),
    "nested tensor": torch.nested.nested_tensor([X, X[:1]], layout=torch.jagged),
    "objects in an array": np.array([Plain(X), None], dtype=object),
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_structure_is_its_tensors_and_a_rest_that_others_share(name):
    structure = KNOWN[name]
    tensors, rest = flatten(structure)
    assert not rest.opaque
    again = rest.fill(tensors)
    if not isinstance(structure, np.ndarray):
        assert type(again) is type(structure)
    others, other_rest = flatten(map_tensors(lambda tensor: tensor + 1, structure))
    assert other_rest == rest
    assert hash(other_rest) == hash(rest)
    assert all(torch.equal(one + 1, other) for one, other in zip(tensors, others, strict=True))


@pytest.mark.parametrize("name", OPAQUE)
def test_an_opaque_structure_is_copied_with_other_tensors_and_equal_to_itself_alone(name):
    structure = OPAQUE[name]
    tensors, rest = flatten(structure)
    assert rest.opaque
    assert rest == rest  # noqa: PLR0124 - what is tested
    assert rest != flatten(structure)[1]
    mapped = map_tensors(lambda tensor: tensor.clone(), structure)
    assert mapped is not structure
    assert type(mapped) is type(structure)
    found = tensors_of(mapped)
    assert len(found) == len(tensors)
    for one, other in zip(tensors, found, strict=True):
        assert one is not other
        assert str(one) == str(other)


def test_what_is_one_tensor_stays_one():
    shared = {"x": X, "again": Plain([X, X])}
    mapped = map_tensors(lambda tensor: tensor * 2, shared)
    assert mapped["x"] is mapped["again"].x[0] is mapped["again"].x[1]


def test_circles_are_followed_once():
    mapped = map_tensors(lambda tensor: tensor * 2, Circular(X))
    assert mapped.me is mapped
    assert torch.equal(mapped.x, 2 * X)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (1, True),
        (0.0, -0.0),
        ("1", 1),
        (None, 0),
        (np.float32(1), np.float64(1)),
        (Colour.RED, Colour.BLUE),
        (torch.float32, torch.float64),
        ([X], (X,)),
        ({"a": X}, OrderedDict(a=X)),
        (Pair(X, Y), (X, Y)),
        (Slotted(X, 1.0), Slotted(X, 2.0)),
        ({"a": X}, {"b": X}),
        ([X, X], [X]),
    ],
)
def test_constants_and_containers_are_told_apart(one, other):
    assert flatten([one])[1] != flatten([other])[1]


def test_not_a_number_is_itself():
    assert flatten([float("nan")])[1] == flatten([float("nan")])[1]


def test_places_are_expressions():
    found = named_tensors({"x": [X], "pair": Pair(X, Y)}, "inputs")
    assert list(found) == ["inputs['x'][0]", "inputs['pair'].x", "inputs['pair'].y"]


def test_packed_sequences_keep_their_batch_sizes_on_the_cpu():
    packed = OPAQUE["packed sequence"]
    mapped = map_tensors(lambda tensor: tensor.to("meta"), packed)
    assert mapped.data.is_meta
    assert torch.equal(mapped.batch_sizes, packed.batch_sizes)
    assert mapped.batch_sizes is not packed.batch_sizes


@pytest.mark.parametrize("structure", [Plain([X, threading.Lock()]), Plain(x for x in [X]), Plain(X, threading.Lock())])
def test_what_cannot_be_copied_is_named(structure):
    with pytest.raises(ValueError, match="contains a Plain that cannot be copied.*tuple, dict or dataclass"):
        map_tensors(torch.clone, structure)


def test_copies_with_other_tensors_are_refused():
    class Hidden:
        def __init__(self, x):
            self.x = x

        def __deepcopy__(self, memo):
            return Hidden(self.x.clone())

    with pytest.raises(ValueError, match="Hidden whose copies have other tensors"):
        map_tensors(torch.clone, Hidden(X))


def test_arrays_without_a_counterpart_are_named():
    with pytest.raises(ValueError, match="array of float128, which has no counterpart"):
        flatten(np.zeros(2, dtype=np.longdouble))


def test_descriptions_are_short():
    assert describe((X, [None, "word"], {"y": Y})) == (
        "tuple (Tensor (2, 3) torch.float32, list [None, 'word'], dict {'y': Tensor (2,) torch.int64})"
    )
    assert describe(Plain(X)) == "Plain with Tensor (2, 3) torch.float32"
    assert describe(Slotted(X, 2.0)) == "Slotted (x: Tensor (2, 3) torch.float32, scale: 2.0)"
    assert describe(list(range(1000))).count(",") == 8
    assert describe("x" * 1000) == "str"
