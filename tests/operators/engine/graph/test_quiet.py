"""Nothing of PyTorch's tracer reaches the user while a trace is attempted."""

import logging
import warnings

import pytest
import torch
from torch import nn

import hesspec
from hesspec.operators.engine.graph import tracing
from hesspec.operators.engine.graph.quiet import quiet_tracer

NAMES = ["torch", "torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes", "torch._dynamo"]


@pytest.fixture
def heard():
    """What handlers of PyTorch's loggers are given."""
    records = []

    class Listening(logging.Handler):
        def emit(self, record):
            records.append(record)

    handler, loggers = Listening(), [logging.getLogger(name) for name in NAMES]
    for logger in loggers:
        logger.addHandler(handler)
    yield records
    for logger in loggers:
        logger.removeHandler(handler)


def test_loggers_and_warnings_are_silent_and_come_back(heard):
    before = [(logging.getLogger(name).disabled, logging.getLogger(name).level) for name in NAMES]
    with quiet_tracer():
        for name in [*NAMES, "torch.made.meanwhile"]:
            logging.getLogger(name).error("a stack of 195 lines")
        warnings.warn("how torch.func is implemented", stacklevel=1)
    assert heard == []
    assert [(logging.getLogger(name).disabled, logging.getLogger(name).level) for name in NAMES] == before
    logging.getLogger("torch.made.meanwhile").error("later")
    assert [record.getMessage() for record in heard] == ["later"]


def test_other_loggers_are_heard(caplog):
    with quiet_tracer():
        logging.getLogger("torchmetrics").error("not of the tracer")
        logging.getLogger("hesspec").warning("ours")
    assert [record.getMessage() for record in caplog.records] == ["not of the tracer", "ours"]


def test_errors_are_raised_and_loggers_come_back(heard):
    def attempt():
        with quiet_tracer():
            raise RuntimeError("no forward-mode rule")

    with pytest.raises(RuntimeError, match="no forward-mode rule"):
        attempt()
    logging.getLogger("torch").error("later")
    assert len(heard) == 1


class Unknown(nn.Module):
    """Fake tensors have no values to branch on, and log that at length."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x):
        hidden = torch.tanh(self.linear(x))
        return hidden if hidden.sum().item() > -100 else -hidden


def test_a_trace_that_fails_is_silent(heard, traced, capfd, monkeypatch):
    attempts = []
    record = tracing.record
    monkeypatch.setattr(tracing, "record", lambda *a: attempts.append(1) or record(*a))
    operator = hesspec.Hessian(Unknown(), nn.CrossEntropyLoss(), [(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))])
    assert (operator @ torch.ones(8)).isfinite().all()
    assert attempts
    assert operator.attributes["mode"] == "double backward"
    assert heard == []
    assert capfd.readouterr() == ("", "")
