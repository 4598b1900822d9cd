"""RGA after stages of other people's networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rga_fast.modules import RGA

NAME = "rga"  # of the attention, within its stage
Shape = tuple[int, int, int]  # channels, height, width


def insert_rga(model: nn.Module, sizes: Mapping[str, Shape], **options: Any) -> nn.Module:
    """Puts an `RGA` after stages of a convolutional network, in place.

        model = insert_rga(model, map_sizes(model, ["layer1", "layer2"], (256, 128)))

    It becomes the child `rga` of its stage, so the names of all other parameters stay as they are,
    and pretrained weights still load. A `Sequential` runs it as its last module; another module
    gets a forward hook, which `copy.deepcopy` and pickling keep.

    Args:
        model: any network.
        sizes: by the name of a stage (as `named_modules` has it), channels, height and width of the
            maps (B, C, H, W) that it returns: see `map_sizes`.
        options: of `RGA`, such as `variant` and `zero_init_gate`. The attention is created on the
            device and in the dtype of the model's parameters, unless they say otherwise.

    Returns:
        `model`.

    Raises:
        ValueError: for a stage that does not exist, that occurs in the network twice, or that has a
            child `rga` already. Nothing has changed then.
    """
    parameter = next(model.parameters(), None)
    if parameter is not None:
        options = {"device": parameter.device, "dtype": parameter.dtype, **options}
    inserted: dict[str, RGA] = {}
    for name, (channels, height, width) in sizes.items():
        _check_free(_find(model, name), name, NAME)
        inserted[name] = RGA(channels, (height, width), **options)
    for name, attention in inserted.items():
        attach(model, name, attention, NAME)
    return model


def attach(model: nn.Module, name: str, attention: nn.Module, child: str) -> None:
    """Puts a module after the stage `name` of a network, in place, as its child `child`.

    Raises:
        ValueError: as `insert_rga`.
    """
    stage = _find(model, name)
    _check_free(stage, name, child)
    stage.add_module(child, attention.train(stage.training))
    if type(stage).forward is not nn.Sequential.forward:
        stage.register_forward_hook(partial(_attend, child))


@torch.no_grad()
def map_sizes(
    model: nn.Module, stages: Sequence[str], image_size: tuple[int, int], channels: int = 3
) -> dict[str, Shape]:
    """Channels, height and width of the maps that stages of a network return.

    One image of zeros goes through `model`, in evaluation mode, which leaves it unchanged.

    Args:
        stages: names, as `named_modules` has them.
        image_size: (H, W) of the images, in pixels. channels: of the images.

    Raises:
        ValueError: for a stage that does not exist, does not run exactly once, or returns something
            other than one map (B, C, H, W).
    """
    outputs: dict[str, list[Any]] = {name: [] for name in stages}
    hooks = [
        _find(model, name).register_forward_hook(
            lambda module, args, output, name=name: outputs[name].append(output)
        )
        for name in stages
    ]
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        parameter = next(model.parameters(), torch.empty(0))
        model(parameter.new_zeros(1, channels, *image_size))
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
    sizes = {}
    for name, found in outputs.items():
        if len(found) != 1 or not isinstance(found[0], Tensor) or found[0].dim() != 4:
            shown = [tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in found]
            raise ValueError(f"map_sizes: {name} must return one map (B, C, H, W), got {shown}")
        _, C, H, W = found[0].shape
        sizes[name] = (C, H, W)
    return sizes


def _attend(child: str, stage: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    return getattr(stage, child)(output)


def _check_free(stage: nn.Module, name: str, child: str) -> None:
    if child in dict(stage.named_children()):
        raise ValueError(f"insert_rga: {name} has a child {child!r} already")


def _find(model: nn.Module, name: str) -> nn.Module:
    named = dict(model.named_modules())
    if not name or name not in named:
        children = ", ".join(child for child, _ in model.named_children())
        raise ValueError(
            f"insert_rga: the network has no stage {name!r}; at its top are {children}"
        )
    stage = named[name]
    places = [n for n, m in model.named_modules(remove_duplicate=False) if m is stage]
    if len(places) > 1:
        raise ValueError(f"insert_rga: {name} is one module at several places: {', '.join(places)}")
    return stage
