"""What a run would take, and how it would take less: lines to print."""

from __future__ import annotations

import time

import torch

from rga_fast.reid.checkpoint import make_network
from rga_fast.reid.config import Config
from rga_fast.reid.files import duration_text
from rga_fast.reid.network.attention import rga
from rga_fast.reid.training.step import Training

LONG = 3600  # seconds of training from which shorter runs are named
IMAGENET_WIDTH = 64  # of the ResNets that there are weights for


def start_notes(config: Config, device: torch.device) -> list[str]:
    """What the run goes without: pretrained weights, the fast implementation."""
    notes = []
    if config.pretrained is None and config.init is None and config.base_width == IMAGENET_WIDTH:
        notes.append(
            "the network starts from random weights; --pretrained FILE starts from those of "
            "ImageNet, as published"
        )
    if config.impl == "reference" and config.attention in rga.SYSTEMS:
        gain = ""
        if device.type == "cpu":
            gain = ", 3.4 times faster in a training step of ResNet-50 on 2 threads (README)"
        notes.append(
            f"the reference implementation of RGA runs; --fused computes the same{gain}, with a "
            "third of the memory"
        )
    return notes


def time_note(config: Config, device: torch.device, seconds: float) -> str:
    """A line on the time that training takes; for a long one on a CPU, with what takes less."""
    note = f"about {duration_text(seconds)} of training on this {device.type}"
    if device.type != "cpu" or seconds < LONG:
        return note
    ways = ["a GPU", "epochs=N"]
    if config.arch != "resnet18":
        ways.append("--recipe small (ResNet-18 at 96x48)")
    if config.impl == "reference" and config.attention in rga.SYSTEMS:
        ways.append("--fused")
    return f"{note}; less with {', '.join(ways[:-1])} or {ways[-1]}"


def step_seconds(config: Config, num_classes: int, device: torch.device) -> float:
    """The time of a training step: that of four images, the second of two steps, scaled to the
    batch. Without reading images and without compilation."""
    small = config.replace(compile=False, cuda_graph=False, accumulate=1, sync_bn=False, ema=None)
    training = Training(make_network(small, num_classes), small, device)
    training.start_epoch(config.freeze_epochs)
    images = torch.randn(4, 3, *config.size, device=device)
    labels = torch.arange(4, device=device) // 2
    for _ in range(2):
        started = time.perf_counter()
        training.step(images, labels, config.learning_rate).read()
    elapsed = time.perf_counter() - started
    return elapsed * config.identities_per_batch * config.images_per_identity / len(images)
