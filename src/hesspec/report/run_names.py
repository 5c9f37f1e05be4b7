"""Names of the training runs of a folder: what distinguishes them, and never nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hesspec.report.member import Member

__all__ = ["with_runs"]

RUN_ATTRIBUTES = ("dataset", "network", "optimizer", "start", "loss")


def with_runs(members: Sequence[Member], studies: Sequence[str] = (), folder: str = "") -> list[Member]:
    """Name the runs by the fewest attributes that distinguish all spectra of one matrix, split and checkpoint.

    Parameters
    ----------
    members : sequence of Member
        Spectra, whose runs have no names yet.
    studies : sequence of str
        Subfolders with a study each: their runs are distinguished by these, before anything else.
    folder : str
        Name of the folder, for runs of which nothing else is known.

    Returns
    -------
    list of Member
        The same spectra with runs. Those of a single run are named by its network and data set.
    """
    homes = [_home(member.path, studies) if studies else "" for member in members]
    parts = [[home] if len(set(homes)) > 1 and home else [] for home in homes]
    others = [index for index, member in enumerate(members) if member.samples is None]
    grouped = [index for index, member in enumerate(members) if member.samples is not None]

    def tell_apart(values: list[str], which: list[int]) -> None:
        # What is in different studies is distinguished already.
        for home in dict.fromkeys(homes):
            mine = [index for index in which if homes[index] == home]
            if len({values[index] for index in mine}) > 1:
                for index in mine:
                    parts[index] += [values[index]] if values[index] else []

    def values_of(name: str, word: str = "") -> list[str]:
        found = [member.spectrum.attributes.get(name) for member in members]
        return ["" if value is None else f"{word}{value}" for value in found]

    everything = list(range(len(members)))
    for name in RUN_ATTRIBUTES:
        tell_apart(values_of(name), everything)
    tell_apart(values_of("training_seed", "seed "), grouped)
    tell_apart(values_of("params"), grouped)
    for values in (
        values_of("samples_per_class", "n = "),
        [member.path.parent.as_posix() for member in members],
        [member.path.name for member in members],
    ):
        keys = [
            (*parts[index], members[index].matrix, members[index].split, members[index].checkpoint) for index in others
        ]
        if len(set(keys)) == len(keys):
            break
        tell_apart(values, others)
    named = [replace(member, run=" · ".join(part)) for member, part in zip(members, parts, strict=True)]
    return _with_names(_without_collisions(named), folder)


def _home(path: Path, studies: Sequence[str]) -> str:
    """Return the study that a file belongs to, or else the folder that it is in."""
    parents = [parent.as_posix() for parent in path.parents]
    study = next((parent for parent in parents if parent in studies), None)
    return study or ("" if parents[0] == "." else parents[0])


def _with_names(members: Sequence[Member], folder: str) -> list[Member]:
    """Name the run that nothing distinguishes: the only one, or the one that lacks what the others have."""
    nameless = [member for member in members if not member.run]
    if not nameless:
        return list(members)
    taken = {member.run for member in members}
    found = [
        " and ".join(dict.fromkeys(str(value) for value in values if value is not None))
        for values in zip(
            *([member.spectrum.attributes.get(name) for name in ("dataset", "network")] for member in nameless),
            strict=True,
        )
    ]
    parents = " and ".join(dict.fromkeys(member.path.parent.as_posix() for member in nameless))
    choices = [" · ".join(filter(None, found)), "" if parents == "." else parents, folder]
    name = next((choice for choice in choices if choice and choice not in taken), "other spectra")
    return [member if member.run else replace(member, run=name) for member in members]


def _without_collisions(members: list[Member]) -> list[Member]:
    """Move trainings and measurements that newer ones have replaced in a study to separate groups."""

    def created(index: int) -> str:
        return str(members[index].spectrum.attributes.get("created", ""))

    latest: dict[Path, str] = {}
    for index, member in enumerate(members):
        latest[member.path.parent] = max(latest.get(member.path.parent, ""), created(index))
    order = [index for index, member in enumerate(members) if member.samples is not None]
    order.sort(key=lambda index: (latest[members[index].path.parent], created(index)), reverse=True)
    folders: dict[tuple[str, int | None], Path] = {}
    taken: set[tuple[object, ...]] = set()
    found = list(members)
    for index in order:
        member = members[index]
        # The checkpoints of one training belong together, so trainings are compared by age.
        newest = folders.setdefault((member.run, member.samples), member.path.parent)
        extra = [] if newest == member.path.parent else [member.path.parent.name]
        run = " · ".join(part for part in (member.run, *extra) if part)
        if (run, member.samples, member.epoch, member.matrix, member.split) in taken:
            run = " · ".join(part for part in (run, member.path.stem) if part)
        taken.add((run, member.samples, member.epoch, member.matrix, member.split))
        found[index] = replace(member, run=run)
    return found
