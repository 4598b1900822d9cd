"""The threshold beside a checkpoint."""

import json
import math

import pytest

from rga_fast.reid.retrieval.breakdown import Interval
from rga_fast.reid.retrieval.threshold import (
    Threshold,
    load_threshold,
    save_threshold,
    threshold_path,
)

THRESHOLD = Threshold(0.31, 1e-3, 0.87, Interval(0.29, 0.33), "people", "after_neck", flip=True)


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "last.pt"
    path.write_bytes(b"weights")
    return path


def test_what_is_saved_is_loaded(checkpoint):
    assert load_threshold(checkpoint) is None
    save_threshold(checkpoint, THRESHOLD)
    assert load_threshold(str(checkpoint)) == THRESHOLD
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == [
        "last.pt",
        "last.pt.threshold.json",
    ]


def test_a_checkpoint_that_has_changed_has_none(checkpoint):
    save_threshold(checkpoint, THRESHOLD)
    checkpoint.write_bytes(b"weights, trained on")
    with pytest.warns(UserWarning, match="earlier state of .*last.pt"):
        assert load_threshold(checkpoint) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-20],
        lambda text: "[]",
        lambda text: text.replace("threshold 1", "threshold 9"),
        lambda text: text.replace("0.31", "null"),
        lambda text: text.replace("0.31", "NaN"),
        lambda text: text.replace("false_accept_rate", "far"),
        lambda text: json.dumps(json.loads(text) | {"interval": 3}),
        lambda text: "\N{REPLACEMENT CHARACTER}",
    ],
)
def test_a_damaged_file_is_named(checkpoint, damage):
    save_threshold(checkpoint, THRESHOLD)
    path = threshold_path(checkpoint)
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=r"last\.pt\.threshold\.json: damaged"):
        load_threshold(checkpoint)


def test_only_numbers_are_saved(checkpoint):
    with pytest.raises(ValueError, match="JSON"):
        save_threshold(checkpoint, THRESHOLD._replace(value=math.nan))
    assert not threshold_path(checkpoint).exists()
