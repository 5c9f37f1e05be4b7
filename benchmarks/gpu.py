"""Everything that is to be known of hesspec on a GPU, in one command of at most eight minutes.

    python benchmarks/gpu.py [--device cuda] [--minutes 8] [--out gpu-results] [--only PART ...] [--quick]

Parts, the most important first: what the card reaches; correctness against the CPU's float64; products side by side;
whole spectra; CUDA graphs; lower precision; Krylov bases; kernels; what hesspec does not do by itself. Each part is
a process of its own, so that one that crashes, or corrupts its context on the card, does not end the others; a part
that exceeds its share of the time is stopped, and time that it leaves goes to the next. Every row is on the disk as
soon as it is measured (OUT/gpu.jsonl); OUT/gpu.json and OUT/gpu.md follow within seconds, so that a run may be cut off
at any time.

It needs PyTorch with torchvision and transformers, and no internet; peers that are not installed are left out by a row
that says so. `--device cpu --quick` tries the same command with small problems.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]
# The tree that this file is in is what is measured, installed or not.
sys.path.insert(0, str(ROOT / "src"))

import torch  # noqa: E402 - found by the path above

from gpu_parts import PARTS, Given  # noqa: E402 - likewise

# Largest share of the total time for each part; the last one gets what others have left.
SHARES = {
    "ceilings": 0.04,
    "correctness": 0.18,
    "products": 0.27,
    "runs": 0.25,
    "precision": 0.1,
    "graphs": 0.08,
    "kernels": 0.04,
    "bases": 0.04,
    "variants": 1.0,
}
# Seconds below which a part is not begun: PyTorch and the card take most of them.
LEAST = 10.0
# Seconds between updates of the tables.
OFTEN = 5.0


def conditions(device: torch.device) -> dict[str, str]:
    """Machine and versions."""
    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "cores": str(os.cpu_count()),
        "measured": time.strftime("%Y-%m-%d %H:%M"),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "card": properties.name,
            "memory": f"{properties.total_memory / 2**30:.0f} GiB",
            "cuda": str(torch.version.cuda),
            "cudnn": str(torch.backends.cudnn.version()),
        }
    return found


def rows(journal: Path) -> dict[str, list[dict[str, object]]]:
    """Rows that are there, by part."""
    found: dict[str, list[dict[str, object]]] = {}
    text = journal.read_text(encoding="utf-8") if journal.is_file() else ""
    # A line that is being written has no end yet.
    for line in text.split("\n")[:-1]:
        row = json.loads(line)
        found.setdefault(row["part"], []).append(row)
    return found


def write(out: Path, about: dict[str, str]) -> str:
    """Write what is there as JSON and as Markdown; returns the latter."""
    found = rows(out / "gpu.jsonl")
    put(out / "gpu.json", json.dumps({"conditions": about, "rows": found}, indent=1))
    text = ["# hesspec on " + about.get("card", "a CPU"), "", ", ".join(f"{k} {v}" for k, v in about.items()), ""]
    for part in PARTS:
        if part not in found:
            continue
        module = importlib.import_module(f"gpu_parts.{part}")
        text += [f"## {module.TITLE}", "", module.NOTE, ""]
        text += ["| " + " | ".join(module.COLUMNS) + " |", "|---" * len(module.COLUMNS) + "|"]
        for row in found[part]:
            cells = [str(entry).replace("|", "\\|") for entry in row["row"]]
            cells += [""] * (len(module.COLUMNS) - len(cells))
            mark = "**failed** " if row["failed"] else ""
            text.append("| " + mark + " | ".join(cells) + " |")
        text.append("")
    page = "\n".join(text)
    put(out / "gpu.md", page)
    return page


def put(file: Path, text: str) -> None:
    """Replace a file as a whole, as this process may end at any time."""
    other = file.with_suffix(".new")
    other.write_text(text, encoding="utf-8")
    other.replace(file)


def ended(command: list[str], limit: float, update: Callable[[], object]) -> str:
    """Run a part for at most some seconds; returns how it ended, unless it did what was to be done."""
    stop = time.monotonic() + limit
    # With a group of its own, to be stopped together with the processes that it starts.
    with subprocess.Popen(command, process_group=0) as part:  # noqa: S603
        try:
            while True:
                try:
                    code = part.wait(timeout=min(OFTEN, max(stop - time.monotonic(), 0.0)))
                except subprocess.TimeoutExpired:
                    update()
                    if time.monotonic() >= stop:
                        return f"ended after {limit:.0f} s, its share of the time"
                else:
                    return "" if code == 0 else f"ended with exit status {code}"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(part.pid, signal.SIGKILL)


def measure(part: str, given: Given) -> None:
    """Run one part, in this process."""
    torch.set_float32_matmul_precision("highest")
    importlib.import_module(f"gpu_parts.{part}").run(given)


def main() -> None:
    """Measure all parts, or one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART")
    parser.add_argument("--quick", action="store_true", help="small problems")
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device here; --device cpu --quick tries the command without one.")
    options.out.mkdir(parents=True, exist_ok=True)
    journal = options.out / "gpu.jsonl"
    if options.until is not None:
        (part,) = options.only
        measure(part, Given(device, options.quick, options.until, journal, part))
        return
    journal.unlink(missing_ok=True)
    # What ends this process, as `timeout` does, ends the part as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    about, ends = conditions(device), time.time() + 60 * options.minutes
    try:
        for part in options.only:
            left = ends - time.time()
            limit, given = (
                min(left, SHARES[part] * 60 * options.minutes),
                Given(device, options.quick, 0.0, journal, part),
            )
            if left < LEAST:
                given.keep(part, "no time was left", failed=True)
                continue
            command = [sys.executable, "-u", __file__, "--device", options.device, "--out", str(options.out)]
            command += ["--only", part, "--until", str(time.time() + limit), *(["--quick"] if options.quick else [])]
            started = time.time()
            how = ended(command, limit, lambda: write(options.out, about))
            if how:
                given.keep(part, how, failed=True)
            print(f"{part}: {time.time() - started:.0f} s", flush=True)
    finally:
        print(write(options.out, about))


if __name__ == "__main__":
    main()
