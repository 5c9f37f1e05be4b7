"""`hesspec plan` without NETWORK: its options, and costs from formulas."""

from collections.abc import Sequence

import typer

from hesspec.cost_model import H100, Cost, Device, cost, parse_bandwidth, parse_count, parse_flops

__all__ = ["check_options", "costs_at_scale"]

# Options of `hesspec plan` for a network that is not here, and those that it has in common with one that is.
_AT_SCALE = ("tokens", "context", "samples", "flops_forward", "activations", "bandwidth", "flops")
_IN_COMMON = ("params", "matrix", "steps", "memory", "devices", "basis")


def check_options(ctx: typer.Context, network: str | None, data: str | None, params: list[str] | None) -> None:
    """Raise ValueError unless the options are those of a network that is here, or of one that is not."""
    sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
    given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    numbers = [text for text in params or () if _is_number(text)]
    if network is None:
        if not params:
            raise ValueError(
                "There is nothing to plan: give NETWORK and --data, or for a network that is not here --params 7e9 and "
                "--tokens 1e9."
            )
        if len(params) > 1 or not numbers:
            raise ValueError(
                f"Without NETWORK, --params is one number of parameters such as 7e9, not {' '.join(map(repr, params))}."
            )
        _refuse(given.difference(_AT_SCALE, _IN_COMMON), "is for a network that is here", "give NETWORK")
        return
    if numbers:
        raise ValueError(
            f"--params {numbers[0]} is a number of parameters, which {network} has by itself; leave out one of the "
            "two. With NETWORK, --params are names."
        )
    _refuse(given.intersection(_AT_SCALE), "is for a network that is not here", "leave out NETWORK")
    if data is None:
        raise ValueError(f"There is no data to plan {network} with; give --data, such as --data digits.")


def _refuse(options: set[str], why: str, instead: str) -> None:
    if options:
        named = f"--{min(options).replace('_', '-')}"
        raise ValueError(f"{named} {why}; leave it out, or {instead}.")


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
    """Costs of a spectrum of each matrix; arguments are the options' texts, None where one was not given."""
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
