"""`hesspec study`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hesspec.backend.presets import presets
from hesspec.cli import console, options
from hesspec.cli.completion import completing, study_presets

if TYPE_CHECKING:
    from hesspec.study import StudyConfig

EXAMPLE = "hesspec study digits-quick --out my-study\nhesspec report my-study"


def command(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            autocompletion=completing(study_presets),
            help="Study file (YAML), or a preset: " + ", ".join(presets()) + ".",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Output folder; results of this study that it contains are kept.",
            show_default="name of the file without .yaml; for a study.yaml next to its results, their folder",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="List the tasks with their estimated time and memory on this machine, without running them.",
        ),
    ] = False,
    device: options.Device = "cpu",
    ray: Annotated[
        bool,
        typer.Option(
            "--ray",
            help="Run the tasks on a Ray cluster: the one that RAY_ADDRESS names, or a local one. FOLDER must be on a "
            "file system that all machines share.",
        ),
    ] = False,
    ray_cpus: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="CPU cores per task, with --ray. With --device cuda, each task also gets one GPU.",
            show_default="1",
        ),
    ] = None,
) -> None:
    """Train networks at several sample sizes, and measure their spectra during training.

    Each result is saved as soon as it is complete: to resume an interrupted study, run the same command again. Several
    processes with the same FOLDER share the work. `hesspec report FOLDER` shows the results, also while a study is
    running.

    Data sets, networks and parameter names are checked before anything runs, also with --dry-run, which lists all tasks
    even if a check fails. If a task fails later, the other tasks are completed first. Either failure prints one line
    per reason and exits with status 1; the same command retries what failed.
    """
    from hesspec.cli.devices import device_of
    from hesspec.cli.tables.studies import progress_table
    from hesspec.study import StudyError, load_study, run_study
    from hesspec.study.cluster import run_on_ray

    _check_ray(ray, ray_cpus, dry_run)
    config = load_study(file)
    if not ray:  # with Ray, the devices of its workers count
        device_of(device)
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
        console.output.print(f"Results are in {folder}; run hesspec report {folder} to view them.", soft_wrap=True)
    if failed is not None:
        for sentence in (failed.summary, *failed.sentences):
            console.say(f"Error: {sentence}", "red")
        raise typer.Exit(1)


def _check_ray(ray: bool, cpus: int | None, dry_run: bool) -> None:
    """Raise ValueError if the options for Ray contradict one another."""
    if cpus is not None and not ray:
        raise ValueError(f"--ray-cpus {cpus} requires --ray; add --ray or drop --ray-cpus.")
    if ray and dry_run:
        raise ValueError(
            "--dry-run estimates a single process on this machine and cannot be combined with --ray; drop one of "
            "the two."
        )


def _results_of(file: Path) -> Path:
    """Output folder of a study if none is given."""
    from hesspec.spectra.study_names import STUDY_FILE
    from hesspec.study.folders import RUNS

    is_stored = file.name == STUDY_FILE and (file.parent / RUNS).is_dir()
    return file.parent if is_stored else Path(file.stem)


def _forecast(config: "StudyConfig", folder: Path, device: str) -> None:
    """Print what is left to do in a study. Afterwards raises StudyError if tasks cannot be run."""
    from hesspec.cli.tables.studies import forecast_table
    from hesspec.study import StudyError
    from hesspec.study.forecasting import forecast_study

    with console.progress() as show:
        forecasts = forecast_study(config, folder, device=device, on_task=lambda what: show(what, 0, None))
    for table in forecast_table(forecasts):
        console.output.print(table)
    faults = {item.task.name: item.fault for item in forecasts if item.fault is not None}
    if faults:
        raise StudyError(f"{len(faults)} of {len(forecasts)} tasks cannot be run.", faults)
