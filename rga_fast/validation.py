"""Argument checks, once for all implementations."""

import torch
from torch import Tensor


def check_floating(name: str, argument: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: {argument} must be a tensor, got {type(tensor).__name__}")
    if not tensor.is_floating_point():
        raise ValueError(
            f"{name}: {argument} must be of a floating-point dtype, got {tensor.dtype}"
        )


def check_alike(name: str, argument: str, tensor: Tensor, like: str, other: Tensor) -> None:
    """Same device, and same dtype unless autocast is about to make it so."""
    if tensor.device != other.device:
        raise ValueError(
            f"{name}: {argument} must be on the device of {like}, {other.device}, "
            f"got {tensor.device}"
        )
    if tensor.dtype != other.dtype and not torch.is_autocast_enabled(tensor.device.type):
        raise ValueError(
            f"{name}: {argument} must have the dtype of {like}, {other.dtype}, got {tensor.dtype}"
        )


def check_map(x: Tensor, channels: int, size: tuple[int, int] | int) -> None:
    """A feature map for a module built for `channels` and `size`."""
    check_floating("RGA", "x", x)
    if x.dim() != 4:
        raise ValueError(f"RGA: x must be (B, C, H, W), got {tuple(x.shape)}")
    _, C, H, W = x.shape
    expected = f"(B, {channels}, {size[0]}, {size[1]})" if isinstance(size, tuple) else ""
    matches = (H, W) == size if isinstance(size, tuple) else H * W == size
    if channels != C or not matches:
        expected = expected or f"(B, {channels}, H, W) with H * W = {size}"
        raise ValueError(
            f"RGA: x must be {expected}, the size the module was built for, got {tuple(x.shape)}"
        )


def check_embeddings(name: str, theta: Tensor, phi: Tensor) -> None:
    check_floating(name, "theta", theta)
    check_floating(name, "phi", phi)
    if theta.dim() != 3:
        raise ValueError(f"{name}: theta must be (B, c, n), got {tuple(theta.shape)}")
    if phi.shape != theta.shape:
        raise ValueError(
            f"{name}: phi must have the shape of theta, (B, c, n) = {tuple(theta.shape)}, "
            f"got {tuple(phi.shape)}"
        )
    check_alike(name, "phi", phi, "theta", theta)


def check_relation_weight(name: str, weight: Tensor, theta: Tensor) -> None:
    check_floating(name, "weight", weight)
    n = theta.shape[-1]
    if weight.dim() != 2 or weight.shape[1] != 2 * n:
        raise ValueError(
            f"{name}: weight must be (m, 2n) = (m, {2 * n}), got {tuple(weight.shape)}"
        )
    check_alike(name, "weight", weight, "theta", theta)


def check_rows(name: str, rows: Tensor, n: int) -> None:
    if rows.dim() != 1 or rows.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"{name}: nodes must be a list or 1-d integer tensor of node indices, "
            f"got shape {tuple(rows.shape)}, {rows.dtype}"
        )
    if rows.numel() and not (0 <= int(rows.min()) and int(rows.max()) < n):
        raise ValueError(
            f"{name}: nodes must be in [0, n) = [0, {n}), "
            f"got values from {int(rows.min())} to {int(rows.max())}"
        )


def check_choice(name: str, argument: str, value: object, valid: tuple[str, ...]) -> None:
    if value not in valid:
        listed = ", ".join(repr(v) for v in valid)
        raise ValueError(f"{name}: {argument} must be one of {listed}, got {value!r}")


def check_positive(name: str, argument: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}: {argument} must be a positive integer, got {value!r}")
