"""Which models hesspec supports: products of Hess, G and H of all kinds of networks, against a truth in float64.

    python benchmarks/models.py [--only PATTERN] [--family NAME] [--jobs N] [--again] [--faulty] [--times]
    python benchmarks/models.py --table

Each case of `benchmarks/zoo` is measured in a process of its own. Its record is appended to benchmarks/models.jsonl, so
that a run that was stopped resumes. `--table` judges what is there and writes it into docs/supported.md, which keeps
its rows of other cases. `--times` measures times alone, and of cases that are on the page already.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
import time

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

from sweep.children import run_each
from sweep.judge import judge
from sweep.measure import measure, measure_times
from sweep.page import write_page
from sweep.records import RECORDS, append, latest
from zoo import every_case
from zoo.case import Case

# What takes long to import is imported before processes are forked, so that no case's first product has that time.
SLOW = (
    "torchvision",
    "timm",
    "transformers",
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "torch.distributed.tensor",
    "torch._functorch.eager_transforms",
    "torch.utils.flop_counter",
    "torch.fx.experimental.proxy_tensor",
)


def wanted(options: argparse.Namespace) -> list[Case]:
    """The cases that are to be measured now."""
    cases = every_case()
    if options.only:
        cases = [case for case in cases if re.search(options.only, case.name)]
    if options.family:
        cases = [case for case in cases if re.search(options.family, case.family)]
    known = {record["name"]: record for record in latest()}
    if options.faulty:
        return [case for case in cases if case.name in known and judge(known[case.name]).faults]
    return cases if options.again else [case for case in cases if case.name not in known]


def main() -> None:
    """Measure, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", metavar="PATTERN", help="cases whose name has a match of this regular expression")
    parser.add_argument("--family", metavar="PATTERN", help="cases whose family has one")
    parser.add_argument("--again", action="store_true", help="also those that have been measured")
    parser.add_argument("--faulty", action="store_true", help="those alone that were found at fault")
    parser.add_argument("--times", action="store_true", help="measure the times of products alone")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--table", action="store_true", help="measure nothing; write docs/supported.md")
    options = parser.parse_args()
    if options.table:
        write_page(every_case())
        return
    cases = wanted(options)
    absent = [case for case in cases if case.missing]
    for case in absent:
        print(f"not run, needs {', '.join(case.missing)}: {case.name}")
    for module in SLOW:
        importlib.import_module(module)
    started = time.monotonic()
    what = measure_times if options.times else measure
    for record in run_each([case for case in cases if not case.missing], what, options.jobs):
        append(record)
        if options.times:
            print(f"{record['chosen']['Hessian'].get('times', float('nan')):6.2f} times  {record['name']}", flush=True)
            continue
        verdict = judge(record)
        print(f"{record.get('seconds', 0):6.1f} s  {verdict.word:8} {record['family']}: {record['name']}", flush=True)
        for word, sentence in verdict.faults[:4]:
            print(f"{'':10}{word}: {sentence[:220]}", flush=True)
    print(f"{time.monotonic() - started:.0f} s; the records are in {RECORDS}")


if __name__ == "__main__":
    sys.exit(main())
