"""Products with every matrix on the cases that are named, of this process alone and of all ranks together."""

import dataclasses
import json
import sys
import warnings

import torch
import torch.distributed as dist
from cases import CASES, MATRICES, Case

import hesspec
from hesspec.operators.engine import passes

# Traces take long, and what is done with them is the same for all; that of a GPT-2 takes longest.
TRACED = {
    "float64": {"cnn": MATRICES},
    "float32": {"cnn": ("Residual",), "gpt2, dict inputs, ignored tokens": ("Hessian",)},
}
TRACED_PARTS = ("GaussNewtonCross", "streamed Hessian")
MOMENTS = {"centred SecondMoment": {"centred": True}, "drawn SecondMoment": {"batch_size": 3}, "LikelihoodResidual": {}}
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
    names = sys.argv[1:]
    for precision, chosen in (("float64", names), ("float32", [name for name in names if name in TRACED["float32"]])):
        cases = {name: CASES[name]().to(getattr(torch, precision)) for name in chosen}
        for name, case in cases.items():
            for matrix in MATRICES:
                traced = matrix in TRACED[precision].get(name, ())
                passes.trace_pays = lambda *_, traced=traced, **__: (traced, "forced")
                found[f"{precision}, {matrix}, {name}"] = compare(case, matrix)
        cnn = with_all_classes(cases["cnn"])
        # Streamed: with room for one primal pass, so that the others are repeated.
        for part in (*PARTS, "streamed Hessian", "streamed GaussNewtonCross", *MOMENTS):
            traced = precision == "float32" and part in TRACED_PARTS
            passes.trace_pays = lambda *_, traced=traced, **__: (traced, "forced")
            options = {"memory": "100kB"} if part.startswith("streamed") else MOMENTS.get(part, {})
            found[f"{precision}, {part}"] = compare(cnn, part.split(" ")[-1], **options)
    print(json.dumps(found))  # noqa: T201
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
