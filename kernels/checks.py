"""What keeps the kernels inside the memory of their arguments; the public functions check more."""

from collections.abc import Iterator, Sequence, Set
from typing import Any

import torch
from torch import Tensor

# Sides of every tensor, by its name in rga_fast/fused/ops.py; a letter is bound where it is seen
# first.
SIDES = {
    "V": ("B", "d", "n"),
    "dout": ("B", "d", "n"),
    "E": ("B", "r", "n"),
    "dE": ("B", "r", "n"),
    "Z": ("B", "m", "n"),
    "PQ": ("B", "m", "q"),
    "psi": ("B", "p", "n"),
    **dict.fromkeys(("hidden", "dhidden"), ("B", "k", "n")),
    **dict.fromkeys(("logit", "dlogit", "dl"), ("B", "n")),
    "dnodes": ("B", "x", "n"),
    "weight_e": ("r", "d"),
    "weight_z": ("m", "2n"),
    "weight_h": ("k", "p+m"),
    "weight_l": ("1", "k"),
    **{f"norm_{cut}": ("4", rows) for cut, rows in zip("ezhl", "rmk1", strict=True)},
    **{f"means_{cut}": ("2", rows) for cut, rows in zip("ezhl", "rmk1", strict=True)},
}
SAVED = ("E", "PQ", "psi", "logit", "norm_e", "norm_z", "norm_h", "norm_l")  # for the gradient
OF_THE_MAP = {"V", "dout", "E", "dE", "Z", "dnodes"}  # the others are float32


def check(name: str, arguments: dict[str, Any]) -> None:
    """Raises a RuntimeError that says what was expected and what came."""
    whole = "weights" in arguments
    tensors = list(_whole(name, arguments) if whole else _named(arguments, {}))
    first = tensors[0][1]
    rows = sum(shape[0] for label, _, shape, _ in tensors if label.startswith("weight"))
    if rows * first.shape[-1] >= 2**31:  # of E, Z and the hidden layer, which may be results
        _refuse(name, f"it supports less than 2^31 values an image, got {rows} x {first.shape[-1]}")
    V = arguments.get("V", first)
    for label, tensor, shape, dtype in tensors:
        V = tensor if label == "V" else V  # each branch has its own view
        if tuple(tensor.shape) != shape:
            _refuse(name, f"{label} must be {shape}, got {tuple(tensor.shape)}")
        if tensor.dtype != dtype:
            _refuse(name, f"{label} has the wrong dtype: it must be {dtype}, got {tensor.dtype}")
        if tensor.device != first.device:
            _refuse(name, f"{label} is on {tensor.device}, the first argument on {first.device}")
        if label in ("V", "dout"):
            _check_nodes(name, label, tensor, V)
        elif not tensor.is_contiguous():
            _refuse(name, f"{label} must be contiguous")


def _named(
    arguments: dict[str, Any], sides: dict[str, int], of_the_map: Set[str] = OF_THE_MAP
) -> Iterator[tuple[str, Tensor, tuple, torch.dtype]]:
    """`sides` are those known beforehand."""
    sides |= {"1": 1, "2": 2, "4": 4}
    if "psi_rows" in arguments:
        sides["p"] = 1 if arguments["psi_rows"] else 0
        V, E = arguments["V"], arguments["E"]
        sides["q"] = E.shape[1] - arguments["psi_rows"] if arguments["embeddings"] else V.shape[1]
    low = next((arguments[x].dtype for x in ("V", "Z") if x in arguments), torch.float32)
    for label, tensor in arguments.items():
        if isinstance(tensor, Tensor):
            for index, side in enumerate(SIDES[label][: tensor.dim()]):
                if side.isalpha():
                    sides.setdefault(side, tensor.shape[index])
            sides["2n"], sides["p+m"] = 2 * sides.get("n", 0), sides.get("p", 0) + sides.get("m", 0)
            shape = tuple(sides[side] for side in SIDES[label])
            yield label, tensor, shape, low if label in of_the_map else torch.float32


def _whole(
    name: str, arguments: dict[str, Any]
) -> Iterator[tuple[str, Tensor, tuple, torch.dtype]]:
    """The arguments of an operator for a whole branch, or for two."""
    V, branches = arguments["V"], 1 + ("pair" in name)
    kind = embeddings, relations, appearance = [
        arguments[key] for key in ("embeddings", "relations", "appearance")
    ]
    count = embeddings + relations + appearance + 2
    _check_lists(name, arguments, count, branches)
    if "training_pair" in name and relations and not embeddings:
        _refuse(name, "it supports relations of embeddings, got embeddings = 0")
    for branch, view in enumerate((V, V.transpose(1, 2))[:branches]):
        own = {
            key: arguments[key][branch * each : (branch + 1) * each]
            for key, each in (("weights", count), ("norms", 4 * count), ("saved", len(SAVED)))
            if key in arguments
        }
        yield from _layers(view, own["weights"], own.get("norms", ()), kind)
        named = dict(zip(SAVED, own.get("saved", ()), strict="saved" in own))
        named |= {key: arguments[key] for key in SAVED if key in arguments}
        if "dout" in arguments:
            named["dout"] = arguments["dout"] if branch == 0 else arguments["dout"].transpose(1, 2)
        if named:
            sides = _sides(view, own["weights"], kind)
            yield from _named({"V": view, **named}, sides, OF_THE_MAP | {"PQ"})


def _check_lists(name: str, arguments: dict[str, Any], count: int, branches: int) -> None:
    each = {"weights": 1, "norms": 4, "eps": 1, "batch": 1}
    expected = {key: branches * count * some for key, some in each.items() if key in arguments}
    if "saved" in arguments:
        expected |= {"saved": branches * len(SAVED), "need_dweight": branches}
    if wrong := {key: n for key, n in expected.items() if len(arguments[key]) != n}:
        got = ", ".join(f"{len(arguments[key])} {key}" for key in wrong)
        words = ", ".join(f"{n} {key}" for key, n in wrong.items())
        _refuse(name, f"{branches * count} layers need {words}, got {got}")


def _sides(V: Tensor, weights: Sequence[Tensor], kind: Sequence[Any]) -> dict[str, int]:
    embeddings, relations, appearance = kind
    rows = [len(weight) for weight in weights]
    return {
        "r": sum(rows[: embeddings + appearance]),
        "m": rows[-3] if relations else 0,
        "q": sum(rows[:embeddings]) if embeddings else V.shape[1],
        "k": rows[-2],
        "p": int(appearance),
    }


def _layers(
    V: Tensor, weights: Sequence[Tensor], norms: Sequence[Tensor], kind: Sequence[Any]
) -> Iterator[tuple[str, Tensor, tuple, torch.dtype]]:
    """`V` and the layers of a branch."""
    embeddings, relations, appearance = kind
    d, n = V.shape[1:]
    m = _sides(V, weights, kind)["m"]
    widths = [d] * (embeddings + appearance) + [2 * n] * relations
    yield "V", V, tuple(V.shape), V.dtype
    for i, width in enumerate([*widths, appearance + m, len(weights[-2])]):
        last = i == len(weights) - 1
        rows = 1 if last else len(weights[0 if i < embeddings else i])
        yield f"weights[{i}]", weights[i], (rows, width), torch.float32
        for j in range(4 * i, 4 * i + 4) if norms else ():
            yield f"norms[{j}]", norms[j], (rows,), torch.float32


def _check_nodes(name: str, label: str, x: Tensor, V: Tensor) -> None:
    if not (x.is_contiguous() or x.transpose(1, 2).is_contiguous()):
        _refuse(name, f"{label} must be dense, by rows or by columns, got strides {x.stride()}")
    if x.is_contiguous() != V.is_contiguous():
        _refuse(name, f"{label} must have the strides of V, {V.stride()}, got {x.stride()}")


def _refuse(name: str, text: str) -> None:
    raise RuntimeError(f"rga_fast_triton::{name}: {text}")
