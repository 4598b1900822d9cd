"""The default synthetic data set, drawn once into the user's cache folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rga_fast.reid.files import READ_ONLY, user_cache
from rga_fast.reid.synth.dataset import VERSION, write_dataset

IDENTITIES, SEED = 240, 0


def cached_folder() -> Path:
    """Where the default synthetic data set is stored: in `user_cache()`."""
    return user_cache() / f"synthetic-{VERSION}-{IDENTITIES}-{SEED}"


def cached_dataset(progress: Callable[[int, int], None] | None = None) -> Path:
    """The folder of the default synthetic data set; written first if it is missing.

    Raises:
        OSError: if it cannot be written.
    """
    folder = cached_folder()
    if not folder.exists():
        try:
            write_dataset(folder, IDENTITIES, SEED, progress=progress)
        except OSError as error:
            if folder.exists():  # another run was faster, with the same files
                return folder
            if error.errno not in READ_ONLY:
                raise
            way_out = "the variable XDG_CACHE_HOME names another place, --data another data set"
            raise OSError(error.errno, f"{error.strerror}; {way_out}", str(folder)) from error
    return folder
