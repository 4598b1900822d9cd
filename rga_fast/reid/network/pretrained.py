"""ImageNet weights from a file, by torchvision's parameter names."""

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from rga_fast.reid.network.reidnet import ReidNet


class PretrainedReport(NamedTuple):
    """The result of loading a file. `str()` of it is a summary to print."""

    path: Path
    loaded: list[str]
    """Keys of the file, loaded into the backbone."""
    not_loaded: list[str]
    """Keys of the model that keep their values: attention, neck, classifier."""
    unused: list[str]
    """Keys of the file that the model does not have: the ImageNet classifier."""

    def __str__(self) -> str:
        return (
            f"{self.path.name}: {len(self.loaded)} tensors loaded\n"
            f"  not in the file, left as initialised: {_modules(self.not_loaded)}\n"
            f"  in the file, not used: {_modules(self.unused)}"
        )


def load_pretrained(model: ReidNet, path: str | Path) -> PretrainedReport:
    """Load a ResNet's weights into the backbone of `model`, all of them or none.

    Args:
        model: keeps its attention, neck and classifier.
        path: a state dict with torchvision's names, in .safetensors or `torch.save`'s format (.pth,
            .pt). It may hold `fc.*` as well.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a state dict, or one of another network.
    """
    path = Path(path)
    state = _read(path)
    trunk = model.backbone.trunk
    own = {k: v for k, v in model.backbone.state_dict().items() if k.split(".")[0] in trunk}
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    extra = [k for k in state if k not in own and not k.startswith("fc.")]
    shapes = [
        f"{k} is {tuple(state[k].shape)}, expected {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    if missing or extra or shapes:
        raise ValueError(
            f"{path} does not hold the weights of this backbone: "
            + "; ".join(
                f"{what} ({len(keys)}): {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}"
                for what, keys in (
                    ("missing", missing),
                    ("unknown", extra),
                    ("of another shape", shapes),
                )
                if keys
            )
        )
    loaded = [key for key in own if key in state]
    model.backbone.load_state_dict({key: state[key] for key in loaded}, strict=False)
    not_loaded = [k for k in model.state_dict() if k.removeprefix("backbone.") not in own]
    return PretrainedReport(path, loaded, not_loaded, [k for k in state if k not in own])


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"no file with pretrained weights at {path}")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # many kinds, depending on the file
        raise ValueError(f"{path} is not a file of weights: {type(error).__name__}") from error
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise ValueError(
            f"{path} must hold a state dict (names and tensors), got {_describe(state)}"
        )
    return state


def _describe(value: object) -> str:
    if isinstance(value, dict):
        return f"a dict with the keys {', '.join(map(str, list(value)[:5]))}"
    return f"a {type(value).__name__}"


def _modules(keys: list[str]) -> str:
    """The top-level modules that the keys belong to."""
    names = [key.removeprefix("backbone.").split(".")[0] for key in keys]
    return ", ".join(dict.fromkeys(names)) or "nothing"
