"""Runs of training that take seconds, and what they wrote."""

import json

import pytest
import torch

from rga_fast import cli

SMALL = [
    "--recipe=small",
    "epochs=2",
    "height=32",
    "width=16",
    "base_width=8",
    "identities_per_batch=4",
    "images_per_identity=2",
    "checkpoint_every=1",
    "device=cpu",
]


def run(*arguments) -> int:
    return cli.main([str(argument) for argument in arguments])


def rows(folder, key="loss"):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if key in row]


class Killed(BaseException):
    """What nothing in a run catches."""


def run_until(step, *arguments):
    """A run that is gone before it takes step number `step`, counted from its own first."""

    def die():
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", at_step(step, die))
        with pytest.raises(Killed):
            run(*arguments)


def assert_same_run(folder, other):
    assert [row["loss"] for row in rows(folder)] == [row["loss"] for row in rows(other)]
    assert rows(folder, "before_neck") == rows(other, "before_neck")


def at_step(count, action):
    """Adam's step, with `action` called before step number `count`."""
    step, calls = torch.optim.Adam.step, []

    def wrapped(*args, **kwargs):
        calls.append(None)
        if len(calls) == count:
            action()
        return step(*args, **kwargs)

    return wrapped
