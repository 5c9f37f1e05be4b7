"""`hesspec plan`."""

from typing import Annotated

import typer

from hesspec.cli import console, options

EXAMPLE = "hesspec plan small_cnn --data digits --samples-per-class 10 --accuracy 0.02"


def command(
    network: options.Network,
    data: options.Data,
    weights: options.Weights = None,
    split: options.Split = "train",
    samples_per_class: options.SamplesPerClass = None,
    data_folder: options.DataFolder = None,
    size: options.Size = None,
    tokenizer: options.Tokenizer = None,
    loss: options.Loss = "cross-entropy",
    matrix: options.Matrix = None,
    params: options.Params = None,
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
            show_default="a safe share of the free memory",
        ),
    ] = None,
    devices: Annotated[int, typer.Option(min=1, metavar="N", help="Number of devices that share the data.")] = 1,
    basis: options.Basis = "auto",
    offload: options.Offload = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
) -> None:
    """Estimate the time and memory of `hesspec measure` by timing one batch on this machine.

    `hesspec cost` estimates networks that are not at hand, of any size and on any number of devices, from formulas.
    """
    from hesspec.cli.problem import Problem
    from hesspec.cli.tables.plans import planned
    from hesspec.study.measuring import plan_measurement

    names = options.matrices_of(matrix)
    problem = Problem(
        network, data, weights, split, samples_per_class, data_folder, size, tokenizer, params, seed, device, dtype
    )
    model, dataset = problem.load()
    plans = plan_measurement(
        model,
        dataset,
        matrices=names,
        params=params,
        steps=steps,
        probes=probes,
        accuracy=accuracy,
        loss=loss,
        batch_size=batch_size,
        memory=memory,
        basis=basis,
        offload=offload,
        devices=devices,
    )
    console.output.print(planned(plans.values()))
    console.next_step("hesspec measure", "with the same arguments measures it")
