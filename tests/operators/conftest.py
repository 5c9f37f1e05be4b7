"""The two ways in which products are had, forced; by themselves operators choose by predicted cost."""

import pytest
from sweeps import swept

from hesspec.operators.engine import passes


@pytest.fixture
def traced(monkeypatch):
    monkeypatch.setattr(passes, "trace_pays", lambda *_, **__: (True, "forced"))


@pytest.fixture
def double_backward(monkeypatch):
    monkeypatch.setattr(passes, "trace_pays", lambda *_, **__: (False, "forced"))


@pytest.fixture(params=swept(["traced", "double backward"], "traced"))
def mode(request):
    """Each mode in turn, by name; traces are what can differ from PyTorch."""
    request.getfixturevalue(request.param.replace(" ", "_"))
    return request.param
