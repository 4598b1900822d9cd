"""The weights that a run starts from."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from rga_fast.reid.checkpoint import load_checkpoint, resized
from rga_fast.reid.config import Config
from rga_fast.reid.console import console
from rga_fast.reid.network.reidnet import ReidNet
from rga_fast.reid.network.weights import load_init, load_pretrained


def initialise(model: ReidNet, config: Config) -> None:
    """Loads the weights of `config`'s `pretrained` or `init`, if there are any; prints a summary.

    Raises:
        FileNotFoundError, ValueError: as `load_pretrained` and `load_init`.
    """
    if config.pretrained is not None:
        console.print(str(load_pretrained(model, config.pretrained)))
    if config.init is not None:
        console.print(str(load_init(model, config.init, _resizing(config.init, config.size))))


def _resizing(
    path: str, size: tuple[int, int]
) -> Callable[[dict[str, Tensor]], dict[str, Tensor]] | None:
    """Makes the weights of a run fit images of `size`. None for a run at that size, and for a file
    that does not say its own."""
    try:
        trained = load_checkpoint(path).config
    except ValueError:  # no checkpoint of this package
        return None
    if trained.size == size:
        return None
    console.print(
        f"{path}: trained at {trained.height}x{trained.width}; weights over positions are "
        f"resampled for {size[0]}x{size[1]}"
    )
    return lambda state: resized(state, trained, size)
