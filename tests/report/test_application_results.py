"""Section of the page for results of applications."""

from __future__ import annotations

import base64
import html
import re
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from hesspec.applications.optim.share_run import DominantShareRun
from hesspec.report import write_report
from hesspec.report.application_results import MOST_FIGURES, ApplicationResult, result_sections
from hesspec.spectra.record import KINDS, Record


def run(measurements: int) -> DominantShareRun:
    shares = np.full((measurements, 1), 0.5)
    return DominantShareRun(
        steps=np.arange(measurements),
        names=np.array(["gradient"]),
        values=shares,
        low=shares,
        high=shares,
        eigenvectors=np.full(measurements, 3),
        dimension=100,
        optimizer="SGD",
        attributes={"dataset": "digits", "learning_rate": 0.25, "train_samples_per_class": 5},
    )


def test_what_is_not_drawn_says_why() -> None:
    many = [ApplicationResult(path=Path(f"{number}.nc"), record=run(2)) for number in range(MOST_FIGURES + 1)]
    *drawn, last = result_sections(many)
    assert all(item["figure"] and not item["without"] for item in drawn)
    assert not last["figure"]
    assert "first 24 results are drawn" in last["without"]

    (empty,) = result_sections([ApplicationResult(path=Path("empty.nc"), record=run(0))])
    assert not empty["figure"]
    assert "no step was measured" in empty["without"]
    assert empty["summary"] == [("measurements", "0")]


def test_a_result_is_named_by_what_it_is_of() -> None:
    (item,) = result_sections([ApplicationResult(path=Path("runs/shares.nc"), record=run(2))])
    assert item["title"] == "Dominant shares through a training · digits · n = 5 · learning rate 0.25"
    assert item["file"] == "runs/shares.nc"


EVIL = "</script><script>alert(1)</script>$\\frac{$\x1b[2J\u202e\n=1+1" + 200 * "x"


def hostile(name: str) -> Record:
    """A result of this kind whose texts are all hostile; its numbers are of the right types and shapes only."""
    module, _, kind = name.rpartition(".")
    record = getattr(import_module(module), kind)
    arrays = {"Array": (0.5, float), "Integers": (0, np.int64), "Sketches": (0.5, np.float32), "Strings": (EVIL, str)}
    scalars = {"int": 3, "float": 0.5, "bool": True, "str": EVIL}
    values: dict[str, Any] = {}
    for item in fields(record):
        if item.name == "attributes":
            values[item.name] = dict.fromkeys(("dataset", "network", "start", "split", "matrix"), EVIL)
        elif item.name in record.DIMENSIONS:
            shape = [length if isinstance(length, int) else 2 for length in record.DIMENSIONS[item.name]]
            value, dtype = arrays[str(item.type)]
            values[item.name] = np.full(shape, value, dtype) if dtype is not str else _names(shape)
        else:
            values[item.name] = scalars[str(item.type)]
    return record(**values)


def _names(shape: list[int]) -> np.ndarray:
    return np.array([f"{EVIL}{place}" for place in range(int(np.prod(shape)))]).reshape(shape)


def test_hostile_texts_of_any_result_are_texts(tmp_path: Path) -> None:
    names = {f"{place}<u>'\"&{kind.rpartition('.')[2]}.nc": kind for place, kind in enumerate(KINDS.values())}
    for name, kind in names.items():
        hostile(kind).save(tmp_path / name)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "<u>" not in page
    # Each file is on the page: shown, or named with the reason why it cannot be read.
    shown = html.unescape(page)
    assert [name for name in names if name not in shown] == []
    drawn = re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page)
    assert len(drawn) >= 8
    assert not any(b"<script" in base64.b64decode(figure) for figure in drawn)
    # None is missing because a name was taken for a formula or is too long.
    section = page.partition('id="findings-title"')[2].partition("</section>")[0]
    assert re.findall(r'<p class="caption">([^<]*)', section) == []
