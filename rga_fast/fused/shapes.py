"""The operands of the operators in one table: what fake implementations return, and what the Triton
kernels check, are read from it."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rga_fast.fused.structure import Structure

# Sides of every tensor, by its name in rga_fast/fused/ops.py. "rows" are those of all layers.
SIDES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("V", "dout", "out", "dV"), ("B", "d", "n")),
    **dict.fromkeys(("E", "dE"), ("B", "r", "n")),
    "Z": ("B", "m", "n"),
    "PQ": ("B", "m", "q"),
    "psi": ("B", "p", "n"),
    **dict.fromkeys(("hidden", "dhidden"), ("B", "k", "n")),
    **dict.fromkeys(("logit", "dlogit", "dl"), ("B", "n")),
    "dnodes": ("B", "x", "n"),
    **dict.fromkeys(("weight_e", "dweight_e"), ("r", "d")),
    **dict.fromkeys(("weight_z", "dweight_z"), ("m", "2n")),
    **dict.fromkeys(("weight_h", "dweight_h"), ("k", "p+m")),
    **dict.fromkeys(("weight_l", "dweight_l"), ("1", "k")),
    **{f"norm_{stage}": ("4", rows) for stage, rows in zip("ezhl", "rmk1", strict=True)},
    **{
        f"{name}_{stage}": ("2", rows)
        for name in ("means", "sums", "stats")
        for stage, rows in zip("ezhl", "rmk1", strict=True)
    },
    "stats": ("2", "rows"),
    "sums": ("2", "rows"),
}
# Of the map's dtype; the others are of `compute_dtype`.
OF_THE_MAP = {"V", "dout", "out", "dV", "E", "dE", "Z", "dnodes"}


def compute_dtype(V: Tensor) -> torch.dtype:
    """The dtype of weights and statistics: float64 for a float64 map, else float32."""
    return torch.float64 if V.dtype == torch.float64 else torch.float32


class Saved(NamedTuple):
    """What the gradient of a branch needs beside the map and the weights."""

    E: Tensor
    PQ: Tensor
    psi: Tensor
    logit: Tensor
    norm_e: Tensor
    norm_z: Tensor
    norm_h: Tensor
    norm_l: Tensor


GRADIENTS = ("dweight_e", "dweight_z", "dweight_h", "dweight_l", "sums")


class View(NamedTuple):
    """What an operator knows of one branch: its tensors by name and the length of every side."""

    tensors: dict[str, Tensor]
    sides: dict[str, int]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.sides[side] for side in SIDES[name])


def views(arguments: dict[str, Any], branches: int = 1) -> Iterator[View]:
    """Each of the `branches` of an operator, from all of its arguments by name. The second of two
    sees the map transposed."""
    if "weights" not in arguments:
        yield _of_stage(arguments)
        return
    structure = Structure(*(arguments[field] for field in Structure._fields))
    V = arguments["V"]
    for index, nodes in enumerate((V, V.transpose(1, 2))[:branches]):
        weights = share(arguments["weights"], index, branches)
        tensors = {key: arguments[key] for key in Saved._fields if key in arguments}
        if "saved" in arguments:
            saved = share(arguments["saved"], index, branches)
            tensors |= Saved(*saved[: len(Saved._fields)])._asdict()
        if "dout" in arguments:
            dout = arguments["dout"]
            tensors["dout"] = dout.transpose(1, 2) if index else dout
        yield View({"V": nodes, **tensors}, _whole_sides(nodes, weights, structure))


def share(values: Sequence[Any], index: int, count: int) -> Sequence[Any]:
    """What belongs to branch `index` of `count`, of a list for all of them."""
    each = len(values) // count
    return values[index * each : (index + 1) * each]


def _whole_sides(V: Tensor, weights: Sequence[Tensor], structure: Structure) -> dict[str, int]:
    sizes = structure.sizes(weights, V.shape[1])
    sides = dict(zip("Bdn", V.shape, strict=True)) | sizes._asdict()
    return _completed(sides | {"rows": sum(len(weight) for weight in weights)})


def _of_stage(arguments: dict[str, Any]) -> View:
    """Of an operator of one stage: a side is bound by the first tensor that has it."""
    tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    sides: dict[str, int] = {}
    if "psi_rows" in arguments:
        V, E, psi_rows = (arguments[name] for name in ("V", "E", "psi_rows"))
        sides["p"] = 1 if psi_rows else 0
        sides["q"] = E.shape[1] - psi_rows if arguments["embeddings"] else V.shape[1]
    for name, tensor in tensors.items():
        for index, side in enumerate(SIDES[name][: tensor.dim()]):
            if side.isalpha():
                sides.setdefault(side, tensor.shape[index])
    return View(tensors, _completed(sides))


def _completed(sides: dict[str, int]) -> dict[str, int]:
    n, p, m = (sides.get(side, 0) for side in ("n", "p", "m"))
    return sides | {"1": 1, "2": 2, "4": 4, "2n": 2 * n, "p+m": p + m}


def fake(
    arguments: dict[str, Any], returns: Sequence[str], branches: int, low_products: bool
) -> Any:
    """Empty tensors in the shapes, dtypes and layouts of what an operator `returns`."""
    own = list(views(arguments, branches))
    results = [
        _fake_list(name, own, arguments, low_products)
        if name in ("saved", "gradients")
        else _fake(name, own[0], arguments, low_products)
        for name in returns
    ]
    return results[0] if len(results) == 1 else tuple(results)


def _fake_list(
    name: str, branches: Sequence[View], arguments: dict[str, Any], low_products: bool
) -> list[Tensor]:
    """What belongs to each branch, one after the other."""
    names = (*Saved._fields, "stats") if name == "saved" else GRADIENTS
    results = []
    for index, view in enumerate(branches):
        own = dict(arguments)
        if "need_dweight" in own:
            own["need_dweight"] = own["need_dweight"][index]
        results += [_fake(each, view, own, low_products) for each in names]
    return results


def _fake(name: str, view: View, arguments: dict[str, Any], low_products: bool) -> Tensor:
    like = next(iter(view.tensors.values()))
    if name in ("out", "dV"):
        V = view.tensors["V"]
        if name == "dV" and not arguments["need_dV"]:
            return V.new_empty(V.shape[0], 0, V.shape[2])
        return torch.empty_like(V)
    shape = view.shape(name) if name != "dnodes" else _dnodes(view, arguments)
    if name == "dweight_e" and not arguments["need_dweight"]:
        shape = (0, view.sides["d"])
    whole = "weights" in arguments
    low = name in OF_THE_MAP or (name == "PQ" and whole and low_products)
    return like.new_empty(shape, dtype=_map_dtype(view) if low else compute_dtype(like))


def _dnodes(view: View, arguments: dict[str, Any]) -> tuple[int, ...]:
    """The gradient of the nodes themselves, where these are what is related."""
    B, d, n, m = (view.sides[side] for side in "Bdnm")
    return B, d if m and not arguments["embeddings"] else 0, n


def _map_dtype(view: View) -> torch.dtype:
    return next(view.tensors[name].dtype for name in ("V", "Z") if name in view.tensors)
