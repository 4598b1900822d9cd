"""What a program must know about an exported network: stored in the file itself, as JSON."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor

import rga_fast
from rga_fast.reid.checkpoint import Trained
from rga_fast.reid.data.augment import IMAGENET_MEAN, IMAGENET_STD

KEY = "rga_fast"  # under which every format stores the facts
FORMAT = "rga_fast export 1"
INPUT, OUTPUTS = "pixels", ("before_neck", "after_neck")


def make_facts(trained: Trained, kind: str) -> dict[str, Any]:
    """The facts of a network, exported as `kind`, such as "onnx"."""
    network, config = trained.network, trained.config
    return {
        "format": FORMAT,
        "kind": kind,
        "network": {
            "arch": config.arch,
            "attention": config.attention,
            "stages": list(network.attention),
            "epoch": trained.epoch,
            "weights_sha256": hash_weights(network.state_dict()),
        },
        "input": {
            "name": INPUT,
            "dtype": "uint8",
            "shape": ["batch", *config.size, 3],
            **preprocessing(config.size, inside=True),
        },
        "outputs": [
            {"name": name, "dtype": "float32", "shape": ["batch", network.feature_dim]}
            for name in OUTPUTS
        ],
        "distance": "cosine",
        "versions": {"rga_fast": rga_fast.__version__, "torch": torch.__version__},
    }


def preprocessing(size: tuple[int, int], *, inside: bool = False) -> dict[str, Any]:
    """How an image becomes an input of `size` (height, width); `inside`: the network normalises."""
    normalise: Any = {"divide_by": 255, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    return {
        "colours": "RGB",
        "height": size[0],
        "width": size[1],
        "resize": "Pillow's bilinear filter, to height and width; the aspect is not kept",
        "normalise": "part of the network" if inside else normalise,
    }


def hash_weights(state: dict[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and values of a `state_dict`, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def to_json(facts: dict[str, Any]) -> str:
    return json.dumps(facts, indent=1)
