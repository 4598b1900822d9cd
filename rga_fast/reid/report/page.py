"""The report of one run, or of two side by side, as one HTML file without anything outside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

import rga_fast
from rga_fast.reid.files import write_file
from rga_fast.reid.report import charts, pictures, tables
from rga_fast.reid.report.curves import FEATURE, PANELS
from rga_fast.reid.report.evaluated import Evaluated
from rga_fast.reid.report.histograms import distance_histograms
from rga_fast.reid.report.listed import Listed, list_queries
from rga_fast.reid.retrieval.breakdown import by_camera_pair
from rga_fast.reid.retrieval.metrics import cmc, summary
from rga_fast.reid.retrieval.tables import FEATURE_NAMES, skipped_note
from rga_fast.reid.retrieval.verification import roc

CMC_LENGTH = 50
SHOWN_CURVES = {"loss": 1.0, "mAP": 100.0, "rank1": 100.0, "accuracy": 100.0, "lr": 1.0}


class Chart(NamedTuple):
    title: str
    uri: str


class Section(NamedTuple):
    """What belongs to one run, or to two that rank the same images."""

    title: str
    distances: list[Chart]
    cameras: list[Chart]
    camera_table: tables.Table
    tables: list[tables.Table]
    listed: Listed


def write_report(runs: Sequence[Evaluated], target: Path) -> None:
    """Writes the report of one or two runs to `target`.

    Its ranks are those that the metrics are made of. The file opens without a network.

    Raises:
        ImportError: names the extra `report` where it is missing.
        OSError: if the file cannot be written.
    """
    charts.require()
    paired = len(runs) == 2 and runs[0].same_task(runs[1])
    groups = [runs] if paired else [[run] for run in runs]
    page = render(
        "report.html",
        title=" and ".join(run.name for run in runs),
        facts=[_facts(run) for run in runs],
        feature=FEATURE_NAMES[FEATURE],
        metrics=tables.metrics_table(runs),
        configuration=tables.config_table(runs),
        curves=_curves(runs),
        cmc=charts.cmc_chart({run.name: _cmc(run) for run in runs}),
        roc=charts.roc_chart({run.name: roc(run.pairs) for run in runs}),
        verification=tables.verification_table(runs),
        sections=[_section(group, alone=len(groups) == 1) for group in groups],
        gradient=pictures.gradient(),
        version=rga_fast.__version__,
    )
    write_file(target, page)


def render(template: str, **values: Any) -> str:
    """A template of this package; texts are escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("rga_fast.reid.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def _facts(run: Evaluated) -> dict[str, str]:
    """What the reader wants to know first."""
    config, data = run.config, run.images.data
    queries = skipped_note({FEATURE: summary(run.scores[FEATURE])})
    facts = {
        "run": run.name,
        "data": f"{data.name}: {queries}, {len(data.gallery):,} gallery images",
        "network": f"{config.arch} at {config.height}x{config.width}, "
        f"{sum(p.numel() for p in run.network.parameters()) / 1e6:.2f} M parameters",
        "attention": "none",
        "epoch": f"{run.epoch} of {config.epochs}",
    }
    if run.network.attention:
        stages = ", ".join(map(str, run.network.attention))
        facts["attention"] = f"{config.attention} after stages {stages}"
    if run.summary:
        versions = run.summary["versions"]
        facts["training"] = (
            f"{run.summary['seconds']:.0f} s on {run.summary['device']}, "
            f"rga_fast {versions['rga_fast']}, torch {versions['torch']}"
        )
    return facts


def _curves(runs: Sequence[Evaluated]) -> list[Chart]:
    found = []
    for name, unit in SHOWN_CURVES.items():
        curves = {run.name: run.curves[name] for run in runs if name in run.curves}
        if any(curve.x for curve in curves.values()):
            title = f"{PANELS[name]}{', %' if unit == 100 else ''}"
            found.append(Chart(title, charts.curve_chart(curves, unit)))
    return found


def _cmc(run: Evaluated) -> torch.Tensor:
    return cmc(run.scores[FEATURE], min(CMC_LENGTH, len(run.images.gallery))).cpu()


def _section(runs: Sequence[Evaluated], alone: bool) -> Section:
    pairs = [by_camera_pair(run.ranked.distances, run.ranked.labels) for run in runs]
    histograms, cameras = [], []
    for run, of_run in zip(runs, pairs, strict=True):
        title = f"{run.name}: " if len(runs) > 1 else ""
        uri = charts.histogram_chart(distance_histograms(run.pairs))
        histograms.append(Chart(f"{title}distances of people", uri))
        for name, values in (("rank-1", of_run.rank1), ("mAP", of_run.mAP)):
            chart = charts.camera_chart(of_run, values)
            cameras.append(Chart(f"{title}{name} of each pair of cameras, %", chart))
    return Section(
        "" if alone else runs[0].name,
        histograms,
        cameras,
        tables.camera_table(runs, pairs),
        [tables.identity_table(runs), tables.query_table(runs)],
        list_queries(runs),
    )
