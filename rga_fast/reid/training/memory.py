"""An estimate of the memory of a training step, without allocating it."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rga_fast.reid.checkpoint import make_network
from rga_fast.reid.config import Config
from rga_fast.reid.training.step import Training


class StepMemory(NamedTuple):
    """Bytes. `weights` includes buffers and averaged weights, `optimizer` is Adam's moments,
    `activations` everything else at the `peak`: maps, their gradients, the batch."""

    peak: int
    weights: int
    gradients: int
    optimizer: int

    @property
    def activations(self) -> int:
        return self.peak - self.weights - self.gradients - self.optimizer


def step_memory(config: Config, num_classes: int, images: int, device: torch.device) -> StepMemory:
    """The peak memory of all tensors in a step, with `images` in the batch of a rank.

    Two steps run on fake tensors, and the lifetime of every storage in the second is counted. Not
    included: scratch memory inside operators, fragmentation of the allocator, the program itself
    (on a GPU its context), communication buffers, and the savings of `torch.compile`.
    """
    copies = 1 if config.ema is None else 2
    config = config.replace(compile=False, cuda_graph=False, channels_last=False, ema=None)
    if config.amp == "fp16":
        config = config.replace(amp="bf16")  # the same width, without a scaler
    live = _LiveBytes()
    with FakeTensorMode(), live, device:
        model = make_network(config, num_classes)
        training = Training(model, config, device)
        training.start_epoch(config.freeze_epochs)  # all layers train
        pixels = torch.empty(images, 3, *config.size, device=device)
        labels = torch.zeros(images, dtype=torch.int64, device=device)
        for _ in range(2):  # the first creates Adam's moments
            live.peak = live.now
            training.forward_backward(pixels, labels)
            training.update()
    weights = _bytes([*model.parameters(), *model.buffers()])
    gradients = _bytes(p.grad for p in model.parameters() if p.grad is not None)
    moments = _bytes(t for state in training.optimizer.state.values() for t in state.values())
    return StepMemory(live.peak + (copies - 1) * weights, copies * weights, gradients, moments)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operators return while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, storage.nbytes())

    def _forget(self, nbytes: int) -> None:
        self.now -= nbytes
