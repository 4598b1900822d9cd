"""An ablation from its list of systems to its table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rga_fast.reid.ablation.plan import Planned, plan
from rga_fast.reid.ablation.runs import check_folders, train_all
from rga_fast.reid.ablation.table import SystemRow, ablation_table, read_rows, write_tables
from rga_fast.reid.config import Config
from rga_fast.reid.console import console
from rga_fast.reid.data.datasets import require_evaluation
from rga_fast.reid.data.source import open_source
from rga_fast.reid.distributed import pick_device
from rga_fast.reid.training.memory import step_memory


def ablate(base: Config, systems: Sequence[str], seeds: Sequence[int], out: Path) -> bool:
    """Trains every system with every seed under one budget, and writes a table to `out`.

    The table (`ablation.md`, `.csv`, `.json`) has the mean and the standard deviation over the
    seeds, parameters, speed and memory, and the paper's numbers where it has the data set. It is
    rewritten after each run. The same call continues what was interrupted.

    Args:
        base, systems, seeds, out: see `plan.plan`.

    Returns:
        Whether every run succeeded. A failed one does not stop the others.

    Raises:
        ValueError, OSError: for systems, seeds, data or folders that cannot be used, before
            anything is trained.
    """
    runs = plan(base, systems, seeds, out)
    check_folders(runs)
    data = open_source(base.data, **base.reading)
    require_evaluation(data)
    title = f"{data.name}, {base.arch} at {base.height}x{base.width}, {base.epochs} epochs"
    memory = _step_bytes(runs, len(np.unique(data.train.labels)))
    out.mkdir(parents=True, exist_ok=True)

    def rows() -> list[SystemRow]:
        return read_rows(runs, data.name, memory)

    def update() -> None:
        write_tables(out, title, base, rows())

    console.print(f"{title}: {len(systems)} systems, {len(seeds)} seeds, in {out}")
    failed = train_all(runs, update)
    update()
    console.print(ablation_table(title, rows()))
    console.print(f"also in {out / 'ablation.md'}, .csv and .json")
    return not failed


def _step_bytes(runs: Sequence[Planned], num_classes: int) -> dict[str, int]:
    found: dict[str, int] = {}
    for run in runs:
        if run.system not in found:
            config = run.config
            images = config.identities_per_batch * config.images_per_identity // config.accumulate
            device = pick_device(config.device)
            found[run.system] = step_memory(config, num_classes, images, device).peak
    return found
