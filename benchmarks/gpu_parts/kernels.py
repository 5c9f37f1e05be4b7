"""Which kernels a product consists of."""

from __future__ import annotations

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import hesspec
from gpu_parts import Given
from gpu_parts.networks import vgg

TITLE = "One product, by kernel"
NOTE = "VGG11-BN, 2,048 images, float32 in full precision; the twelve that take longest, and how often they are called."
COLUMNS = ("matrix", "kernel", "ms", "share", "calls")


def run(given: Given) -> None:
    """Measure."""
    cuda = given.device.type == "cuda"
    torch.manual_seed(0)
    model, samples = vgg().eval().to(given.device), 4 if given.quick else 2048
    data = [(torch.randn(samples, 3, 32, 32, device=given.device), torch.arange(samples, device=given.device) % 10)]
    for matrix in ("Hessian", "GaussNewton"):
        with given.step(matrix):
            operator = getattr(hesspec, matrix)(model, nn.CrossEntropyLoss(), data)
            vector = torch.randn(operator.shape[0], device=given.device)
            for _ in range(3):
                operator @ vector
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
            with profile(activities=activities) as found:
                operator @ vector
                if cuda:
                    torch.cuda.synchronize(given.device)
            name = "self_device_time_total" if cuda else "self_cpu_time_total"
            events = sorted(found.key_averages(), key=lambda event: -getattr(event, name))
            total = sum(getattr(event, name) for event in events) or 1.0
            for event in events[:12]:
                taken = getattr(event, name)
                given.keep(matrix, event.key[:90], f"{taken / 1e3:.3f}", f"{taken / total:.0%}", event.count)
