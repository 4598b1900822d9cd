"""The model card: what a network is, what it is for, and what it reached, from its run."""

from __future__ import annotations

from typing import Any

import rga_fast
from rga_fast.reid.checkpoint import Trained

TAGS = ("person-re-identification", "image-feature-extraction", "attention")

USE = """\
## What it is for

It turns a picture of a person into a vector, so that pictures of one person are near each other: to
find the person of a query image again in images of other cameras, by clothes and build.

**It identifies people.** Use it only where you have the right to. In many places such processing
of pictures of people needs their consent or another legal ground. It is not made for decisions
about people without a human who checks them, nor for covert surveillance.

It errs. Different people in similar clothes are confused, a person in other clothes is not found,
and results on cameras, places and people unlike those of its training are worse than those below.
It has not been tested for differences between groups of people.
"""


def model_card(
    trained: Trained,
    *,
    scores: dict[str, Any] | None = None,
    data: str | None = None,
    threshold: dict[str, Any] | None = None,
) -> str:
    """The card as Markdown with metadata, from what is known of the network.

    Args:
        scores: of both features, as in a run's `summary.json`: fractions.
        data: the data set that it was trained and evaluated on.
        threshold: the fields of a `Threshold`.
    """
    network, config = trained.network, trained.config
    height, width = config.size
    attention = "without attention"
    if network.attention:
        stages = ", ".join(map(str, network.attention))
        attention = f"with {config.attention} after stages {stages}"
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    parts = [
        "---",
        "library_name: rga_fast",
        "tags:",
        *(f"- {tag}" for tag in TAGS),
        "---",
        "",
        "# Person re-identification",
        "",
        f"A {config.arch} {attention}, {millions:.1f} M parameters, for images of {height}x{width} "
        f"pixels, trained for {trained.epoch} epochs on {data or 'a data set that is not known'}.",
        "",
        USE,
        "## What it reached",
        "",
        *_results(scores, data),
    ]
    if threshold is not None:
        parts += ["", _threshold(threshold)]
    parts += [
        "",
        "## How to use it",
        "",
        "```python",
        "from rga_fast.reid.hub import PretrainedReid",
        "",
        "model = PretrainedReid.from_pretrained(...)  # this repository, or its folder",
        "```",
        "",
        f"Images: `preprocessing.json`. Written by rga_fast {rga_fast.__version__} (Relation-Aware "
        "Global Attention, Zhang et al., CVPR 2020).",
    ]
    return "\n".join(parts)


def _results(scores: dict[str, Any] | None, data: str | None) -> list[str]:
    if scores is None:
        return ["Not evaluated."]
    lines = [
        f"On query and gallery of {data}, people who were not in the training, by cosine distance "
        "and the rules of Market-1501, in percent.",
        "",
        "| feature | rank-1 | rank-5 | mAP | mINP |",
        "|---|---|---|---|---|",
    ]
    for name, metrics in scores.items():
        values = " | ".join(f"{100 * metrics[k]:.1f}" for k in ("rank1", "rank5", "mAP", "mINP"))
        lines.append(f"| {name.replace('_', ' the ')} | {values} |")
    return lines


def _threshold(threshold: dict[str, Any]) -> str:
    accepted = 100 * threshold["true_accept_rate"]
    confused = 100 * threshold["false_accept_rate"]
    return (
        f"Pairs at a distance of at most {threshold['value']:.4f} ({threshold['feature']}) are "
        f"taken for the same person: {accepted:.1f} % of the pairs of one person and "
        f"{confused:.3g} % of those of different people on {threshold['data']} "
        "(`threshold.json`)."
    )
