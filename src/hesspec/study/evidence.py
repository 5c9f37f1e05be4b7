"""Evidence of the Laplace approximation of a checkpoint, from a spectrum of G that has been measured."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from hesspec.applications.laplace.evidence import MarginalLikelihood
from hesspec.applications.laplace.record import Evidence
from hesspec.operators.risk.parameters import ParameterSelection, ParameterSpec
from hesspec.spectra.record import load
from hesspec.spectra.spectrum import Spectrum

__all__ = ["evidence_of"]


def evidence_of(network: nn.Module, spectrum: Spectrum | Path, params: ParameterSpec = None) -> Evidence:
    """Compute evidence and effective parameters for all priors, without a product.

    Parameters
    ----------
    network : torch.nn.Module
        Network with the weights at which the spectrum was measured.
    spectrum : Spectrum or path
        Spectrum of `hesspec.GaussNewton` on the training set, or its file.
    params : optional
        The parameters that it was measured with.

    Raises
    ------
    ValueError
        If the spectrum is of another number of parameters, or for the reasons of `MarginalLikelihood`.
    """
    found = load(spectrum) if isinstance(spectrum, Path) else spectrum
    if not isinstance(found, Spectrum):
        raise ValueError(
            f"The file {str(spectrum)!r} contains a result of another kind ({found.KIND}), not a spectrum."
        )
    chosen = ParameterSelection(network, params)
    if chosen.count != found.dimension:
        raise ValueError(
            f"The spectrum is of {found.dimension:,} parameters, but {chosen.count:,} parameters of the network are "
            "selected: give the same network and parameters."
        )
    norm = sum(float(value.double().square().sum()) for value in chosen.values)
    return MarginalLikelihood(found, squared_norm=norm).table()
