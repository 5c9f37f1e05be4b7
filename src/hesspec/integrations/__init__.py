"""Callbacks for trainers, and spectra in experiment trackers."""

from typing import TYPE_CHECKING

from hesspec.backend.lazy import lazily

if TYPE_CHECKING:
    from hesspec.integrations.lightning import LightningCallback
    from hesspec.integrations.loggers import log_spectrum
    from hesspec.integrations.transformers import TransformersCallback

__all__ = ["LightningCallback", "TransformersCallback", "log_spectrum"]

if not TYPE_CHECKING:  # type checkers would take any name for one of this module
    # Libraries of trainers take seconds to import, and need not be installed: names by the module that defines them.
    __getattr__, __dir__ = lazily(
        __name__,
        "hesspec.integrations",
        {
            "lightning": ("LightningCallback",),
            "loggers": ("log_spectrum",),
            "transformers": ("TransformersCallback",),
        },
    )
