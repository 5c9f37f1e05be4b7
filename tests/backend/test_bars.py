"""Bars of functions that are called from Python: when they are shown, and what they say."""

import io
import sys
import types

import pytest
import torch

import hesspec
from hesspec.backend import bars
from hesspec.backend.bars import bar_of, no_bars, phase, steps_of


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Standard error is a terminal, and bars appear at once."""
    monkeypatch.setattr(bars, "DELAY", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    return Terminal()


@pytest.fixture
def told(monkeypatch):
    """What a bar was told, without a bar."""
    seen = []

    class Bar:
        def update(self, what, done, total):
            seen.append((what, done, total))

        def close(self):
            seen.append("closed")

    monkeypatch.setattr(bars, "_kind", lambda: Bar)
    return seen


def network():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))
    data = [(torch.randn(12, 4), torch.arange(12) % 3)]
    return model, torch.nn.CrossEntropyLoss(), data


def test_a_trace_to_an_error_is_a_bar_of_its_own_that_counts_products(told):
    found = hesspec.spectrum(torch.diag(torch.linspace(0, 1, 400)), steps=4, trace=0.02)
    mine = [entry for entry in told if entry[0].startswith("trace of")]
    assert mine[0][0] == "trace of an operator"
    assert [entry[1] for entry in mine] == sorted(entry[1] for entry in mine)
    assert mine[-1] == (f"trace of an operator: product {found.xtrace_matvecs} of {found.xtrace_matvecs}",) + 2 * (
        found.xtrace_matvecs,
    )


def test_a_spectrum_names_its_phases_and_its_steps(told):
    hesspec.spectrum(hesspec.Hessian(*network()), steps=6)
    words = [entry[0] for entry in told if entry != "closed"]
    assert all(text.startswith("spectrum of Hess") for text in words)
    phases = [text.partition(": ")[2] for text in words]
    for name in ("reading the data", "verifying products", "step 6 of 6"):
        assert name in phases
    assert phases.index("reading the data") < phases.index("verifying products") < phases.index("step 1 of 6")
    assert told[-1] == "closed"
    done = [entry[1] for entry in told if entry != "closed"]
    assert done == sorted(done)


def test_all_long_functions_have_one_bar_and_are_quiet_on_demand(told):
    model, loss, data = network()
    hessian = hesspec.Hessian(model, loss, data)
    calls = {
        "spectrum of": lambda **how: hesspec.spectrum(hessian, steps=4, **how),
        "eigenpairs of": lambda **how: hesspec.eigenpairs(hessian, count=1, steps=4, **how),
        "class structure": lambda **how: hesspec.class_structure(model, loss, data, steps=4, **how),
    }
    for name, call in calls.items():
        call()
        assert {entry[0].partition(":")[0].startswith(name) for entry in told if entry != "closed"} == {True}
        assert told.count("closed") == 1
        told.clear()
        call(progress=False)
        assert told == []


def test_a_caller_who_shows_progress_himself_gets_no_bar(told):
    steps = []
    hesspec.spectrum(torch.eye(5), steps=3, on_step=lambda done, total: steps.append(done))
    with no_bars():
        hesspec.spectrum(torch.eye(5), steps=3)
    assert steps
    assert told == []


def test_the_recorder_passes_progress_on(told, tmp_path):
    from hesspec.study import SpectrumRecorder  # noqa: PLC0415

    model, loss, data = network()
    for progress in (True, False):
        SpectrumRecorder(tmp_path / str(progress), loss, {"train": data}, matrices=["g"], steps=3, progress=progress)(
            model, 0
        )
        assert bool(told) is progress
        told.clear()


def test_an_error_closes_the_bar(told):
    with pytest.raises(RuntimeError, match="stop"), bar_of("work", wanted=True):
        raise RuntimeError("stop")
    assert told[-1] == "closed"
    phase("nobody listens")
    assert told[-1] == "closed"


def test_a_terminal_shows_the_bar_and_removes_it(terminal, monkeypatch):
    import time  # noqa: PLC0415

    monkeypatch.setattr(sys, "stderr", terminal)  # here: pytest sets its own after the fixtures
    with steps_of("work", None, wanted=True) as step:
        phase("tracing")
        for _ in range(200):
            if "work: tracing" in terminal.getvalue():
                break
            time.sleep(0.01)
        step(1, 4)
    assert "work: tracing" in terminal.getvalue()


def test_nothing_is_shown_where_nobody_looks(capsys):
    with bar_of("work", wanted=True) as show:
        assert show is None
    assert capsys.readouterr() == ("", "")


def test_a_notebook_has_a_bar_in_its_output(monkeypatch):
    monkeypatch.setattr(bars, "DELAY", 0.0)
    monkeypatch.setattr(bars, "PAUSE", 0.0)
    outputs = []

    class Handle:
        def update(self, shown):
            outputs.append(shown)

    def display(shown, display_id):
        outputs.append(shown)
        return Handle()

    shell = types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(HTML=str, display=display))
    with steps_of("work on <a>", None, wanted=True) as step:
        step(2, 4)
    assert "<progress value='2' max='4'></progress> work on &lt;a&gt;: step 2 of 4" in outputs
    assert outputs[-1] == ""
