"""The spectra of VGG11-BN on 50,000 images, everything included, and what a step takes besides its product."""

from __future__ import annotations

import time

import torch
from torch import nn

import hesspec
from gpu_parts import Given, seconds_of
from gpu_parts.networks import vgg

TITLE = "Whole spectra"
NOTE = (
    "VGG11-BN, images of 32x32 (random: what they show takes no time), 64 steps, one probe, from the model to the "
    "spectrum with its bounds. Besides products: the share of the seconds that are not products of the same vectors. "
    "Goal: 180 s for Hess of 50,000 images."
)
COLUMNS = ("matrix", "precision", "images", "seconds", "besides products", "mode", "product's error", "peak, GB")
IMAGES, BATCH, STEPS = 50_000, 2_500, 64
SET_UP = 8.0


def run(given: Given) -> None:
    """Measure, with fewer images where the time that is left demands it."""
    steps, batch = (4, 4) if given.quick else (STEPS, BATCH)
    torch.manual_seed(0)
    model = vgg().eval().to(given.device)
    count = 8 if given.quick else IMAGES
    inputs, targets = torch.randn(count, 3, 32, 32, device=given.device), torch.arange(count, device=given.device) % 10
    data = list(zip(inputs.split(batch), targets.split(batch), strict=True))
    cuda = given.device.type == "cuda"
    # With the share of the time that is left: all images first in the precision that is fast.
    todo = [
        ("Hessian", "tf32" if cuda else "bfloat16", 0.5),
        ("Hessian", "full", 0.6),
        ("GaussNewton", "full", 0.6),
        ("Residual", "full", 1.0),
    ]
    for matrix, precision, share in todo:
        with given.step(f"{matrix}, {precision}"):
            until = time.time() + share * given.left
            kind, loss = getattr(hesspec, matrix), nn.CrossEntropyLoss()
            # What a run of all images will take, by one product of one batch.
            trial = kind(model, loss, data[:1], precision=precision)
            vector = torch.randn(trial.shape[0], device=given.device)
            trial @ vector
            one = seconds_of(lambda trial=trial, vector=vector: trial @ vector, given.device)
            # A second trace and first pass, and the part of a step outside its product.
            fits = int((until - time.time() - SET_UP) / (1.3 * steps * one))
            batches = data[: max(1, min(len(data), fits))]
            del trial
            if cuda:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(given.device)
            started = time.perf_counter()
            operator = kind(model, loss, batches, precision=precision)
            spectrum = hesspec.spectrum(operator, steps=steps, seed=0)
            if cuda:
                torch.cuda.synchronize(given.device)
            taken = time.perf_counter() - started
            peak = torch.cuda.max_memory_allocated(given.device) / 1e9 if cuda else float("nan")
            product = seconds_of(lambda operator=operator, vector=vector: operator @ vector, given.device)
            given.keep(
                matrix,
                precision,
                f"{sum(len(x) for x, _ in batches):,}",
                f"{taken:.1f}",
                f"{1 - steps * product / taken:.0%}",
                operator.attributes["mode"],
                f"{spectrum.attributes.get('product_error', 0.0)}",
                f"{peak:.1f}",
            )
