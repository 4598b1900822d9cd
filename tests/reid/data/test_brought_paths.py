"""Places as they are: brackets, spaces, foreign letters, commas, `~`, no home, no locks."""

import errno
import os
import shutil

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from small_runs import SMALL, rows, run

from rga_fast.reid.config import Config, parse_assignments
from rga_fast.reid.data.datasets import open_dataset
from rga_fast.reid.data.images import open_images
from rga_fast.reid.data.source import open_source
from rga_fast.reid.files import user_cache
from rga_fast.reid.synth.cached import cached_dataset

SIZE = (16, 8)
ODD = "[exp1] :car: ä 人, [/bold] 100%"


def people(root, seed=0, cameras=(1, 2), count=8):
    root.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for person in range(count):
        for camera in cameras:
            pixels = rng.integers(0, 256, (20, 10, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"000{person}_c{camera}.bmp")
    return root


def test_every_verb_takes_odd_paths(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = people(tmp_path / ODD / "one")
    two = people(tmp_path / ODD / "[two]", seed=1)
    out = tmp_path / ODD / "runs" / "[exp1]"
    assert run("data", one, two) == 0
    assert ODD in capsys.readouterr().out
    cache = f"cache_folder={tmp_path / ODD / 'cache, too'}"
    options = ["--data", one, "--data", two, *SMALL, "epochs=1", "cache=disk", cache]
    assert run("train", *options, "--out", out) == 0
    assert f"run folder: {out}" in capsys.readouterr().out
    assert run("evaluate", out / "checkpoints" / "last.pt") == 0
    assert len(list((tmp_path / ODD / "cache, too").glob("*.npy"))) == 2  # query is gallery here
    assert run("data", tmp_path / ODD / "[three]") == 1
    assert "[three]: no such folder" in capsys.readouterr().err


def test_a_name_that_is_not_utf8(tmp_path, capsys):
    root = people(tmp_path / "data")
    name = os.fsdecode(b"caf\xe9 [x]")
    try:
        root.rename(tmp_path / name)
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    assert run("data", tmp_path / name) == 0
    assert run("data", tmp_path / name / "0001_c1.bmp") == 1


def test_a_comma_and_a_bracket_in_a_field():
    assert parse_assignments(["data=/a/b, c"]) == {"data": "/a/b, c"}
    assert parse_assignments(["data=[exp1]/x"]) == {"data": "[exp1]/x"}
    assert parse_assignments(["data=[/a, /b]"]) == {"data": ["/a", "/b"]}
    assert parse_assignments(["data=2024"]) == {"data": "2024"}
    assert parse_assignments(["pretrained=null", "boxes=null"]) == {
        "pretrained": None,
        "boxes": None,
    }
    pattern = r"(?P<identity>\d{4}): #(?P<camera>\d)"
    assert parse_assignments([f"pattern={pattern}"]) == {"pattern": pattern}
    config = Config().replace(**parse_assignments(["data=/a/b, c", f"pattern={pattern}"]))
    assert (config.data, config.pattern) == ("/a/b, c", pattern)


def test_home_in_a_recipe_and_in_a_field(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    people(tmp_path / "mine")
    (tmp_path / "recipe.yaml").write_text("data: ~/mine\ncache: disk\ncache_folder: ~/cache\n")
    for config in (
        Config.load(tmp_path / "recipe.yaml"),
        Config().replace(**parse_assignments(["data=~/mine", "cache_folder=~/cache"])),
    ):
        data = open_source(config.data, **config.reading)
        assert data.train.root == tmp_path / "mine"
        open_images(data.train, SIZE, cache="disk", folder=config.cache_folder)
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1


def test_no_home_folder(monkeypatch):
    def none():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pathlib.Path.home", none)
    assert user_cache().name.startswith("rga_fast-")
    assert user_cache().parent.is_dir()


def opened(root, folder):
    split = open_dataset(root).train
    return open_images(split, SIZE, cache="disk", folder=folder)[np.arange(len(split))]


def test_two_sets_with_equal_names_sizes_and_times_are_not_confused(tmp_path):
    one, two = people(tmp_path / "one"), people(tmp_path / "two", seed=1)
    for file in [*one.iterdir(), *two.iterdir()]:
        os.utime(file, ns=(10**18, 10**18))
    first, second = opened(one, tmp_path / "c"), opened(two, tmp_path / "c")
    assert not torch.equal(first, second)
    assert torch.equal(opened(one, tmp_path / "c"), first)
    assert len(list((tmp_path / "c").glob("*.npy"))) == 2  # neither replaces the other


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOLCK, "No locks available"), NotImplementedError("no flock")]
)
def test_a_file_system_without_locks(tmp_path, monkeypatch, error):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(FileLock, "acquire", refuse)
    pixels = opened(people(tmp_path / "one"), tmp_path / "c")
    assert len([path for path in (tmp_path / "c").iterdir() if path.suffix != ".lock"]) == 1
    assert torch.equal(opened(tmp_path / "one", tmp_path / "c"), pixels)


def test_a_read_only_cache(tmp_path, monkeypatch):
    """What is there is used; what is not is an error that shows the way out."""
    one = people(tmp_path / "one")
    pixels = opened(one, tmp_path / "c")

    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(FileLock, "acquire", refuse)
    monkeypatch.setattr("rga_fast.reid.synth.cached.write_dataset", refuse)
    assert torch.equal(opened(one, tmp_path / "c"), pixels)
    with pytest.raises(OSError, match="choose another cache_folder, or cache=off"):
        opened(people(tmp_path / "two", seed=1), tmp_path / "c")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    with pytest.raises(OSError, match="Read-only file system; the variable XDG_CACHE_HOME names"):
        cached_dataset()


def test_one_camera_trains_without_an_evaluation(tmp_path, capsys):
    one = people(tmp_path / "one", cameras=[1])
    options = ["--data", one, *SMALL, "epochs=1"]
    assert run("train", *options, "--out", tmp_path / "out") == 0
    text = capsys.readouterr().out
    assert "note: " in text
    assert text.index("so that nothing can be evaluated") < text.index("run folder")
    assert len(rows(tmp_path / "out")) == 1
    assert rows(tmp_path / "out", "before_neck") == []
    assert run("evaluate", tmp_path / "out" / "checkpoints" / "last.pt") == 1
    assert "one: no valid query remains" in capsys.readouterr().err


@pytest.mark.slow
def test_parts_that_are_missing(market, tmp_path, capsys):
    copy = shutil.copytree(market, tmp_path / "copy")
    options = ["--data", copy, *SMALL, "epochs=1"]
    shutil.rmtree(copy / "query")
    assert run("train", *options, "--out", tmp_path / "a") == 0
    assert "no query images: nothing can be evaluated" in capsys.readouterr().out
    shutil.copytree(market / "query", copy / "query")
    shutil.rmtree(copy / "bounding_box_train")
    assert run("train", *options, "--out", tmp_path / "b") == 1
    assert "copy: no training images (folders query, bounding_box_test)" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
    assert run("evaluate", tmp_path / "a" / "checkpoints" / "last.pt") == 0
    assert run("data", copy) == 0
    assert "train: no images: the data can be evaluated only" in capsys.readouterr().out


@pytest.mark.slow
def test_pattern_on_the_command_line(market, tmp_path, capsys):
    pattern = r"(?P<identity>\d{4})_c(?P<camera>\d)"
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in market.glob("bounding_box_train/*.jpg"):
        shutil.copy(file, flat / f"x{file.name}")
    assert run("data", flat) == 1
    assert "--pattern" in capsys.readouterr().err
    assert run("data", flat, "--pattern", pattern) == 0
    assert "9 identities train, every 4th is held out (3)" in capsys.readouterr().out
    options = ["--data", flat, "--pattern", pattern, *SMALL, "epochs=1"]
    assert run("train", *options, "--out", tmp_path / "out") == 0
    assert run("evaluate", tmp_path / "out" / "checkpoints" / "last.pt") == 0
    assert run("train", *options, "--pattern", "(", "--out", tmp_path / "b") == 1
    assert "pattern: not a regular expression" in capsys.readouterr().err
