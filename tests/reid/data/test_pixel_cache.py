"""Decoded images on disk: written once, found again, replaced when stale, never half there."""

import errno
import os
import pickle
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rga_fast.reid.data import images, pixel_cache
from rga_fast.reid.data.datasets.common import Record, Split, split_of
from rga_fast.reid.data.images import open_images

SIZE = (16, 8)


@pytest.fixture
def split(tmp_path: Path) -> Split:
    root = tmp_path / "images"
    root.mkdir()
    rng = np.random.default_rng(0)
    for index in range(5):
        pixels = rng.integers(0, 256, (20, 10, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{index}.png")
    return split_of(root, [Record(f"{index}.png", index, 1) for index in range(5)])


def on_disk(split: Split, folder: Path, **options) -> torch.Tensor:
    return open_images(split, SIZE, cache="disk", folder=folder, **options)[np.arange(len(split))]


def in_memory(split: Split) -> torch.Tensor:
    return open_images(split, SIZE, cache="memory")[np.arange(len(split))]


def entries(folder: Path) -> list[str]:
    return sorted(path.suffix for path in folder.iterdir() if path.suffix != ".lock")


def test_written_once_and_announced(split, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pixel_cache, "CHUNK", 2)
    told = []
    pixels = on_disk(split, tmp_path / "c", progress=lambda done, of: told.append((done, of)))
    assert torch.equal(pixels, in_memory(split))
    assert told == [(done, 5) for done in range(1, 6)]
    assert "writing 5 decoded images, 0 MB, once" in capsys.readouterr().err
    assert entries(tmp_path / "c") == [".npy"]

    def never(*_, **__):
        raise AssertionError("decoded again")

    monkeypatch.setattr(images, "decode_files", never)
    split.root.rename(tmp_path / "moved")
    moved = split_of(tmp_path / "moved", [Record(f"{i}.png", i, 1) for i in range(5)])
    assert torch.equal(on_disk(moved, tmp_path / "c"), pixels)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("change", ["content", "time"])
def test_a_stale_one_is_replaced(split, tmp_path, change):
    before = on_disk(split, tmp_path / "c")
    (old,) = (tmp_path / "c").glob("*.npy")
    if change == "content":
        Image.new("RGB", (10, 20), (9, 9, 9)).save(split.file(2))
    else:
        os.utime(split.file(2), ns=(0, 0))
    after = on_disk(split, tmp_path / "c")
    assert torch.equal(after, in_memory(split))
    assert torch.equal(after, before) == (change == "time")
    assert not old.exists()
    assert entries(tmp_path / "c") == [".npy"]


def test_another_size_is_another_file(split, tmp_path):
    on_disk(split, tmp_path / "c")
    other = open_images(split, (8, 4), cache="disk", folder=tmp_path / "c")
    assert other.pixels.shape == (5, 8, 4, 3)
    assert entries(tmp_path / "c") == [".npy", ".npy"]


def test_a_damaged_one_is_written_again(split, tmp_path):
    pixels = on_disk(split, tmp_path / "c")
    (file,) = (tmp_path / "c").glob("*.npy")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="damaged, it is written again"):
        assert torch.equal(on_disk(split, tmp_path / "c"), pixels)


def test_a_killed_writer_leaves_nothing_that_is_used(split, tmp_path):
    on_disk(split, tmp_path / "c")
    (file,) = (tmp_path / "c").glob("*.npy")
    file.rename(file.with_suffix(".partial"))
    assert torch.equal(on_disk(split, tmp_path / "c"), in_memory(split))
    assert entries(tmp_path / "c") == [".npy"]


def test_a_damaged_image_leaves_nothing(split, tmp_path):
    split.file(4).write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"4\.png: not a readable image"):
        on_disk(split, tmp_path / "c")
    assert entries(tmp_path / "c") == []


def test_a_full_disk_is_told_beforehand(split, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match="images take 0 MB, but only 0 MB are free; choose another"):
        on_disk(split, tmp_path / "c")
    assert entries(tmp_path / "c") == []


def test_a_disk_that_fills_up_leaves_nothing(split, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="but the disk is full; choose another cache_folder") as told:
        on_disk(split, tmp_path / "c")
    assert told.value.errno == errno.ENOSPC
    assert entries(tmp_path / "c") == []


def test_the_second_writer_waits_for_the_first(split, tmp_path, monkeypatch, capsys):
    decode, calls, begun = images.decode_files, [], threading.Event()

    def slow(*args, **options):
        calls.append(None)
        begun.set()
        time.sleep(0.3)
        return decode(*args, **options)

    monkeypatch.setattr(images, "decode_files", slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(on_disk, split, tmp_path / "c")
        assert begun.wait(10)
        second = pool.submit(on_disk, split, tmp_path / "c")
        assert torch.equal(first.result(), second.result())
    assert len(calls) == 1
    assert "waiting for another process" in capsys.readouterr().err


def test_travels_to_other_processes_by_its_path(split, tmp_path):
    found = open_images(split, SIZE, cache="disk", folder=tmp_path / "c")
    parcel = pickle.dumps(found)
    assert len(parcel) < 500 < found.pixels.nbytes
    assert np.array_equal(pickle.loads(parcel).pixels, found.pixels)
    with pytest.raises(ValueError, match="read-only"):
        found.pixels[0] = 0
