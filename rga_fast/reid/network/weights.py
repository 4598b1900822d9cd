"""Weights from files of this and other projects, into a network of ours."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from rga_fast.reid.network.reidnet import ReidNet
from rga_fast.reid.network.timm_backbone import TimmBackbone
from rga_fast.reid.network.weight_files import read_weights
from rga_fast.resizing import resize_relations

MOST_LISTED = 8  # names in a line of the summary

# The children of a ResNet that was rebuilt as nn.Sequential(*list(resnet.children())).
_NUMBERED = {"0": "conv1", "1": "bn1", **{str(4 + n): f"layer{1 + n}" for n in range(4)}}
_CLASSIFIER = "cls"


class WeightsReport(NamedTuple):
    """The result of loading a file. `str()` of it is a summary of a few lines."""

    path: Path
    inside: str
    """The entries of the file that the weights were in, such as "state_dict"."""
    prefix: str
    """What was taken off the names of the backbone's tensors, such as "module.encoder_q."."""
    loaded: list[str]
    """Keys of the model."""
    reshaped: list[str]
    """Those of them whose tensor had other dimensions of size 1, such as (m, n) for (m, n, 1, 1)"""
    missing: list[str]
    """Keys of the model that keep their values, since the file does not have them."""
    other_shape: list[str]
    """Keys of the model that keep their values, as do all of the same module, since a tensor of it
    has another shape in the file."""
    left_out: list[str]
    """Keys of the model that keep their values whatever the file has: the classifier; for
    `load_pretrained` also attention and neck."""
    unexpected: list[str]
    """Keys of the file that were not used."""
    resampled: tuple[int, int] | None = None
    """The size (height, width) of the images that the network in the file was trained on, if its
    relations were resampled from it."""

    def __str__(self) -> str:
        found = [f"in {self.inside}"] if self.inside else []
        found += [f"prefix {self.prefix!r} taken off"] if self.prefix else []
        lines = [f"{self.path.name}: {len(self.loaded)} tensors loaded"]
        lines[0] += f" ({', '.join(found)})" if found else ""
        lines[0] += f", {len(self.reshaped)} of them reshaped" if self.reshaped else ""
        if self.resampled is not None:
            lines += ["  trained at {}x{}, relations resampled".format(*self.resampled)]
        kept = [
            f"{_modules(keys)} ({reason})"
            for keys, reason in (
                (self.missing, "not in the file"),
                (self.other_shape, "of another shape there"),
                (self.left_out, "not taken over"),
            )
            if keys
        ]
        lines += [f"  left as initialised: {', '.join(kept)}"] if kept else []
        if self.unexpected:
            used = [key.removeprefix(self.prefix) for key in self.unexpected]
            lines.append(f"  in the file, not used: {_modules(used)}")
        return "\n".join(lines)


def load_pretrained(model: ReidNet, path: str | Path) -> WeightsReport:
    """Loads weights into the backbone of `model`, all of them or none.

    The names are those of torchvision and timm, under any prefix ("module.", "backbone.",
    "encoder_q.") or numbered by an `nn.Sequential`; of several networks in a file the first is
    taken. See `read_weights` for the files.

    Args:
        model: keeps its attention, neck and classifier.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no weights, or those of another network.
    """
    return _load(model, Path(path), whole=False)


def load_init(model: ReidNet, path: str | Path) -> WeightsReport:
    """Loads a trained network into `model`, to train it on other people.

    As `load_pretrained`, and also the attention after each stage and the neck, each if the file has
    all of it in the same shapes. The classifier keeps its values: its rows are people. Weights of
    RGA in a checkpoint of this package that was trained on images of another size are resampled
    (`resize_relations`).
    """
    return _load(model, Path(path), whole=True)


def _load(model: ReidNet, path: Path, *, whole: bool) -> WeightsReport:
    file = read_weights(path)
    root = "backbone.body." if isinstance(model.backbone, TimmBackbone) else "backbone."
    own = model.state_dict()
    layers = tuple(f"backbone.{name}." for name in model.backbone.trunk)
    backbone = [key for key in own if key.startswith(layers)]
    prefix, numbered = _prefix(file.state, [key.removeprefix(root) for key in backbone])
    state, resampled = file.state, None
    if whole and file.size is not None and file.size != model.size:
        state, resampled = resize_relations(state, file.size, model.size, **file.ratios), file.size
    found = _by_our_names(state, prefix, root, numbered)
    _require_backbone(path, own, found, backbone, root)
    modules: dict[str, list[str]] = {}
    for key in own:
        if key not in backbone:
            modules.setdefault(_module(key), []).append(key)
    taken, missing, other_shape = _present(backbone, found), list[str](), list[str]()
    classifier, left_out = modules.pop(_CLASSIFIER), list[str]()
    for keys in modules.values():
        if any(_needed(key) and key not in found for key in keys):
            missing += keys
        elif not whole:
            left_out += keys
        elif any(key in found and not _fits(found[key][1], own[key]) for key in keys):
            other_shape += keys
        else:
            taken += _present(keys, found)
    values = {key: found[key][1].reshape(own[key].shape) for key in taken}
    model.load_state_dict(values, strict=False)
    used = {found[key][0] for key in taken}
    return WeightsReport(
        path,
        file.inside,
        prefix,
        taken,
        [key for key in taken if file.state[found[key][0]].shape != own[key].shape],
        missing,
        other_shape,
        left_out + classifier,
        [key for key in state if key not in used],
        resampled,
    )


def _by_our_names(
    state: dict[str, Tensor], prefix: str, root: str, numbered: bool
) -> dict[str, tuple[str, Tensor]]:
    """The tensors of a file by the names that a `ReidNet` has for them: (name in the file, tensor).
    The names of its backbone have the `prefix`, ours have the `root`."""
    # What neck and classifier have, beside the backbone.
    outer = prefix[: prefix[:-1].rfind(".") + 1]
    if prefix.endswith(root):
        outer = prefix.removesuffix(root)
    found = {}
    for key, value in state.items():
        if key.startswith(prefix):
            name = key[len(prefix) :]
            first, dot, rest = name.partition(".")
            if numbered and first in _NUMBERED:
                name = _NUMBERED[first] + dot + rest
            found[root + name] = key, value
        if key.startswith(outer):
            found.setdefault(key[len(outer) :], (key, value))
    return found


def _prefix(state: dict[str, Tensor], names: list[str]) -> tuple[str, bool]:
    """What precedes the `names` of a backbone's tensors in a file, and whether its layers are
    numbered: where most of them are, the first of several."""
    numbers = {name: number for number, name in _NUMBERED.items()}
    best, most = ("", False), 0
    for numbered in (False, True):
        wanted = names
        if numbered:
            parts = (name.partition(".") for name in names)
            wanted = [numbers.get(first, first) + dot + rest for first, dot, rest in parts]
        for key in state:
            prefix = key.removesuffix(wanted[0])
            if prefix == key or (prefix and not prefix.endswith(".")):
                continue
            count = sum(prefix + name in state for name in wanted)
            if count > most:
                best, most = (prefix, numbered), count
    return best


def _require_backbone(
    path: Path,
    own: dict[str, Tensor],
    found: dict[str, tuple[str, Tensor]],
    backbone: list[str],
    root: str,
) -> None:
    """ValueError unless the file has this ResNet, and no layer more."""
    trunk = tuple({f"{root}{_module(key)}." for key in backbone})
    missing = [key for key in backbone if _needed(key) and key not in found]
    layers = [key for key in found if key.startswith(trunk)]
    unknown = [found[key][0] for key in layers if key not in own]
    if not layers:
        unknown = [key for key, _ in found.values() if not key.startswith("fc.")]
    shapes = [
        f"{key} is {tuple(found[key][1].shape)}, expected {tuple(own[key].shape)}"
        for key in backbone
        if key in found and not _fits(found[key][1], own[key])
    ]
    problems = [
        f"{what} ({len(keys)}): {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}"
        for what, keys in (
            ("missing", [key.removeprefix("backbone.") for key in missing]),
            ("unknown", list(dict.fromkeys(unknown))),
            ("of another shape", [text.removeprefix("backbone.") for text in shapes]),
        )
        if keys
    ]
    if problems:
        raise ValueError(
            f"{path} does not hold the weights of this backbone: {'; '.join(problems)}"
        )


def _needed(key: str) -> bool:
    """Files from before torch 0.4.1 do not have the counters of the batch normalisations."""
    return not key.endswith("num_batches_tracked")


def _present(keys: Iterable[str], found: dict[str, tuple[str, Tensor]]) -> list[str]:
    return [key for key in keys if key in found]


def _fits(value: Tensor, own: Tensor) -> bool:
    """Whether the shapes are equal but for dimensions of size 1 at their end."""
    a, b = list(value.shape), list(own.shape)
    shorter = min(len(a), len(b))
    return a[:shorter] == b[:shorter] and set(a[shorter:] + b[shorter:]) <= {1}


def _module(key: str) -> str:
    return _relative(key).split(".")[0]


def _relative(key: str) -> str:
    return key.removeprefix("backbone.").removeprefix("body.")


def _modules(keys: list[str]) -> str:
    """The modules that the keys belong to: names that wrap others with what is in them."""
    names = []
    for key in keys:
        first, _, rest = _relative(key).partition(".")
        second = rest.split(".")[0]
        names.append(f"{first}.{second}" if first in ("module", "model") and second else first)
    names = list(dict.fromkeys(names))
    return ", ".join(names[:MOST_LISTED]) + (", ..." if len(names) > MOST_LISTED else "")
