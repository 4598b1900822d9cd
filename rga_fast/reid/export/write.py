"""Writing a trained network to a file of a format, through the gate."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rga_fast import validation
from rga_fast.reid.checkpoint import Trained
from rga_fast.reid.data.datasets import ReidData
from rga_fast.reid.data.images import open_images
from rga_fast.reid.export import int8, parity
from rga_fast.reid.export.facts import make_facts
from rga_fast.reid.export.fold import Deployable
from rga_fast.reid.export.formats import FORMATS
from rga_fast.reid.files import write_file

IMAGES = 256  # of query and gallery, on which a file is compared with its network
MOST_LOST = 0.02  # of mAP, by quantisation


def export_network(
    trained: Trained,
    data: ReidData,
    path: Path,
    kind: str,
    *,
    quantise: str | None = None,
    images: int = IMAGES,
    most_lost: float = MOST_LOST,
) -> list[parity.Parity]:
    """Writes a trained network to `path` if the file then gives what the network gives.

    The file takes uint8 images (B, H, W, 3), of any B, and returns both features; what a program
    must know is stored in it as JSON (`facts`).

    Args:
        trained: on the CPU.
        data: query and gallery images on which features and mAP are compared.
        kind: one of `FORMATS`.
        quantise: "static" or "dynamic": int8, only of "onnx". Static quantisation takes ranges from
            training images of `data`.
        images: about how many images are compared.
        most_lost: of mAP (0 to 1), by quantisation.

    Returns:
        The comparisons, by size of batch.

    Raises:
        ValueError: if the file gives something else, or options do not go together. Nothing is
            written then, and a file that was at `path` stays.
        ImportError: without the packages of the extra `export`.
    """
    validation.check_choice("export", "format", kind, tuple(FORMATS))
    if quantise is not None:
        validation.check_choice("export", "int8", quantise, int8.MODES)
        if kind != "onnx":
            raise ValueError(f"export: int8 needs the format onnx, got {kind}")
    expected = parity.expect(trained.network, data, images)
    rows: list[parity.Parity] = []

    def write(partial: Path) -> None:
        with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as folder:
            made = _write(trained, data, Path(folder), kind, quantise)
            run = FORMATS[kind].open(made)
            rows.extend(parity.compare(run, expected, quantised=quantise is not None))
            parity.check(rows, None if quantise is None else most_lost)
            shutil.copyfile(made, partial)

    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, write)
    return rows


def _write(trained: Trained, data: ReidData, folder: Path, kind: str, quantise: str | None) -> Path:
    suffix, write = FORMATS[kind][:2]
    facts: dict[str, Any] = make_facts(trained, kind)
    made = folder / f"network{suffix}"
    write(Deployable(trained.network), trained.config.size, made, facts)
    if quantise is None:
        return made
    target = folder / f"quantised{suffix}"
    facts["quantised"] = f"int8, {quantise}"
    int8.quantise(made, target, quantise, _calibration(data, trained.config.size), facts)
    return target


def _calibration(data: ReidData, size: tuple[int, int]) -> Tensor:
    """Training images at even distances, uint8 (N, H, W, 3)."""
    count = min(int8.CALIBRATION, len(data.train))
    chosen = np.linspace(0, len(data.train) - 1, count).astype(int)
    return torch.as_tensor(open_images(data.train, size)[chosen])
