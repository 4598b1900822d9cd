"""What prevents out-of-bounds access by the kernels; the public functions check more."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rga_fast.fused import ops, shapes
from rga_fast.fused.structure import Structure


class Operand(NamedTuple):
    """A tensor, and what it has to be."""

    name: str
    tensor: Tensor
    shape: tuple[int, ...]
    dtype: torch.dtype
    V: Tensor  # the nodes of its branch


def check(name: str, arguments: dict[str, Any]) -> None:
    """Raises a RuntimeError that says what was expected and what came."""
    if "weights" in arguments:
        _check_lists(name, arguments)
    operands = list(_operands(name, arguments))
    first = operands[0].tensor
    rows = sum(operand.shape[0] for operand in operands if operand.name.startswith("weight"))
    if rows * first.shape[-1] >= 2**31:  # of E, Z and the hidden layer, which may be results
        _refuse(name, f"it supports less than 2^31 values an image, got {rows} x {first.shape[-1]}")
    for label, tensor, shape, dtype, V in operands:
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


def _operands(name: str, arguments: dict[str, Any]) -> Iterator[Operand]:
    branches = ops.branches(name)
    whole = "weights" in arguments
    low = shapes.OF_THE_MAP | ({"PQ"} if whole else set())  # as `low_products` says
    for index, view in enumerate(shapes.views(arguments, branches)):
        V = view.tensors.get("V", next(iter(view.tensors.values())))
        of_the_map = next((view.tensors[x].dtype for x in ("V", "Z") if x in view.tensors), None)
        for label, tensor in view.tensors.items():
            dtype = of_the_map if label in low and of_the_map else torch.float32
            yield Operand(label, tensor, view.shape(label), dtype, V)
        if whole:
            yield from _layers(view, arguments, index, branches)


def _check_lists(name: str, arguments: dict[str, Any]) -> None:
    branches = ops.branches(name)
    structure = Structure(*(arguments[field] for field in Structure._fields))
    if "training_pair" in name and structure.relations and not structure.embeddings:
        _refuse(name, "it supports relations of embeddings, got embeddings = 0")
    each = {"weights": 1, "norms": 4, "eps": 1, "batch": 1}
    count = branches * structure.layers
    expected = {key: count * some for key, some in each.items() if key in arguments}
    if "saved" in arguments:
        expected |= {"saved": branches * len(shapes.Saved._fields), "need_dweight": branches}
    if wrong := {key: n for key, n in expected.items() if len(arguments[key]) != n}:
        got = ", ".join(f"{len(arguments[key])} {key}" for key in wrong)
        words = ", ".join(f"{n} {key}" for key, n in wrong.items())
        _refuse(name, f"{count} layers need {words}, got {got}")


def _layers(
    view: shapes.View, arguments: dict[str, Any], index: int, branches: int
) -> Iterator[Operand]:
    """The weights and normalisations of a whole branch."""
    V, sides = view.tensors["V"], view.sides
    embeddings, relations, appearance = (arguments[field] for field in Structure._fields)
    weights = shapes.share(arguments["weights"], index, branches)
    norms = shapes.share(arguments.get("norms", ()), index, branches)
    widths = [sides["d"]] * (embeddings + appearance) + [sides["2n"]] * relations
    for i, width in enumerate([*widths, sides["p+m"], sides["k"]]):
        last = i == len(weights) - 1
        rows = 1 if last else len(weights[0 if i < embeddings else i])
        yield Operand(f"weights[{i}]", weights[i], (rows, width), torch.float32, V)
        for j in range(4 * i, 4 * i + 4) if norms else ():
            yield Operand(f"norms[{j}]", norms[j], (rows,), torch.float32, V)


def _check_nodes(name: str, label: str, x: Tensor, V: Tensor) -> None:
    if not (x.is_contiguous() or x.transpose(1, 2).is_contiguous()):
        _refuse(name, f"{label} must be dense, by rows or by columns, got strides {x.stride()}")
    if x.is_contiguous() != V.is_contiguous():
        _refuse(name, f"{label} must have the strides of V, {V.stride()}, got {x.stride()}")


def _refuse(name: str, text: str) -> None:
    raise RuntimeError(f"rga_fast_triton::{name}: {text}")
