"""Products with every matrix on every case, of this process alone and of all ranks together."""

import dataclasses
import json
import warnings

import torch
import torch.distributed as dist
from cases import CASES, MATRICES, Case

import hesspec
from hesspec.operators.engine import passes

# Traces take long, and what is done with them is the same for all; that of a GPT-2 takes longest.
TRACED = {"float64": ("cnn",), "float32": ("cnn", "gpt2, dict inputs, ignored tokens")}
PARTS = ("GaussNewtonClass", "GaussNewtonCross", "GaussNewtonSame", "GaussNewtonWithin")


def error(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / one.norm().clamp(min=torch.finfo(one.dtype).tiny))


def compare(case: Case, matrix: str, **options: object) -> dict[str, float]:
    build, group = getattr(hesspec, matrix), dist.group.WORLD
    with warnings.catch_warnings():
        # Of parameters without influence, which some cases have.
        warnings.simplefilter("ignore")
        one = build(case.model, case.loss, case.data, **case.options, **options)
        shared = hesspec.shard_data(case.data, group)
        many = build(case.model, case.loss, shared, **case.options, **options, group=group)
        vectors = torch.randn(one.shape[0], 3, generator=torch.Generator().manual_seed(7), dtype=one.dtype)
        return {
            "vector": error(one @ vectors[:, 0], many @ vectors[:, 0]),
            "matrix": error(one @ vectors, many @ vectors),
            "risk": abs(many.risk / one.risk - 1),
            "samples": abs(many.samples - one.samples),
        }


def with_all_classes(case: Case) -> Case:
    return dataclasses.replace(case, data=[(x, torch.arange(len(y)) % 4) for x, y in case.data])


def main() -> None:
    dist.init_process_group("gloo")
    found = {}
    for precision, names in (("float64", list(CASES)), ("float32", list(TRACED["float32"]))):
        cases = {name: CASES[name]().to(getattr(torch, precision)) for name in names}
        for name, case in cases.items():
            passes.trace_pays = lambda *_, traced=name in TRACED[precision], **__: (traced, "forced")
            for matrix in MATRICES:
                found[f"{precision}, {matrix}, {name}"] = compare(case, matrix)
        cnn = with_all_classes(cases["cnn"])
        for part in PARTS:
            found[f"{precision}, {part}"] = compare(cnn, part)
        # Room for one primal pass: the others are repeated.
        for matrix in ("Hessian", "GaussNewtonCross"):
            found[f"{precision}, streamed {matrix}"] = compare(cnn, matrix, memory="100kB")
    print(json.dumps(found))  # noqa: T201
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
