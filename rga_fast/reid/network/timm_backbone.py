"""Networks of timm as backbones, with a place for attention after their last four stages."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rga_fast.inserting import attach, map_sizes

PREFIX = "timm:"
CHILD = "attention"  # the attention's name within its stage


class TimmBackbone(nn.Module):
    """A convolutional network of timm without its head, randomly initialised.

    (B, 3, *size) -> (B, channels, H', W'). Its parameters have timm's names after `body.`.

    Args:
        name: as `timm.list_models` has it.
        size: (H, W) of the images, in pixels.
        stages: those that attention follows: 1 to 4, the last four of timm's `feature_info`.
        attention: makes the module after a stage from channels and size of the maps there.

    Raises:
        ImportError: without timm.
        ValueError: for a network that does not exist, or that has no such stages.
    """

    def __init__(
        self,
        name: str,
        size: tuple[int, int],
        stages: tuple[int, ...],
        attention: Callable[[int, tuple[int, int]], nn.Module],
    ) -> None:
        super().__init__()
        timm = _timm()
        if name not in timm.list_models():
            nearest = difflib.get_close_matches(name, timm.list_models(), n=3)
            raise ValueError(f"arch: timm has no {name!r}; near it: {', '.join(nearest)}")
        self.body = timm.create_model(name, num_classes=0, global_pool="")
        found = [info["module"] for info in getattr(self.body, "feature_info", [])][-4:]
        if not set(stages) <= set(range(1, len(found) + 1)) or len(set(stages)) != len(stages):
            raise ValueError(
                f"arch: timm's {name} has {len(found)} stages, got attention after {stages}"
            )
        self.stages = tuple(sorted(stages))
        self._names = [found[stage - 1] for stage in self.stages]
        sizes = map_sizes(self.body, self._names, size)
        for place, (channels, height, width) in sizes.items():
            attach(self.body, place, attention(channels, (height, width)), CHILD)
        with torch.no_grad():
            self.body.eval()
            output = self.body.forward_features(torch.zeros(1, 3, *size))
            self.body.train()
        if output.dim() != 4:
            raise ValueError(f"arch: timm's {name} is not convolutional: {tuple(output.shape)}")
        self.channels = output.shape[1]

    @property
    def attention(self) -> dict[int, nn.Module]:
        """The attention after each of `stages`."""
        return {
            stage: getattr(self.body.get_submodule(name), CHILD)
            for stage, name in zip(self.stages, self._names, strict=True)
        }

    @property
    def trunk(self) -> dict[str, nn.Module]:
        """The network of timm: the largest modules that hold no attention, by name."""
        return dict(_without(self, "", set(self.attention.values())))

    def forward(self, x: Tensor) -> Tensor:
        return self.body.forward_features(x)


def _without(module: nn.Module, prefix: str, attention: set[nn.Module]) -> Any:
    for name, child in module.named_children():
        if child in attention:
            continue
        if attention.isdisjoint(child.modules()):
            yield f"{prefix}{name}", child
        else:
            yield from _without(child, f"{prefix}{name}.", attention)


def _timm() -> Any:
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision of another torch
        raise ImportError(
            f'timm cannot be imported: pip install "rga-fast[timm]" ({error})'
        ) from error
    return timm
