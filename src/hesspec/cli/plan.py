"""`hesspec plan`."""

from typing import Annotated

import typer

from hesspec.cli import console, options
from hesspec.cli.plan_at_scale import check_options, costs_at_scale
from hesspec.cli.problem import Problem
from hesspec.cli.tables.plans import estimated, planned
from hesspec.study.measuring import plan_measurement

EXAMPLE = "hesspec plan small_cnn --data digits --samples-per-class 10 --accuracy 0.02"


def command(
    ctx: typer.Context,
    network: Annotated[
        str | None, typer.Argument(metavar="NETWORK", help="Same as for `hesspec measure`.", show_default=False)
    ] = None,
    data: Annotated[str | None, typer.Option(metavar="NAME", help="Same as for `hesspec measure`.")] = None,
    weights: options.Weights = None,
    split: options.Split = "train",
    samples_per_class: options.SamplesPerClass = None,
    data_folder: options.DataFolder = None,
    size: options.Size = None,
    matrix: options.Matrix = None,
    params: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB|N",
            help="With NETWORK: differentiate only by parameters whose names match. Without NETWORK: number of "
            "parameters, such as 7e9.",
        ),
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(metavar="N", help="Without NETWORK: number of tokens in the data of a language model.")
    ] = None,
    context: Annotated[
        int, typer.Option(min=1, metavar="N", help="Without NETWORK: tokens per sequence of a language model.")
    ] = 2048,
    samples: Annotated[
        str | None,
        typer.Option(metavar="N", help="Without NETWORK: number of samples in the data of any other network."),
    ] = None,
    flops_forward: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Without NETWORK: floating-point operations of the forward pass of one sample; a multiply-add counts "
            "as two.",
        ),
    ] = None,
    activations: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Without NETWORK: memory of the cached primal pass of one sample or sequence, such as 250MB.",
            show_default="known for language models, otherwise not counted",
        ),
    ] = None,
    bandwidth: Annotated[
        str | None,
        typer.Option(
            metavar="RATE",
            help="Without NETWORK: rate at which a device receives data from others, such as 400GB/s.",
            show_default="50GB/s",
        ),
    ] = None,
    flops: Annotated[
        str | None,
        typer.Option(
            metavar="RATE",
            help="Without NETWORK: floating-point operations per second that a device sustains, such as 400TFLOP/s.",
            show_default="half of an H100's float32 peak, 33.5TFLOP/s",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Number of Lanczos steps.", show_default="64, or chosen by --accuracy"),
    ] = None,
    probes: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Number of random start vectors.", show_default="1, or chosen by --accuracy"
        ),
    ] = None,
    accuracy: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Accuracy to plan for: Wasserstein-1 distance to the true spectrum in units of the mean |eigenvalue|. "
            "Steps and probes are chosen to reach it at the lowest cost.",
        ),
    ] = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = 256,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory to use on each device, such as 80GB; may be that of another machine.",
            show_default="a safe share of the free memory; 80GB without NETWORK",
        ),
    ] = None,
    devices: Annotated[int, typer.Option(min=1, metavar="N", help="Number of devices that share the data.")] = 1,
    basis: options.Basis = "auto",
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
) -> None:
    """Estimate the time and memory of `hesspec measure` by timing one batch on this machine.

    Without NETWORK, estimate a hypothetical network of any size, on any number of devices, from formulas: compute,
    communication and memory of a matrix-vector product and of a spectrum, as in
    `hesspec plan --params 7e9 --tokens 1e9 --devices 256 --memory 80GB --bandwidth 400GB/s`.
    """
    names = options.matrices_of(matrix)
    check_options(ctx, network, data, params)
    if network is None or data is None:
        costs = costs_at_scale(
            names,
            params[0] if params else "",
            tokens=tokens,
            samples=samples,
            flops_forward=flops_forward,
            context=context,
            activations=activations,
            devices=devices,
            memory=memory or "80GB",
            bandwidth=bandwidth,
            flops=flops,
            steps=steps or 64,
            basis=basis,
        )
        for part in estimated(costs):
            console.output.print(part, "")
        return
    problem = Problem(network, data, weights, split, samples_per_class, data_folder, size, params, seed, device, dtype)
    model, dataset = problem.load()
    plans = plan_measurement(
        model,
        dataset,
        matrices=names,
        params=params,
        steps=steps,
        probes=probes,
        accuracy=accuracy,
        batch_size=batch_size,
        memory=memory,
        basis=basis,
        devices=devices,
    )
    console.output.print(planned(plans.values()))
