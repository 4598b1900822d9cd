"""What the command line says to data it cannot use, and what it takes that looks odd."""

import shutil

import pytest
from PIL import Image
from small_runs import SMALL, rows, run


@pytest.fixture
def copy(market, tmp_path):
    return shutil.copytree(market, tmp_path / "market")


def train(data, out, *options):
    return run("train", "--fused", "--data", data, "--out", out, *SMALL, "epochs=1", *options)


def test_data_that_is_right(market, capsys):
    assert run("data", market, "--decode") == 0
    told = capsys.readouterr()
    assert "folders bounding_box_train, query, bounding_box_test" in told.out
    assert "every image can be read" in told.out
    assert "note: train: 12 identities, but a batch" in told.out


def test_data_counts_beside_the_published_ones(market, tmp_path, capsys):
    root = shutil.copytree(market, tmp_path / "Market-1501-v15.09.15")
    assert run("data", root) == 1
    text = capsys.readouterr().out
    assert "12,936" in text
    assert "wrong: train: 36 images, published are 12,936" in text


def test_data_of_one_camera(copy, capsys):
    for file in copy.glob("*/*.jpg"):
        if "_c1" not in file.name:
            file.unlink()
    assert run("data", copy) == 1
    text = capsys.readouterr().out
    assert "wrong: query: 4 of 4 will be skipped" in text
    assert "nothing can be evaluated" in text
    assert "12 of 12 identities have a single image" in text


def test_data_names_damaged_images(copy, capsys):
    damaged = sorted(copy.glob("query/*.jpg"))[3]
    damaged.write_bytes(damaged.read_bytes()[:200])
    assert run("data", copy) == 0
    assert "no image was opened" in capsys.readouterr().out
    assert run("data", copy, "--decode") == 1
    assert f"{damaged.name}: not a readable image" in capsys.readouterr().out


def test_data_of_several_sets(market, copy, capsys):
    assert run("data", market, copy) == 0
    assert "market-like + market-like" in capsys.readouterr().out
    assert run("data", market, market) == 1
    assert "is given twice" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["nowhere", "empty", "file"])
def test_data_that_is_none(path, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    assert run("data", tmp_path / path) == 1
    assert path in capsys.readouterr().err


def test_several_sets_train_together(market, copy, tmp_path):
    assert train(market, tmp_path / "out", "--data", copy, "identities_per_batch=20") == 0
    assert len(rows(tmp_path / "out")) == 1  # 24 identities


def test_grey_and_cmyk_images_train(copy, tmp_path):
    first, second, *_ = sorted(copy.glob("bounding_box_train/*.jpg"))
    for file, mode in ((first, "L"), (second, "CMYK")):
        Image.open(file).convert(mode).save(file)
    assert train(copy, tmp_path / "out") == 0


def test_identities_with_one_image_train(copy, tmp_path):
    for file in copy.glob("bounding_box_train/*.jpg"):
        if "_c1" not in file.name:
            file.unlink()
    assert train(copy, tmp_path / "out") == 0


def test_a_damaged_image_that_a_worker_meets(copy, tmp_path, capsys):
    for file in copy.glob("bounding_box_train/*.jpg"):
        file.write_bytes(file.read_bytes()[:200])
    assert train(copy, tmp_path / "out", "cache=off", "workers=1") == 1
    error = capsys.readouterr().err
    assert "not a readable image" in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_places_that_cannot_be_written(market, tmp_path, capsys):
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "place"
    assert train(market, tmp_path / "out", "cache=disk", f"cache_folder={place}") == 1
    assert run("synth", market) == 1
    assert train(market, tmp_path / "file") == 1
    told = capsys.readouterr().err.splitlines()
    assert [line.partition("error: ")[2].rpartition(": ")[2] for line in told] == [
        "Not a directory",
        f"write_dataset: {market} exists and is not an empty folder".rpartition(": ")[2],
        "Not a directory",
    ]
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


def test_fields_of_the_data_are_checked(market, tmp_path, capsys):
    for option, message in (
        ("boxes=tight", "boxes must be one of 'labeled', 'detected'"),
        ("cache=ram", "cache must be one of 'off', 'memory', 'disk'"),
    ):
        assert train(market, tmp_path / "out", option) == 1
        assert message in capsys.readouterr().err
    assert run("train", "data=[1,2]", "--out", tmp_path / "out") == 1
    assert "data must be a path or several, got (1, 2)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
