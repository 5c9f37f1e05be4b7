"""`hesspec laplace`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hesspec.cli import console, options

if TYPE_CHECKING:
    from hesspec.spectra.record import Record

EXAMPLE = "hesspec laplace tanh_mlp --data digits --samples-per-class 10"


def command(
    network: options.Network,
    data: options.Data,
    weights: options.Weights = None,
    samples_per_class: options.SamplesPerClass = None,
    test_samples_per_class: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Test samples of each class for the calibration.", show_default="all"),
    ] = None,
    data_folder: options.DataFolder = None,
    size: options.Size = None,
    params: options.Params = None,
    prior_precision: Annotated[
        float | None,
        typer.Option(metavar="T", help="Precision of the prior.", show_default="the one with the most evidence"),
    ] = None,
    rank: Annotated[int, typer.Option(min=1, metavar="N", help="Largest number of eigenpairs of the posterior.")] = 64,
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="Number of Lanczos steps.")] = 64,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = 256,
    memory: options.Memory = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    out: options.Out = Path("spectra"),
) -> None:
    """Compute the evidence of a network and the calibration of its Laplace approximation.

    One Krylov run with G on the training set gives the evidence for all prior precisions, and the best one. The
    calibration on the test set is that of the network, and of the posterior at this prior by probit, which takes C
    backward passes for each input, with C classes. The loss is the cross-entropy. Results are saved as
    CHECKPOINT-train-Evidence.nc and CHECKPOINT-test-PredictionComparison.nc; `hesspec report` shows them.
    """
    import torch

    from hesspec.applications.laplace.likelihood import positive
    from hesspec.applications.laplace.posterior import Laplace
    from hesspec.applications.laplace.prediction_comparison import compare_predictions
    from hesspec.cli.problem import Problem, check_folder, check_same
    from hesspec.spectra.record import load
    from hesspec.study import load_dataset
    from hesspec.study.losses import CROSS_ENTROPY, LOSSES
    from hesspec.study.measuring import check_outputs, of_dataset

    if prior_precision is not None:
        positive("--prior-precision", prior_precision)
    problem = Problem(
        network, data, weights, "train", samples_per_class, data_folder, size, None, params, seed, device, dtype
    )
    prefix = problem.prefix(out, ["Evidence"])
    evidence_file = problem.file(out, "Evidence", prefix)
    comparison_file = evidence_file.with_name(evidence_file.name.replace("train-Evidence", "test-PredictionComparison"))
    given = problem.options(
        {
            "--test-samples-per-class": str(test_samples_per_class),
            "--prior-precision": str(prior_precision),
            "--rank": str(rank),
            "--steps": str(steps),
        }
    )
    if evidence_file.exists() and comparison_file.exists():
        check_same(evidence_file, given)
        console.say(f"Already computed: {evidence_file} and {comparison_file}")
        _show([load(evidence_file), load(comparison_file)], [], out)
        return
    model, train_set = problem.load()
    test_set = load_dataset(data, "test", samples_per_class=test_samples_per_class, folder=data_folder, size=size)
    check_folder(out, [evidence_file, comparison_file])
    model.eval()
    check_outputs(model, train_set)
    parameter = next(model.parameters())
    loss = LOSSES[CROSS_ENTROPY]
    posterior = Laplace(
        model,
        loss,
        train_set.batches(batch_size),
        params,
        rank=rank,
        steps=steps,
        seed=seed,
        memory=memory,
    )
    evidence = posterior.evidence()
    posterior.prior_precision = evidence.best if prior_precision is None else prior_precision
    with console.progress() as show:
        parts = torch.split(test_set.inputs, batch_size)
        found: dict[str, list[torch.Tensor]] = {"network": [], "Laplace, probit": []}
        for i, part in enumerate(parts):
            show("predictions, test set", i, len(parts))
            inputs = part.to(parameter.device, parameter.dtype)
            with torch.no_grad():
                found["network"].append(model(inputs).softmax(1))
            found["Laplace, probit"].append(posterior.predict(inputs).mean)
    attributes = problem.attributes_with(given)
    comparison = compare_predictions(
        {name: torch.cat(values).double().cpu().numpy() for name, values in found.items()},
        test_set.targets.numpy(),
        attributes={**attributes, **of_dataset(test_set), "prior_precision": posterior.prior_precision},
    )
    evidence = replace(evidence, attributes={**evidence.attributes, **attributes, **of_dataset(train_set)})
    evidence.save(evidence_file, overwrite=False)
    comparison.save(comparison_file, overwrite=False)
    _show([evidence, comparison], [evidence_file, comparison_file], out)


def _show(results: "list[Record]", saved: list[Path], out: Path) -> None:
    """Print the summary of the evidence and the table of the predictions, the files, and what can be done next."""
    from hesspec.backend.shown import TextTable
    from hesspec.cli.tables.layout import print_results, rich_table

    evidence, comparison = results
    summary = TextTable("Evidence", ("what", "value"), list(evidence.summary().items()))
    print_results(map(rich_table, [summary, *comparison.tables()]), saved, out)
