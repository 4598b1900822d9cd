"""The table of an ablation: mean and spread over the seeds of each system, beside the paper's."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from rga_fast.reid.ablation.plan import Planned
from rga_fast.reid.ablation.published import RESULTS
from rga_fast.reid.ablation.runs import is_finished
from rga_fast.reid.config import Config
from rga_fast.reid.files import write_file
from rga_fast.reid.network.attention import NONE
from rga_fast.reid.report.curves import read_curves

SCORES = ("rank1", "mAP")
FEATURES = ("before_neck", "after_neck")


class SystemRow(NamedTuple):
    """A system over its finished seeds. Scores are in percent, by `before_neck_mAP`, ...: mean and
    sample standard deviation (None for one seed). `gain_*` is the paired difference to the baseline
    over the seeds that both have. `published` is the paper's rank-1 and mAP, if there are any."""

    system: str
    seeds: tuple[int, ...]
    parameters: int
    images_per_s: float
    step_bytes: int
    scores: dict[str, tuple[float, float | None]]
    gain: tuple[float, float | None] | None
    published: tuple[float, float] | None


def read_rows(runs: Sequence[Planned], data: str, step_bytes: dict[str, int]) -> list[SystemRow]:
    """The systems of which at least one run is finished, in the order of `runs`.

    Args:
        data: name of the data set, such as `market1501`.
        step_bytes: peak memory of a training step of each system, in bytes.
    """
    finished: dict[str, dict[int, dict[str, Any]]] = {}
    for run in runs:
        if is_finished(run):
            finished.setdefault(run.system, {})[run.config.seed] = _read(run)
    baseline = finished.get(NONE, {})
    rows = []
    for system, by_seed in finished.items():
        names = [f"{feature}_{score}" for feature in FEATURES for score in SCORES]
        values = list(by_seed.values())
        both = [seed for seed in by_seed if seed in baseline and system != NONE]
        gains = [by_seed[s]["before_neck_mAP"] - baseline[s]["before_neck_mAP"] for s in both]
        published = RESULTS.get(data, {}).get(system)
        rows.append(
            SystemRow(
                system,
                tuple(by_seed),
                values[0]["parameters"],
                statistics.median(value["images_per_s"] for value in values),
                step_bytes[system],
                {name: _spread([value[name] for value in values]) for name in names},
                _spread(gains) if gains else None,
                None if published is None else (published.rank1, published.mAP),
            )
        )
    return rows


def ablation_table(title: str, rows: Sequence[SystemRow]) -> Table:
    """For the terminal."""
    table = Table(title=title, title_justify="left")
    header, lines = _cells(rows)
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 0 else "right")
    for line in lines:
        table.add_row(*line)
    return table


def write_tables(out: Path, title: str, base: Config, rows: Sequence[SystemRow]) -> None:
    """`ablation.md`, `ablation.csv` and `ablation.json` in `out`; the last has the budget, too."""
    header, lines = _cells(rows)
    ruled = [header, ["---", *["---:"] * (len(header) - 1)], *lines]
    body = "\n".join(f"| {' | '.join(line)} |" for line in ruled)
    write_file(out / "ablation.md", f"{title}\n\n{body}\n")
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *lines])
    write_file(out / "ablation.csv", text.getvalue())
    content = {
        "data": title,
        "budget": {name: value for name, value in vars(base).items() if name not in VARIED},
        "rows": [row._asdict() for row in rows],
    }
    write_file(out / "ablation.json", json.dumps(content, indent=2, allow_nan=False) + "\n")


VARIED = ("attention", "stages", "seed", "data", "cache_folder")  # and paths of this machine


def _read(run: Planned) -> dict[str, Any]:
    summary = json.loads((run.folder / "summary.json").read_text(encoding="utf-8"))
    found = {"parameters": summary["parameters"]}
    found["images_per_s"] = max(read_curves(run.folder)["images_per_s"].y)
    for feature in FEATURES:
        for score in SCORES:
            found[f"{feature}_{score}"] = 100 * summary["after"][feature][score]
    return found


def _spread(values: Sequence[float]) -> tuple[float, float | None]:
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def _cells(rows: Sequence[SystemRow]) -> tuple[list[str], list[list[str]]]:
    header = ["system", "seeds", "parameters, M", "images/s", "memory of a step, MB"]
    header += ["rank-1, before the neck", "mAP, before the neck", "mAP, after the neck"]
    header += ["mAP - baseline", "published rank-1 / mAP"]
    shown = ("before_neck_rank1", "before_neck_mAP", "after_neck_mAP")
    lines = [
        [
            row.system,
            str(len(row.seeds)),
            f"{row.parameters / 1e6:.2f}",
            f"{row.images_per_s:.0f}",
            f"{row.step_bytes / 1e6:.0f}",
            *(_text(row.scores[name]) for name in shown),
            "" if row.gain is None else _text(row.gain, "+"),
            "" if row.published is None else "{:.1f} / {:.1f}".format(*row.published),
        ]
        for row in rows
    ]
    return header, lines


def _text(value: tuple[float, float | None], sign: str = "") -> str:
    mean, deviation = value
    return f"{mean:{sign}.1f}" + ("" if deviation is None else f" \u00b1 {deviation:.1f}")
