"""`hesspec cost`."""

from typing import Annotated

import typer

from hesspec.cli import console, options

EXAMPLE = "hesspec cost --params 7e9 --tokens 1e9 --devices 256 --memory 80GB --bandwidth 400GB/s"


def command(
    params: Annotated[str, typer.Option(metavar="N", help="Number of parameters, such as 7e9.", show_default=False)],
    matrix: options.Matrix = None,
    tokens: Annotated[
        str | None, typer.Option(metavar="N", help="Number of tokens in the data of a language model.")
    ] = None,
    context: Annotated[int, typer.Option(min=1, metavar="N", help="Tokens per sequence of a language model.")] = 2048,
    samples: Annotated[
        str | None, typer.Option(metavar="N", help="Number of samples in the data of any other network.")
    ] = None,
    flops_forward: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Floating-point operations of the forward pass of one sample; a multiply-add counts as two.",
        ),
    ] = None,
    activations: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory of the cached primal pass of one sample or sequence, such as 250MB.",
            show_default="known for language models, otherwise not counted",
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="Number of Lanczos steps.")] = 64,
    devices: Annotated[int, typer.Option(min=1, metavar="N", help="Number of devices that share the data.")] = 1,
    memory: Annotated[str, typer.Option(metavar="SIZE", help="Memory of each device.")] = "80GB",
    bandwidth: Annotated[
        str | None,
        typer.Option(
            metavar="RATE",
            help="Rate at which a device receives data from others, such as 400GB/s.",
            show_default="50GB/s",
        ),
    ] = None,
    flops: Annotated[
        str | None,
        typer.Option(
            metavar="RATE",
            help="Floating-point operations per second that a device sustains, such as 400TFLOP/s.",
            show_default="half of an H100's float32 peak, 33.5TFLOP/s",
        ),
    ] = None,
    basis: options.Basis = "auto",
) -> None:
    """Estimate the cost of a spectrum of a hypothetical network, of any size and on any number of devices.

    Compute, communication and memory of a matrix-vector product and of a whole spectrum come from formulas; nothing is
    run. `hesspec plan` times a network that is at hand.
    """
    from hesspec.cli.tables.plans import estimated
    from hesspec.measure.cost import cost
    from hesspec.measure.cost_result import H100, Device
    from hesspec.measure.rates import parse_bandwidth, parse_count, parse_flops

    known = {"tokens": tokens, "samples": samples, "flops_forward": flops_forward}
    rates = Device(
        H100.flops if flops is None else parse_flops(flops),
        H100.bandwidth if bandwidth is None else parse_bandwidth(bandwidth),
        H100.memory_bandwidth,
        H100.note if flops is None else "as given",
    )
    costs = [
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
        for name in options.matrices_of(matrix)
    ]
    for part in estimated(costs):
        console.output.print(part, "")
