"""Optional views of a run: TensorBoard, and a profile of a few steps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor

from rga_fast.reid.console import console
from rga_fast.reid.data.augment import denormalise
from rga_fast.reid.data.datasets import Split
from rga_fast.reid.data.images import Images

SKIPPED_STEPS, WARMUP_STEPS, PROFILED_STEPS = 1, 2, 3
OPERATORS = 10  # in the table of the most expensive ones
SHOWN_IMAGES = 32  # of a batch
EMBEDDED_IMAGES = 1000
THUMBNAIL_SIDE = 64


class Monitor:
    """Writes to `out / "tensorboard"` and `out / "profile"`, each if requested.

    A context manager around the steps; if nothing is requested, every method does nothing.
    ImportError, before anything is written, names the extra that TensorBoard needs.
    """

    def __init__(self, out: Path, *, tensorboard: bool = False, profile: bool = False) -> None:
        self.out = out
        self._first_step = self._step = 0
        self._writer_class = _summary_writer() if tensorboard else None
        self._profile = profile
        self._writer: Any = None
        self._profiler: torch.profiler.profile | None = None

    def resume_after(self, step: int) -> Monitor:
        """For a run that continues after `step`: TensorBoard discards later steps."""
        self._first_step = self._step = step
        return self

    def __enter__(self) -> Monitor:
        if self._writer_class is not None:
            folder = str(self.out / "tensorboard")
            self._writer = self._writer_class(folder, purge_step=self._first_step + 1)
            console.print(f"to view the run: tensorboard --logdir {self.out}")
        if self._profile:
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # no messages at start and stop
            steps = torch.profiler.schedule(
                wait=SKIPPED_STEPS, warmup=WARMUP_STEPS, active=PROFILED_STEPS, repeat=1
            )
            self._profiler = torch.profiler.profile(
                schedule=steps, on_trace_ready=self._keep_profile, record_shapes=True
            )
            self._profiler.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._profiler is not None:
            self._profiler.stop()  # saves the recorded steps, if there are any
        if self._profiler is not None:
            console.print(
                "nothing was profiled: profiling needs a run of at least "
                f"{SKIPPED_STEPS + WARMUP_STEPS + 1} steps"
            )
        if self._writer is not None:
            self._writer.close()

    def row(self, row: dict[str, Any]) -> None:
        """Adds the numbers of a row of `metrics.jsonl`; those of an evaluation by feature."""
        if self._writer is None:
            return
        for name, value in row.items():
            if isinstance(value, dict):
                for metric, number in value.items():
                    self._writer.add_scalar(f"{name}/{metric}", number, row["step"])
            elif name != "step":
                self._writer.add_scalar(f"train/{name}", value, row["step"])

    def step(self, images: Tensor) -> None:
        """Called after each step with its `images` (B, 3, H, W); TensorBoard shows the first
        batch."""
        if self._writer is not None and self._step == self._first_step:
            shown = denormalise(images[:SHOWN_IMAGES])
            self._writer.add_images("batch", shown, self._step)
        self._step += 1
        if self._profiler is not None:
            self._profiler.step()

    def embeddings(self, images: Images, split: Split, features: Tensor) -> None:
        """Adds the features (N, D) of a split's images, with thumbnails, to TensorBoard's
        projector."""
        if self._writer is None:
            return
        chosen = np.arange(min(len(images), EMBEDDED_IMAGES))
        people, cameras = split.identities[chosen], split.cameras[chosen]
        self._writer.add_embedding(
            features[chosen],
            metadata=list(zip(people.tolist(), cameras.tolist(), strict=True)),
            metadata_header=["identity", "camera"],
            label_img=_thumbnails(images[chosen]),
            global_step=self._step,
            tag="query",
        )

    def _keep_profile(self, profiler: torch.profiler.profile) -> None:
        steps = self._step - self._first_step - SKIPPED_STEPS - WARMUP_STEPS
        if steps < 1:  # the run ended during the warm-up
            return
        folder = self.out / "profile"
        keep = torch.profiler.tensorboard_trace_handler(str(folder), "train", use_gzip=True)
        keep(profiler)
        console.print(_operator_table(profiler.key_averages(), steps))
        console.print(
            f"the profile is in {folder}; to view it: pip install 'rga-fast[profile]' && "
            f"tensorboard --logdir {self.out}"
        )
        self._profiler = None


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            f"TensorBoard is missing ({error}): pip install 'rga-fast[tensorboard]'"
        ) from error
    return SummaryWriter


def _thumbnails(pixels: Tensor) -> Tensor:
    """uint8 (N, H, W, 3) -> float32 (N, 3, s, s) in 0..1, centred on a white square: the
    writer accepts only squares."""
    _, H, W, _ = pixels.shape
    side = min(max(H, W), THUMBNAIL_SIDE)
    height, width = (max(1, round(length * side / max(H, W))) for length in (H, W))
    images = pixels.permute(0, 3, 1, 2).float() / 255
    images = F.interpolate(images, size=(height, width), mode="bilinear", antialias=True)
    top, left = (side - height) // 2, (side - width) // 2
    border = (left, side - width - left, top, side - height - top)
    return F.pad(images.clamp(0, 1), border, value=1.0)


def _operator_table(events: Sequence[Any], steps: int) -> Table:
    """The operators with the largest self time over `steps` steps, on the GPU if one was used."""
    on_device = any(event.self_device_time_total > 0 for event in events)
    name = "self_device_time_total" if on_device else "self_cpu_time_total"
    events = [event for event in events if not event.key.startswith("ProfilerStep")]
    total = sum(getattr(event, name) for event in events)
    where = "GPU" if on_device else "CPU"
    table = Table(
        title=f"the {OPERATORS} most expensive operators, per step, {where}", title_justify="left"
    )
    table.add_column("operator", overflow="ellipsis", max_width=60)
    for column in ("calls", "ms", "share"):
        table.add_column(column, justify="right")
    for event in sorted(events, key=lambda event: -getattr(event, name))[:OPERATORS]:
        time = getattr(event, name)
        table.add_row(
            event.key,
            f"{event.count / steps:.0f}",
            f"{time / steps / 1e3:.2f}",
            f"{time / max(total, 1e-9):.1%}",
        )
    return table
