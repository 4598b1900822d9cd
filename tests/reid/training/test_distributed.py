"""Two processes against one on the whole batch; runs under torchrun, also such that end early."""

import copy
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from processes import run_ranks
from small_runs import SMALL, rows, run
from torch import nn
from torch.testing import assert_close

from rga_fast.reid.checkpoint import load_checkpoint, make_network
from rga_fast.reid.config import RECIPES, Config
from rga_fast.reid.data.augment import Augmentation
from rga_fast.reid.data.images import CachedImages
from rga_fast.reid.data.loader import TrainBatches
from rga_fast.reid.data.sampler import IdentitySampler, rank_positions
from rga_fast.reid.distributed import Ranks, joined
from rga_fast.reid.training.step import StepResult, Training
from rga_fast.reid.training.sync_bn import synchronised

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
# Everything that has state, and workers that read ahead.
STATEFUL = ("--ema=0.5", "--clip-norm=1", "--accumulate=2", "cache=off", "workers=1")


def three_steps(config: Config, ranks: Ranks) -> tuple[list[StepResult], Training]:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 32, 16, 3), dtype=np.uint8)
    labels = np.arange(48) // 4
    torch.manual_seed(0)
    training = Training(make_network(config, 12).double(), config, CPU, ranks)
    training.start_epoch(0)
    positions = rank_positions(4, 2, rank=ranks.rank, world=ranks.world, parts=config.accumulate)
    sampler = IdentitySampler(labels, 4, 2)
    batches = TrainBatches(
        CachedImages(pixels), labels, sampler, Augmentation(), positions=positions
    )
    results = [training.step(x.double(), y, 1e-3).read() for x, y in batches]
    assert len(results) == 3
    return results, training


def equality() -> None:
    with joined(CPU) as ranks:
        for fields in (
            {"impl": "reference", "sync_bn": True},
            {"impl": "auto", "sync_bn": True, "accumulate": 2, "clip_norm": 0.5, "ema": 0.5},
        ):
            config = RECIPES["small"].replace(
                **{"height": 32, "width": 16, "base_width": 4, "identities_per_batch": 4},
                **{"images_per_identity": 2, **fields},
            )
            expected, alone = three_steps(config, Ranks())
            results, together = three_steps(config, ranks)
            a, b = (
                torch.tensor([r[:4] for r in steps], dtype=torch.float64)
                for steps in (results, expected)
            )
            assert_close(a, b)
            for name in ("model", "ema"):
                if alone.state()[name] is not None:
                    assert_close(together.state()[name], alone.state()[name])
        apart = config.replace(mine_across_ranks=False, accumulate=1)
        results, _ = three_steps(apart, ranks)
        assert abs(results[0].triplet - expected[0].triplet) > 1e-3  # so that mining matters


def synchronisation() -> None:
    torch.manual_seed(0)
    with joined(CPU) as ranks:
        share = slice(0, 5) if ranks.main else slice(5, 8)
        for norm, shape in (
            (nn.BatchNorm2d(3), (8, 3, 4, 2)),
            (nn.BatchNorm1d(3, momentum=None), (8, 3)),
            (nn.BatchNorm2d(3, affine=False, track_running_stats=False), (8, 3, 4, 2)),
        ):
            norm = norm.double()
            for parameter in norm.parameters():
                nn.init.normal_(parameter)
            split = synchronised(copy.deepcopy(norm))
            for _ in range(2):
                x = torch.randn(shape, dtype=torch.float64) * 3 + 100
                dout = torch.randn(shape, dtype=torch.float64)
                whole, own = x.clone().requires_grad_(), x[share].clone().requires_grad_()
                out_whole, out = norm(whole), split(own)
                out_whole.backward(dout)
                out.backward(dout[share])
                assert_close(out, out_whole[share])
                assert_close(own.grad, whole.grad[share])
                assert_close(split.state_dict(), norm.state_dict())
            for a, b in zip(split.parameters(), norm.parameters(), strict=True):
                dist.all_reduce(a.grad)
                assert_close(a.grad, b.grad)
            assert_close(split.eval()(x), norm.eval()(x))
            low = split.float().train()(x[share].bfloat16())
            assert low.dtype == torch.bfloat16
            assert (low - out).abs().max() < 2**-7 * x.abs().max()  # the input is rounded


def collectives() -> None:
    with joined(CPU) as ranks:
        assert ranks.any(not ranks.main)
        assert not ranks.any(False)
        assert ranks.from_main(lambda: ranks.rank) == 0
        values = torch.tensor([float(ranks.rank + 1)], requires_grad=True)
        joint = ranks.all_gather(values)
        assert joint.tolist() == [1, 2]
        (joint.square().sum() / 2).backward()  # over the mean of two ranks: d(1 + 4) / 2 * 2
        assert values.grad.item() == 2 * (ranks.rank + 1)
        ranks.check_same("thing", 1)
        with pytest.raises(ValueError, match="every rank must have the same thing; rank"):
            ranks.check_same("thing", ranks.rank)


@pytest.mark.parametrize("check", [equality, synchronisation, collectives])
def test_two_processes_compute_what_one_does(check):
    """Losses, weights and averages of three steps in float64, augmentation included; statistics;
    what ranks tell each other."""
    assert run_ranks(check) == [0, 0]


def test_alone_nothing_is_sent():
    with joined(CPU) as ranks:
        assert ranks == Ranks(0, 1)
        values = torch.ones(2, requires_grad=True)
        assert ranks.all_gather(values) is values
        assert ranks.sum(values) is values
        assert ranks.any(True)
        assert ranks.from_main(lambda: 3) == 3
        ranks.check_same("thing", 1)


# --- whole runs


def command(data: Path, out: Path, *arguments: str) -> list[str]:
    return ["train", "--data", str(data), "--out", str(out), "--fused", *SMALL, *arguments]


@pytest.fixture(scope="module")
def together(market, tmp_path_factory):
    """A run on two ranks, each with its own batch statistics."""
    out = tmp_path_factory.mktemp("runs") / "together"
    assert run_ranks(run, *command(market, out, *STATEFUL)) == [0, 0]
    return out


def test_a_run_on_two_ranks(together, market, tmp_path):
    """The rows of a run, and before training exactly the numbers of a single process."""
    assert [row["step"] for row in rows(together)] == [1, 2, 3, 4, 5, 6]
    assert (together / "summary.json").exists()
    assert run(*command(market, tmp_path / "alone", *STATEFUL, "epochs=1")) == 0
    before, _ = rows(tmp_path / "alone", "before_neck")
    assert rows(together, "before_neck")[0] == before


def test_sigterm_of_torchrun_and_resume(together, market, tmp_path):
    out = tmp_path / "stopped"
    arguments = command(market, out, *STATEFUL)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    process = subprocess.Popen(
        [*torchrun, "-m", "rga_fast", *arguments], stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if (out / "metrics.jsonl").exists() and len(rows(out)) >= 2:
            process.send_signal(signal.SIGTERM)
            break
        time.sleep(0.002)
    told, _ = process.communicate(timeout=60)
    assert told.count("run folder") == 1  # rank 0 alone prints
    saved = load_checkpoint(out / "checkpoints/last.pt")
    assert 2 <= 3 * saved.epoch + saved.step <= 6
    assert run_ranks(run, *arguments, "--resume", "auto") == [0, 0]
    assert [row["loss"] for row in rows(out)] == [row["loss"] for row in rows(together)]
    assert rows(out, "before_neck") == rows(together, "before_neck")


def fall_ill() -> None:
    raise ValueError("this rank is ill")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run_until(end: Callable[[], None], *arguments: str) -> int:
    """A run in which rank 1 ends in its second step."""
    step, calls = Training.step, []

    def wrapped(self: Training, *args: Any) -> Any:
        calls.append(None)
        if len(calls) == 2 and self.ranks.rank == 1:
            end()
        return step(self, *args)

    Training.step = wrapped  # type: ignore[method-assign]  # for good: the process is its own
    return run(*arguments)


@pytest.mark.parametrize(("end", "code"), [(fall_ill, 1), (die, -signal.SIGKILL)])
def test_a_rank_that_dies_ends_the_others(end, code, market, tmp_path, capfd):
    """Within a minute, or `run_ranks` raises; without torchrun, which would end them, too."""
    codes = run_ranks(run_until, end, *command(market, tmp_path / "out"))
    assert codes == [1, code]
