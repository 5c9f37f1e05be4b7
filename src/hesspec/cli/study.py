"""`hesspec study`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from hesspec.cli import console, options
from hesspec.cli.tables.studies import forecast_table, progress_table
from hesspec.study import StudyConfig, StudyError, load_study, presets, run_study
from hesspec.study.cluster import run_on_ray
from hesspec.study.folders import RUNS, STUDY_FILE
from hesspec.study.forecasting import forecast_study

EXAMPLE = "hesspec study digits-quick --out my-study\nhesspec report my-study"


def command(
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="A study file (YAML), or a preset: " + ", ".join(presets()) + "."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="For the results. What is there of this study is not done again.",
            show_default="the file's name without .yaml; of a study.yaml among results, where it is",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be run, and what it would take on this machine.")
    ] = False,
    device: options.Device = "cpu",
    ray: Annotated[
        bool,
        typer.Option(
            "--ray",
            help="Spread the study over a Ray cluster: the one that RAY_ADDRESS names, or one of this machine. FOLDER "
            "has to be a file system that all of its machines share.",
        ),
    ] = False,
    ray_cpus: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="CPU cores of a task, with --ray. Each takes a GPU where --device is cuda.",
            show_default="1",
        ),
    ] = None,
) -> None:
    """Train networks at several sample sizes, and measure their spectra through the training.

    Everything is written once, as soon as it is there: a study that was interrupted goes on where it was by the same
    command. Several processes with the same FOLDER share the work. `hesspec report FOLDER` shows what is there, also
    while a study is running.

    Data sets, networks and names of parameters are checked before anything is run; with --dry-run too, which lists all
    the same what would be run. Where a task fails later, the others are done first. Either ends with a line for each
    reason, and status 1; the same command tries what failed again.
    """
    _check_ray(ray, ray_cpus, dry_run)
    config = load_study(file)
    if not ray:  # which says what devices its workers can have
        options.device_of(device)
    folder = _results_of(Path(file)) if out is None else out
    failed: StudyError | None = None
    try:
        if dry_run:
            _forecast(config, folder, device)
            return
        with console.progress() as show:
            if ray:
                run_on_ray(config, folder, device=device, cpus=ray_cpus or 1, on_progress=show)
            else:
                run_study(config, folder, device=device, on_progress=show)
    except StudyError as error:
        if os.environ.get("HESSPEC_TRACEBACK"):
            raise
        failed = error
    if folder.is_dir() and not dry_run:
        console.output.print(progress_table(config, folder))
        console.output.print(f"Results in {folder}; hesspec report {folder} makes a page of them.", soft_wrap=True)
    if failed is not None:
        for sentence in (failed.summary, *failed.sentences):
            console.say(f"Error: {sentence}", "red")
        raise typer.Exit(1)


def _check_ray(ray: bool, cpus: int | None, dry_run: bool) -> None:
    """Raise ValueError unless the options of Ray go together."""
    if cpus is not None and not ray:
        raise ValueError(f"--ray-cpus {cpus} is for tasks on Ray; leave it out, or give --ray.")
    if ray and dry_run:
        raise ValueError("--dry-run times one process on this machine, without Ray; leave out --ray, or --dry-run.")


def _results_of(file: Path) -> Path:
    """Folder of a study whose file was named and no folder."""
    kept = file.name == STUDY_FILE and (file.parent / RUNS).is_dir()
    return file.parent if kept else Path(file.stem)


def _forecast(config: StudyConfig, folder: Path, device: str) -> None:
    """Show what of a study is left to do; StudyError afterwards where tasks cannot be run."""
    with console.progress() as show:
        forecasts = forecast_study(config, folder, device=device, on_task=lambda what: show(what, 0, None))
    for table in forecast_table(forecasts):
        console.output.print(table)
    faults = {item.task.name: item.fault for item in forecasts if item.fault is not None}
    if faults:
        raise StudyError(f"{len(faults)} of {len(forecasts)} tasks cannot be run as they are.", faults)
