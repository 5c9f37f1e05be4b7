"""Studies that come with the package, as files. Their names are known without PyTorch, which is slow to import."""

from importlib.resources import files
from importlib.resources.abc import Traversable

__all__ = ["preset_file", "presets"]


def presets() -> list[str]:
    """Names of the studies that come with the package, which `load_study` takes like files."""
    folder = files("hesspec").joinpath("study", "presets")
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def preset_file(name: str) -> Traversable:
    """Study file of a preset."""
    return files("hesspec").joinpath("study", "presets", f"{name}.yaml")
