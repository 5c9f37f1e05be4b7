"""Language models: value heads and their calibration, preferences, and the curvature of both.

The loss of tokens is `hesspec.TokenLoss`, whose matrices have a closed form; see also `hesspec.frequent_classes`.
"""

from typing import TYPE_CHECKING

from hesspec.backend.lazy import lazily

if TYPE_CHECKING:
    from hesspec.applications.language.calibration_record import Calibration
    from hesspec.applications.language.consistency import label_consistency
    from hesspec.applications.language.consistency_record import LabelConsistency
    from hesspec.applications.language.objectives import compare_objectives
    from hesspec.applications.language.objectives_record import ObjectiveComparison
    from hesspec.applications.language.preference_data import labelled, pairs, rankings
    from hesspec.applications.language.preferences import Pairwise, Ranking
    from hesspec.applications.language.reliability import Temperature, calibration, fit_temperature
    from hesspec.applications.language.reward_record import RewardLaw
    from hesspec.applications.language.reward_spectrum import reward_law
    from hesspec.applications.language.value_head import ValueHead

__all__ = [
    "Calibration",
    "LabelConsistency",
    "ObjectiveComparison",
    "Pairwise",
    "Ranking",
    "RewardLaw",
    "Temperature",
    "ValueHead",
    "calibration",
    "compare_objectives",
    "fit_temperature",
    "label_consistency",
    "labelled",
    "pairs",
    "rankings",
    "reward_law",
]

if not TYPE_CHECKING:  # type checkers would take any name for one of this module
    # Results can be read from files without PyTorch: names by the module that defines them.
    __getattr__, __dir__ = lazily(
        __name__,
        "hesspec.language",
        {
            "reliability": ("Temperature", "calibration", "fit_temperature"),
            "calibration_record": ("Calibration",),
            "consistency": ("label_consistency",),
            "consistency_record": ("LabelConsistency",),
            "objectives": ("compare_objectives",),
            "objectives_record": ("ObjectiveComparison",),
            "preference_data": ("labelled", "pairs", "rankings"),
            "preferences": ("Pairwise", "Ranking"),
            "reward_spectrum": ("reward_law",),
            "reward_record": ("RewardLaw",),
            "value_head": ("ValueHead",),
        },
    )
