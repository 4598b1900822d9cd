"""Two processes against one on the whole batch; runs under torchrun, also such that end early."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rga_fast.reid.checkpoint import load_checkpoint
from rga_fast.reid.distributed import Ranks, joined

pytestmark = pytest.mark.slow
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
SMALL = [
    *("--recipe=small", "epochs=2", "height=32", "width=16", "base_width=8"),
    *("identities_per_batch=4", "images_per_identity=2", "checkpoint_every=1"),
]

EQUALITY = """
import numpy as np, torch
from torch.testing import assert_close
from rga_fast.reid.augment import Augmentation
from rga_fast.reid.checkpoint import make_network
from rga_fast.reid.config import RECIPES
from rga_fast.reid.distributed import Ranks, joined
from rga_fast.reid.loader import CachedImages, TrainBatches
from rga_fast.reid.sampler import IdentitySampler, rank_positions
from rga_fast.reid.step import Training

torch.set_num_threads(1)
pixels = np.random.default_rng(0).integers(0, 256, (48, 32, 16, 3), dtype=np.uint8)
labels = np.arange(48) // 4

def three_steps(config, ranks):
    torch.manual_seed(0)
    model = make_network(config, 12).double()
    training = Training(model, config, torch.device("cpu"), ranks)
    training.start_epoch(0)
    parts = config.accumulate
    batches = TrainBatches(
        CachedImages(pixels), labels, IdentitySampler(labels, 4, 2), Augmentation(),
        positions=rank_positions(4, 2, rank=ranks.rank, world=ranks.world, parts=parts),
    )
    results = [training.step(x.double(), y, 1e-3) for x, y in batches]
    assert len(results) == 3
    return results, training

with joined(torch.device("cpu")) as ranks:
    for fields in (
        {"impl": "reference", "sync_bn": True},
        {"impl": "auto", "sync_bn": True, "accumulate": 2, "clip_norm": 0.5, "ema": 0.5},
    ):
        config = RECIPES["small"].replace(
            height=32, width=16, base_width=4, identities_per_batch=4, images_per_identity=2,
            **fields,
        )
        expected, alone = three_steps(config, Ranks())
        results, together = three_steps(config, ranks)
        a, b = (torch.tensor([r[:4] for r in run], dtype=torch.float64)
                for run in (results, expected))
        assert_close(a, b)
        for name in ("model", "ema"):
            a, b = alone.state()[name], together.state()[name]
            if b is not None:
                assert_close(b, a)
    results, together = three_steps(config.replace(mine_across_ranks=False, accumulate=1), ranks)
    assert abs(results[0].triplet - expected[0].triplet) > 1e-3  # so that mining matters
"""

SYNC_BN = """
import torch, torch.distributed as dist
from torch import nn
from torch.testing import assert_close
from rga_fast.reid.distributed import joined
from rga_fast.reid.sync_bn import synchronised

torch.manual_seed(0)
with joined(torch.device("cpu")) as ranks:
    share = slice(0, 5) if ranks.main else slice(5, 8)
    for norm, shape in (
        (nn.BatchNorm2d(3), (8, 3, 4, 2)),
        (nn.BatchNorm1d(3, momentum=None), (8, 3)),
        (nn.BatchNorm2d(3, affine=False, track_running_stats=False), (8, 3, 4, 2)),
    ):
        norm = norm.double()
        for parameter in norm.parameters():
            nn.init.normal_(parameter)
        import copy
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
        for a, b in zip(split.parameters(), norm.parameters()):
            dist.all_reduce(a.grad)
            assert_close(a.grad, b.grad)
        assert_close(split.eval()(x), norm.eval()(x))
        low = split.float().train()(x[share].bfloat16())
        assert low.dtype == torch.bfloat16
        assert (low - out).abs().max() < 2**-7 * x.abs().max()  # the input is rounded

    # The other helpers, while two processes are there
    assert ranks.any(not ranks.main) and not ranks.any(False)
    assert ranks.from_main(lambda: ranks.rank) == 0
    values = torch.tensor([float(ranks.rank + 1)], requires_grad=True)
    joint = ranks.join(values)
    assert joint.tolist() == [1, 2]
    (joint.square().sum() / 2).backward()  # over the mean of two ranks: d(1 + 4) / 2 * 2
    assert values.grad.item() == 2 * (ranks.rank + 1)
    ranks.check_same("thing", 1)
    try:
        ranks.check_same("thing", ranks.rank)
    except ValueError as error:
        assert "every rank must have the same thing; rank" in str(error)
    else:
        raise AssertionError
"""


def in_two_processes(script: str, folder: Path) -> None:
    """Runs `script` as both ranks; fails with what they print if one fails."""
    file = folder / "script.py"
    file.write_text(script)
    done = subprocess.run([*TORCHRUN, file], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]


def test_two_processes_compute_what_one_does(tmp_path):
    """Losses, weights and averages after three steps, in float64, augmentation included."""
    in_two_processes(EQUALITY, tmp_path)


def test_synchronised_statistics_and_collectives(tmp_path):
    in_two_processes(SYNC_BN, tmp_path)


def test_alone_nothing_is_sent():
    with joined(torch.device("cpu")) as ranks:
        assert ranks == Ranks(0, 1)
        values = torch.ones(2, requires_grad=True)
        assert ranks.join(values) is values
        assert ranks.sum(values) is values
        assert ranks.any(True)
        assert ranks.from_main(lambda: 3) == 3
        ranks.check_same("thing", 1)


# --- whole runs


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    """Twelve training and four test identities in their own colours, under three cameras."""
    root = tmp_path_factory.mktemp("market")
    for folder, identities in {
        "bounding_box_train": range(1, 13),
        "query": range(20, 24),
        "bounding_box_test": range(20, 24),
    }.items():
        (root / folder).mkdir()
        for identity in identities:
            colour = np.random.default_rng(identity).integers(0, 200, (1, 1, 3))
            for camera in (1, 2, 3):
                pixels = np.random.default_rng(camera).integers(0, 55, (32, 16, 3)) + colour
                file = f"{identity:04}_c{camera}s1_{len(folder):06}_00.jpg"
                Image.fromarray(pixels.astype("uint8")).save(root / folder / file)
    return root


def command(market: Path, out: Path, *arguments: str) -> list[str]:
    return ["train", "--data", str(market), "--out", str(out), "--fused", *SMALL, *arguments]


def rows(folder: Path, key: str = "loss") -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if key in row]


# Everything that has state, and workers that read ahead.
STATEFUL = ("--ema=0.5", "--clip-norm=1", "--accumulate=2", "cache=off", "workers=1")


@pytest.fixture(scope="module")
def together(market, tmp_path_factory):
    """A run on two ranks, each with its own batch statistics."""
    out = tmp_path_factory.mktemp("runs") / "together"
    arguments = command(market, out, *STATEFUL)
    done = subprocess.run(
        [*TORCHRUN, "-m", "rga_fast", *arguments], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("run folder") == 1  # rank 0 alone prints
    return out


def test_a_run_under_torchrun(together, market, tmp_path):
    """The rows of a run, and before training exactly the numbers of a single process."""
    from rga_fast import cli

    assert [row["step"] for row in rows(together)] == [1, 2, 3, 4, 5, 6]
    assert (together / "summary.json").exists()
    assert cli.main(command(market, tmp_path / "alone", *STATEFUL, "epochs=1")) == 0
    before, _ = rows(tmp_path / "alone", "before_neck")
    assert rows(together, "before_neck")[0] == before


def test_sigterm_of_torchrun_and_resume(together, market, tmp_path):
    out = tmp_path / "stopped"
    arguments = [*TORCHRUN, "-m", "rga_fast", *command(market, out, *STATEFUL)]
    process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if (out / "metrics.jsonl").exists() and len(rows(out)) >= 2:
            process.send_signal(signal.SIGTERM)
            break
        time.sleep(0.002)
    process.wait(timeout=60)
    saved = load_checkpoint(out / "checkpoints/last.pt")
    assert 2 <= 3 * saved.epoch + saved.step <= 6
    resumed = subprocess.run([*arguments, "--resume", "auto"], timeout=240)
    assert resumed.returncode == 0
    assert [row["loss"] for row in rows(out)] == [row["loss"] for row in rows(together)]
    assert rows(out, "before_neck")[-1] == rows(together, "before_neck")[-1]


DYING = """
import os, signal, sys
from rga_fast.cli import main
from rga_fast.reid.step import Training

step, calls = Training.step, []

def dying(self, *args):
    calls.append(None)
    if len(calls) == 2 and self.ranks.rank == 1:
        {death}
    return step(self, *args)

Training.step = dying
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("death", "message"),
    [
        ("raise ValueError('this rank is ill')", "rga-fast: rank 1: error: this rank is ill"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "Signal 9 (SIGKILL) received by PID"),
    ],
)
def test_a_rank_that_dies_ends_the_job_with_its_error(death, message, market, tmp_path):
    script = tmp_path / "dying.py"
    script.write_text(DYING.format(death=death))
    started = time.monotonic()
    done = subprocess.run(
        [*TORCHRUN, str(script), *command(market, tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert time.monotonic() - started < 60
    assert done.returncode != 0
    assert message in done.stderr
