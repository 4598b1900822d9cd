"""The weights that a run starts from."""

from __future__ import annotations

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
        console.print(str(load_init(model, config.init)))
