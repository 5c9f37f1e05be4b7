"""The reference of all public names: a page written from the lists `__all__` of the package, so that it misses none.

It is written before Sphinx looks for pages, as the pages of single names are made from it.
"""

import inspect
import sys
from importlib import import_module
from pathlib import Path

import hesspec

# Names of `hesspec` by what they are for, in the order of the page; names that are not here come last.
GROUPS = {
    "Matrices": (
        "Hessian",
        "GaussNewton",
        "Residual",
        "SecondMoment",
        "LikelihoodResidual",
        "GaussNewtonClass",
        "GaussNewtonCross",
        "GaussNewtonWithin",
        "GaussNewtonSame",
        "Preconditioned",
        "CentralDifferenceHessian",
        "Identity",
        "closure",
        "TokenLoss",
        "shard_data",
        "GraphCache",
    ),
    "Measuring": ("spectrum", "by_block", "eigenpairs", "solve", "diagonal", "plan", "load", "keep_freed_memory"),
    "Results": ("Spectrum", "BlockSpectra", "Eigenpairs", "Solution", "Diagonal", "Plan", "Estimate"),
    "From spectra": (
        "fit_tail",
        "fit_power_law",
        "compare_with_marchenko_pastur",
        "track_outliers",
        "steady_outliers",
        "eigenvector_overlaps",
        "compare",
        "Comparison",
        "principal_angles",
        "PrincipalAngles",
    ),
    "The loss along directions": ("loss_along", "plot_loss_along", "LossAlong"),
    "Transfer": ("effective_data", "EffectiveData", "fit_transfer_law", "TransferLaw"),
    "Class structure and splits of G": (
        "class_structure",
        "ClassStructure",
        "ClassMeans",
        "attribute_outliers",
        "Attribution",
        "project_out",
        "frequent_classes",
        "solve_true_vs_rest",
        "TrueVsRestSolution",
    ),
    "Errors": ("NonFiniteError", "NotSymmetricError", "RankError"),
}
OTHERS = "Further names"
HEAD = "The names are loaded when they are first used, so that ``import hesspec`` does not wait for PyTorch."
# Parts of the package that have names of their own, and what they are for.
MODULES = (
    ("laplace", "Laplace approximations"),
    ("stability", "the edge of stability"),
    ("noise", "gradient noise"),
    ("optim", "optimisers"),
    ("language", "value heads, calibration and preferences"),
    ("integrations", "training libraries and loggers"),
    ("plot", "figures"),
    ("study", "studies"),
    ("report", "pages"),
    ("operators", "base classes"),
)


def titled(title, mark):
    """Lines of a heading."""
    return [title, mark * len(title), ""]


def listed(module, names):
    """Lines of a table of names, each with a page of its own."""
    return [
        f".. currentmodule:: {module}",
        "",
        ".. autosummary::",
        "   :toctree: api/",
        "   :nosignatures:",
        "",
        *(f"   {name}" for name in names),
        "",
    ]


def page():
    """The page as text."""
    names = [name for name in hesspec.__all__ if not inspect.ismodule(getattr(hesspec, name))]
    grouped = {name for group in GROUPS.values() for name in group}
    groups = {title: [name for name in group if name in names] for title, group in GROUPS.items()}
    groups[OTHERS] = sorted(set(names) - grouped)
    lines = [*titled("Public names", "="), HEAD, ""]
    for title, group in groups.items():
        if group:
            lines += [*titled(title, "-"), *listed("hesspec", group)]
    seen = {id(getattr(hesspec, name)) for name in names}
    for part, title in MODULES:
        if part not in dir(hesspec):
            continue
        module = import_module(getattr(hesspec, part).__name__)
        # Applications are reached as `hesspec.NAME` but live elsewhere; Sphinx imports the names that it shows.
        sys.modules.setdefault(f"hesspec.{part}", module)
        found = {name: getattr(module, name) for name in module.__all__}
        new = {name: thing for name, thing in found.items() if id(thing) not in seen and not inspect.ismodule(thing)}
        seen |= {id(thing) for thing in new.values()}
        called = [name for name, thing in new.items() if callable(thing)]
        if called:
            lines += [*titled(f"hesspec.{part}: {title}", "-")]
            lines += listed(f"hesspec.{part}", called)
        if constants := [f"``{name}``" for name in new if name not in called]:
            lines += ["Constants: " + ", ".join(constants) + ".", ""]
    return "\n".join(lines)


def write(path):
    """Write the page, unless it is there already as it should be: Sphinx reads again what is newer."""
    path, text = Path(path), page()
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
