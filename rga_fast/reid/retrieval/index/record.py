"""Which network made an index: its record, and refusing any other."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rga_fast.reid.checkpoint import PREVIOUS, Checkpoint, save_checkpoint
from rga_fast.reid.network.reidnet import ReidNet
from rga_fast.reid.retrieval.index.store import Manifest
from rga_fast.reid.retrieval.model import ReidModel, load

NETWORK = "network"  # the folder of an index with its checkpoint


def network_record(model: ReidModel) -> dict[str, Any]:
    """The hash of the network (weights and architecture), a name to be read, its configuration."""
    config = model.config
    return {
        "hash": model.hash,
        "name": f"{config.arch} with {config.attention}, epoch {model.epoch}, {model.path}",
        "epoch": model.epoch,
        "config": dataclasses.asdict(config),
    }


def check_same_model(folder: Path, manifest: Manifest, model: ReidModel) -> None:
    """ValueError unless `model` gives the features of the index."""
    made_by = manifest.network
    if model.hash != made_by["hash"]:
        raise ValueError(
            f"{folder} was made by network {made_by['hash'][:12]} ({made_by['name']}), and its "
            f"features cannot be compared with those of network {model.hash[:12]} ({model.path})"
        )
    if (manifest.feature, manifest.flip) != (model.feature, model.flip):
        raise ValueError(
            f"{folder} holds the feature {manifest.feature} with flip={manifest.flip}, "
            f"got {model.feature} with flip={model.flip}"
        )


def open_network(folder: Path, manifest: Manifest, **options: Any) -> ReidModel:
    """The network stored in the index, with the feature that the index holds. The options are
    those of `load`."""
    path = folder / NETWORK
    model = load(path, feature=manifest.feature, flip=manifest.flip, **options)
    check_same_model(folder, manifest, model)
    return model


def save_network(folder: Path, model: ReidModel) -> None:
    """Stores the network in the index, so that it can be searched without the run."""
    network: ReidNet = model.network
    weights = {name: tensor.cpu() for name, tensor in network.state_dict().items()}
    checkpoint = Checkpoint(
        model.config, network.cls.out_features, model.epoch, 0, model=weights, optimizer={}
    )
    (folder / NETWORK).mkdir(exist_ok=True)
    save_checkpoint(folder / NETWORK, checkpoint)
    (folder / NETWORK / PREVIOUS).unlink(missing_ok=True)  # of an interrupted index
