"""The data set of the main job, drawn once into the user's cache folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from rga_fast.reid.synth.dataset import VERSION, write_dataset

IDENTITIES, SEED = 240, 0


def cached_dataset(progress: Callable[[int, int], None] | None = None) -> Path:
    """The folder of the default synthetic data set; it is written if it is not there yet.

    It lies in `rga_fast` below `$XDG_CACHE_HOME`, or `~/.cache`.

    Raises:
        OSError: if it cannot be written.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "rga_fast" / f"synthetic-{VERSION}-{IDENTITIES}-{SEED}"
    if not folder.exists():
        write_dataset(folder, IDENTITIES, SEED, progress=progress)
    return folder
