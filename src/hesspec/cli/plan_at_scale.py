"""`hesspec plan` without NETWORK: checks of its options, and costs of hypothetical networks from formulas."""

from collections.abc import Sequence

import typer

from hesspec.measure.cost import H100, Cost, Device, cost, parse_bandwidth, parse_count, parse_flops

__all__ = ["check_options", "costs_at_scale"]

# Options of `hesspec plan` without NETWORK only, and with or without NETWORK.
_AT_SCALE = ("tokens", "context", "samples", "flops_forward", "activations", "bandwidth", "flops")
_IN_COMMON = ("params", "matrix", "steps", "memory", "devices", "basis")


def check_options(ctx: typer.Context, network: str | None, data: str | None, params: list[str] | None) -> None:
    """Raise ValueError if options that require NETWORK and options that exclude it are mixed, or one is missing."""
    sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
    given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    numbers = [text for text in params or () if _is_number(text)]
    if network is None:
        if not params:
            raise ValueError(
                "There is nothing to plan: give NETWORK and --data, or describe a hypothetical network, such as "
                "--params 7e9 --tokens 1e9."
            )
        if len(params) > 1 or not numbers:
            raise ValueError(
                f"Without NETWORK, --params must be one number of parameters such as 7e9, not "
                f"{' '.join(map(repr, params))}."
            )
        if needless := given.difference(_AT_SCALE, _IN_COMMON):
            raise ValueError(f"{_option(needless)} requires NETWORK; add NETWORK or drop the option.")
        return
    if numbers:
        raise ValueError(
            f"--params {numbers[0]} is a number of parameters and cannot be combined with NETWORK {network}; drop one "
            "of the two. With NETWORK, --params takes parameter names."
        )
    if needless := given.intersection(_AT_SCALE):
        raise ValueError(f"{_option(needless)} cannot be combined with NETWORK; drop one of the two.")
    if data is None:
        raise ValueError(f"A plan for {network} requires data; add --data, such as --data digits.")


def _option(names: set[str]) -> str:
    return f"--{min(names).replace('_', '-')}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def costs_at_scale(
    matrices: Sequence[str],
    params: str,
    *,
    tokens: str | None,
    samples: str | None,
    flops_forward: str | None,
    context: int,
    activations: str | None,
    devices: int,
    memory: str,
    bandwidth: str | None,
    flops: str | None,
    steps: int,
    basis: str,
) -> list[Cost]:
    """Compute the cost of a spectrum of each matrix; the arguments are the values of the options."""
    known = {"tokens": tokens, "samples": samples, "flops_forward": flops_forward}
    rates = Device(
        H100.flops if flops is None else parse_flops(flops),
        H100.bandwidth if bandwidth is None else parse_bandwidth(bandwidth),
        H100.memory_bandwidth,
        H100.note if flops is None else "as given",
    )
    return [
        cost(
            parse_count("params", params),
            **{name: parse_count(name, value) for name, value in known.items() if value is not None},
            context=context,
            activations=activations,
            devices=devices,
            memory=memory,
            device=rates,
            steps=steps,
            matrix=name,
            basis=basis,
        )
        for name in matrices
    ]
