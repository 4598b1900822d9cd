"""A training step, and all the state that it changes."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from rga_fast.reid.checkpoint import Checkpoint, load_weights
from rga_fast.reid.config import Config
from rga_fast.reid.distributed import Ranks
from rga_fast.reid.network.reidnet import ReidNet
from rga_fast.reid.training.losses import reid_losses
from rga_fast.reid.training.schedule import make_optimizer, set_learning_rate
from rga_fast.reid.training.sync_bn import Parallel, synchronised

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": torch.float32}


class StepResult(NamedTuple):
    """Mean losses over the batch of all ranks, and the number of images classified correctly.
    `grad_norm` is that before clipping; None without clipping."""

    loss: float
    identity: float
    triplet: float
    correct: int
    grad_norm: float | None = None


class PendingResult(NamedTuple):
    """The result of a step that a GPU may not have reached yet."""

    values: Tensor  # on the CPU: the fields of `StepResult`, summed over the ranks except the norm
    world: int
    arrived: torch.cuda.Event | None  # recorded after the copy to `values`; None: no copy pending

    def read(self) -> StepResult:
        """Waits until the step is done."""
        if self.arrived is not None:
            self.arrived.synchronize()
        loss, identity, triplet, correct, *norm = self.values.tolist()
        means = (loss / self.world, identity / self.world, triplet / self.world)
        return StepResult(*means, round(correct), *norm)


class Training:
    """A network in training with its optimiser, gradient scaler and averaged weights.

    `model` is moved to `device`. It stays the plain network; `DistributedDataParallel` and
    `torch.compile` wrap it for the steps only. `start_epoch` must be called before the first step.

    Raises:
        ValueError: for options that `device` does not support.
    """

    def __init__(
        self, model: ReidNet, config: Config, device: torch.device, ranks: Ranks | None = None
    ) -> None:
        if config.cuda_graph and device.type != "cuda":
            raise ValueError(f"config: cuda_graph needs a CUDA device, got {device}")
        self.config, self.device, self.ranks = config, device, ranks or Ranks()
        if config.sync_bn and self.ranks.world > 1:
            model = cast(ReidNet, synchronised(model))
        self.model = model
        if next(model.parameters()).device != device:  # `to` fails on tensors without content
            model.to(device)
        if config.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = make_optimizer(model, config.learning_rate, config.weight_decay)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "fp16")
        self._average: _Average | None = None
        if config.ema is not None:
            self._average = _Average(model, config.ema)
        self._frozen: bool | None = None
        self._parallel: Parallel | None = None
        self._network: Any = None

    def load(self, saved: Checkpoint, source: str) -> None:
        """Restores the state in a checkpoint of the same configuration."""
        load_weights(self.model, saved.model, source)
        self.optimizer.load_state_dict(saved.optimizer)
        self.scaler.load_state_dict(saved.scaler)
        if self._average is not None and saved.ema is not None:
            load_weights(self._average.model, saved.ema, source)
            self._average.started = True

    def state(self) -> dict[str, Any]:
        """The fields of a `Checkpoint` that change with every step."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": None if self._average is None else self._average.model.state_dict(),
        }

    def evaluated(self) -> ReidNet:
        """The network to evaluate, with averaged weights if there are any. Every rank gets the
        batch statistics of rank 0: they differ between ranks unless they are synchronised."""
        network = self.model if self._average is None else self._average.model
        self.ranks.broadcast(network.buffers())
        return network

    def start_epoch(self, epoch: int) -> None:
        """Sets training mode, and freezes or unfreezes layers for epoch `epoch` (from 0)."""
        frozen = epoch < self.config.freeze_epochs
        self.model.train()
        if self.config.freeze_epochs:
            _set_frozen(self.model, frozen)
        if frozen != self._frozen:
            self._frozen = frozen
            self._wrap()

    def step(self, images: Tensor, labels: Tensor, rate: float) -> PendingResult:
        """One step of the optimiser at learning rate `rate` on this rank's share of a batch:
        (B, 3, H, W), (B,). Does not wait for a GPU, except in torch's `SyncBatchNorm`."""
        set_learning_rate(self.optimizer, rate)
        means = self.forward_backward(images, labels)
        norm = self.update()
        values = self.ranks.sum(means)
        if norm is not None:
            values = torch.cat([values, norm[None]])
        asynchronous = self.device.type == "cuda"  # others have no event to wait for the copy
        values = values.to("cpu", non_blocking=asynchronous)  # from a GPU into pinned memory
        arrived = None
        if asynchronous:
            arrived = torch.cuda.current_stream(self.device).record_event()
        return PendingResult(values, self.ranks.world, arrived)

    def forward_backward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Computes gradients of the mean loss, slice by slice. Returns (4,): mean loss, identity
        and triplet loss, number of images classified correctly."""
        self.optimizer.zero_grad(set_to_none=True)
        parts = self.config.accumulate
        means = []
        for part, (x, y) in enumerate(
            zip(images.chunk(parts), labels.chunk(parts), strict=True), start=1
        ):
            with self._exchange(part == parts):
                output = self._forward(x)
                losses = reid_losses(
                    output.before_neck,
                    output.logits,
                    y,
                    margin=self.config.margin,
                    label_smoothing=self.config.label_smoothing,
                    gather=self.ranks.all_gather if self.config.mine_across_ranks else None,
                )
                self.scaler.scale(losses.total / parts).backward()
            correct = (output.logits.argmax(dim=1) == y).sum() * parts
            means.append(torch.stack([*losses, correct]).detach())
        return torch.stack(means).mean(dim=0)

    def update(self) -> Tensor | None:
        """Clips the gradient, steps, averages. Returns the norm before clipping; None without."""
        norm = None
        if self.config.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self._average is not None:
            self._average.update(self.model)
        return norm

    def _forward(self, images: Tensor) -> Any:
        if self.config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        if self.config.cuda_graph:
            torch.compiler.cudagraph_mark_step_begin()
        amp = self.config.amp
        with torch.autocast(self.device.type, AUTOCAST[amp], enabled=amp != "off"):
            return self._network(images)

    def _exchange(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients are exchanged with the last slice of a batch."""
        return nullcontext() if last or self._parallel is None else self._parallel.no_sync()

    def _wrap(self) -> None:
        self._network = self.model
        self._parallel = None  # releases the hooks on the parameters
        if self.ranks.world > 1:
            self._parallel = Parallel(self.model, gradient_as_bucket_view=True)
            self._network = self._parallel
        if self.config.compile or self.config.cuda_graph:
            mode = "reduce-overhead" if self.config.cuda_graph else None
            self._network = torch.compile(self._network, dynamic=False, mode=mode)


class _Average:
    """The exponential average of a model's weights and statistics since the first step.

    Like `torch.optim.swa_utils.AveragedModel`, which waits for a GPU at every step (its counter).
    """

    def __init__(self, model: ReidNet, decay: float) -> None:
        self.model = copy.deepcopy(model)
        self.decay = decay
        self.started = False

    @torch.no_grad()
    def update(self, model: ReidNet) -> None:
        own, new = self.model.state_dict(), model.state_dict()
        if not self.started:
            torch._foreach_copy_(list(own.values()), list(new.values()))
            self.started = True
            return
        averaged = [name for name, value in own.items() if value.is_floating_point()]
        torch._foreach_lerp_(
            [own[name] for name in averaged], [new[name] for name in averaged], 1 - self.decay
        )


def _set_frozen(model: ReidNet, frozen: bool) -> None:
    """Freezes weights and statistics of the pretrained layers, or releases them."""
    for module in model.backbone.trunk.values():
        module.requires_grad_(not frozen)
        if frozen:
            module.eval()
