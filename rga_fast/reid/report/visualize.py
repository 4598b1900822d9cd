"""Pictures of what a network attends to in images: spatial attention (Figure 1 of the paper),
affinities of chosen positions (Figure 4), Grad-CAM beside the baseline's (Figure 5), channels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rga_fast.reid.data.augment import normalise
from rga_fast.reid.data.images import read_image
from rga_fast.reid.files import write_file
from rga_fast.reid.network.maps import affinities, attention_values, maps_before_attention
from rga_fast.reid.network.reidnet import ReidNet
from rga_fast.reid.report.charts import data_uri, require
from rga_fast.reid.report.figures import Panel, save_panels
from rga_fast.reid.report.gradcam import grad_cam
from rga_fast.reid.report.page import render

SHOWN_HEIGHT = 256  # pixels of an image in the figures
CHANNELS = 3  # the strongest and as many of the weakest
TARGETS = ((0.35, 0.5), (0.75, 0.5), (0.35, 0.05))  # chest, legs and background

Target = tuple[float, float]

KINDS = {
    "attention": "Spatial attention after each stage",
    "affinity": "Affinities of the marked position to all others",
    "gradcam": "Grad-CAM: where the decision comes from, relative to the highest value",
    "channels": "The channels of highest and lowest attention: their maps before it",
}


class Drawn(NamedTuple):
    """An image's name and its figures' files, by kind."""

    name: str
    files: dict[str, Path]


def visualize(
    network: ReidNet,
    images: Sequence[Path],
    folder: Path,
    *,
    name: str,
    baseline: ReidNet | None = None,
    targets: Sequence[Target] = TARGETS,
) -> list[str]:
    """Draws the figures of every image to PNG files in `folder`, and all of them to `index.html`.

    Args:
        network: in evaluation mode. baseline: another, for Grad-CAM.
        images: files; figures are named after them.
        name: of the network, in titles.
        targets: positions (y, x), each in [0, 1], whose affinities are drawn.

    Returns:
        A line for each kind of figure that makes no sense for the network's attention.

    Raises:
        ImportError: names the extra `report` where it is missing.
        ValueError, FileNotFoundError: for a file that is no image; none is written then.
    """
    require()
    for path in images:  # before anything is written
        read_image(path, (1, 1))
    folder.mkdir(parents=True, exist_ok=True)
    drawn, missing = [], set(KINDS)
    for path, stem in zip(images, _stems(images), strict=True):
        shown = read_image(path, _shown_size(network.size))
        rows = _figures(network, path, targets, baseline, name)
        files = {}
        for kind, panels in rows.items():
            files[kind] = folder / f"{stem}-{kind}.png"
            save_panels(files[kind], shown, panels)
            missing.discard(kind)
        drawn.append(Drawn(path.name, files))
    notes = [_why_not(network, kind) for kind in KINDS if kind in missing]
    write_file(folder / "index.html", _sheet(drawn, name, notes))
    return notes


def _figures(
    network: ReidNet,
    path: Path,
    targets: Sequence[Target],
    baseline: ReidNet | None,
    name: str,
) -> dict[str, list[list[Panel]]]:
    """The rows of panels of each kind of figure that the attention has."""
    image = _network_image(network, path)
    before = maps_before_attention(network, image)
    values = {s: attention_values(network.attention[s], x) for s, x in before.items()}
    cams = {name: network} if baseline is None else {name: network, "baseline": baseline}
    rows = {
        "attention": _attention_panels(values),
        "affinity": _affinity_panels(network, before, targets),
        "gradcam": [[Panel("image"), *(_cam_panel(n, path, title) for title, n in cams.items())]],
        "channels": _channel_panels(before, values),
    }
    return {kind: panels for kind, panels in rows.items() if panels}


def _attention_panels(values: dict[int, dict[str, Tensor]]) -> list[list[Panel]]:
    panels = [Panel("image")]
    for stage, of_stage in values.items():
        if "spatial" in of_stage:
            panels.append(_scaled(f"stage {stage}", _array(of_stage["spatial"][0, 0])))
    return [panels] if len(panels) > 1 else []


def _affinity_panels(
    network: ReidNet, before: dict[int, Tensor], targets: Sequence[Target]
) -> list[list[Panel]]:
    """A row for each target. The maps of a stage have one scale."""
    rows = [[Panel("target", marks=[target])] for target in targets]
    for stage, x in before.items():
        H, W = x.shape[2:]
        places = [(min(int(y * H), H - 1), min(int(x * W), W - 1)) for y, x in targets]
        nodes = torch.tensor([row * W + column for row, column in places], device=x.device)
        found = affinities(network.attention[stage], x, nodes)
        if found is None:
            return []
        maps = _array(found[0])
        for row, (y, x_), values in zip(rows, places, maps, strict=True):
            centre = [((y + 0.5) / H, (x_ + 0.5) / W)]
            limits = float(maps.min()), float(maps.max())
            row.append(Panel(f"stage {stage}", values, *limits, marks=centre))
    return rows if before else []


def _channel_panels(
    before: dict[int, Tensor], values: dict[int, dict[str, Tensor]]
) -> list[list[Panel]]:
    """A row for each stage: the strongest channels, then the weakest, the very weakest last."""
    rows = []
    for stage, of_stage in values.items():
        if "channel" not in of_stage:
            continue
        weights = of_stage["channel"][0].flatten()
        order = weights.argsort(descending=True).tolist()
        most = min(CHANNELS, len(order) // 2)
        row = [Panel(f"stage {stage}")]
        for channel in [*order[:most], *order[len(order) - most :]]:
            title = f"channel {channel}\nattention {float(weights[channel]):.3g}"
            row.append(_scaled(title, _array(before[stage][0, channel]), over=False))
        rows.append(row)
    return rows


def _cam_panel(network: ReidNet, path: Path, title: str) -> Panel:
    return Panel(title, _array(grad_cam(network, _network_image(network, path))[0]))


def _scaled(title: str, values: np.ndarray, over: bool = True) -> Panel:
    return Panel(title, values, float(values.min()), float(values.max()), over=over)


def _array(values: Tensor) -> np.ndarray:
    return values.detach().float().cpu().numpy()


def _network_image(network: ReidNet, path: Path) -> Tensor:
    pixels = torch.from_numpy(read_image(path, network.size).copy())[None]
    return normalise(pixels.to(next(network.parameters()).device))


def _shown_size(size: tuple[int, int]) -> tuple[int, int]:
    """In the proportions in which the network sees an image."""
    return SHOWN_HEIGHT, max(1, round(SHOWN_HEIGHT * size[1] / size[0]))


def _stems(images: Sequence[Path]) -> list[str]:
    """File names without their endings; of equal ones the later are numbered."""
    names: list[str] = []
    for path in images:
        numbered = (f"{path.stem}-{number}" for number in count(2))
        names.append(next(n for n in chain([path.stem], numbered) if n not in names))
    return names


def _why_not(network: ReidNet, kind: str) -> str:
    name = network.attention_name if network.attention else "a network without attention"
    reasons = {
        "attention": "has no spatial attention values",
        "affinity": "relates no positions to each other, so there are no affinities",
        "channels": "has no channel attention values",
    }
    return f"{name} {reasons[kind]}"


def _sheet(drawn: Sequence[Drawn], name: str, notes: Sequence[str]) -> str:
    figures = [
        (image, {kind: data_uri(file.read_bytes(), "image/png") for kind, file in files.items()})
        for image, files in drawn
    ]
    return render("pictures.html", title=name, figures=figures, kinds=KINDS, notes=notes)
