"""Callbacks for trainers, spectra in experiment trackers, and operators for other libraries."""

from typing import TYPE_CHECKING

from hesspec.backend.lazy import lazily

if TYPE_CHECKING:
    from hesspec.integrations.curvlinops import to_curvlinops
    from hesspec.integrations.lightning import LightningCallback
    from hesspec.integrations.loggers import log_spectrum
    from hesspec.integrations.transformers import TransformersCallback

__all__ = ["LightningCallback", "TransformersCallback", "log_spectrum", "to_curvlinops"]

if not TYPE_CHECKING:  # type checkers would take any name for one of this module
    # Libraries of trainers take seconds to import, and need not be installed: names by the module that defines them.
    __getattr__, __dir__ = lazily(
        __name__,
        "hesspec.integrations",
        {
            "curvlinops": ("to_curvlinops",),
            "lightning": ("LightningCallback",),
            "loggers": ("log_spectrum",),
            "transformers": ("TransformersCallback",),
        },
    )
