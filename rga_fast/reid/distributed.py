"""Ranks: processes that train one network together, and their communication."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from rga_fast.reid.console import console

# For a rank that hangs. One that dies is noticed at once, by its closed connections and by
# torchrun. A shorter limit would kill healthy runs: the others wait while rank 0 draws the
# synthetic data set, writes a cache or a checkpoint or ranks a large gallery, and while one of them
# compiles its first step.
TIMEOUT = timedelta(minutes=10)

T = TypeVar("T")


class Ranks(NamedTuple):
    """This process, one of `world`; a single process by default, which sends nothing.

    Every rank must call the same methods in the same order.
    """

    rank: int = 0
    world: int = 1

    @property
    def main(self) -> bool:
        """Whether this is rank 0, which writes and prints."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on any rank."""
        return bool(self.sum(torch.tensor([int(flag)])).item()) if self.world > 1 else flag

    def wait(self) -> None:
        """A barrier: returns when every rank has called it."""
        self.sum(torch.zeros(1))

    def all_gather(self, values: Tensor) -> Tensor:
        """(B, ...) of each rank -> (world * B, ...), the same on all ranks, differentiable.

        The gradient is correct if every rank computes the same loss of the result and gradients are
        averaged over the ranks, as `DistributedDataParallel` does.
        """
        return values if self.world == 1 else _AllGather.apply(values, self)

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Overwrites `tensors` with those of rank 0."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def from_main(self, make: Callable[[], T]) -> T:
        """Calls `make` on rank 0 alone; every rank returns its result."""
        shared: list[Any] = [make() if self.main else None]
        if self.world > 1:
            dist.broadcast_object_list(shared, device=torch.device("cpu"))
        return shared[0]

    def gather(self, value: T) -> list[T]:
        """The `value` of every rank, in the order of the ranks; the same on all of them."""
        values: list[Any] = [[value if rank == self.rank else None] for rank in range(self.world)]
        if self.world > 1:
            for rank, shared in enumerate(values):
                dist.broadcast_object_list(shared, rank, device=torch.device("cpu"))
        return [shared[0] for shared in values]

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Rank 0 runs the body before the others do, so that they find the files that it wrote."""
        if not self.main:
            self.wait()
        yield
        if self.main:
            self.wait()

    def check_same(self, what: str, value: object) -> None:
        """ValueError unless `str(value)` is the same on every rank."""
        own = str(value)
        main = self.from_main(lambda: own)
        if self.any(own != main):
            raise ValueError(
                f"every rank must have the same {what}; rank {self.rank} has {own}, rank 0 {main}"
            )


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        every = [torch.empty_like(values) for _ in range(ranks.world)]
        dist.all_gather(every, values.contiguous())
        return torch.cat(every)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # All ranks hold this gradient, so their sum needs no communication.
        own = gradient.chunk(ctx.ranks.world)[ctx.ranks.rank]
        return own * ctx.ranks.world, None


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """The process group of torchrun, for the duration of the body; one process without torchrun.

    Collectives on a CPU use gloo, those on a GPU nccl. Ranks other than 0 print nothing.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks()
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT)
    ranks = Ranks(dist.get_rank(), world)
    quiet, console.quiet = console.quiet, not ranks.main
    try:
        yield ranks
    finally:
        console.quiet = quiet
    ranks.wait()
    dist.destroy_process_group()  # not after an error: that could wait for a dead rank


def pick_device(name: str) -> torch.device:
    """The device `name`; "auto" is a CUDA device, or the CPU if there is none. Under torchrun each
    rank of a machine gets its own CUDA device.

    Raises:
        ValueError: for a device that torch does not know or cannot use, and for a numbered one with
            several ranks.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    ranked = int(os.environ.get("WORLD_SIZE", "1")) > 1
    try:
        device = torch.device(name)
        if device.type == "cuda" and ranked:
            if device.index is not None:
                raise ValueError(f"config: several ranks cannot share device {name!r}; use 'cuda'")
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(device)
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"config: device {name!r} cannot be used: {error}") from error
