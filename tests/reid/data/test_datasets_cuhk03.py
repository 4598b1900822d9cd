"""CUHK03 in the four forms it circulates in: what is read, and what damaged files are told."""

import os
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rga_fast.reid.data.datasets import SplitCounts, load_cuhk03, open_dataset
from rga_fast.reid.data.images import read_image

h5py = pytest.importorskip("h5py")
scipy_io = pytest.importorskip("scipy.io")

# Two pairs of cameras with 2 and 1 people: (pair, person) -> the cells that hold an image, from 1.
PEOPLE = {(1, 1): (1, 2, 6, 10), (1, 2): (3, 7), (2, 1): (1, 5, 6)}
TRAIN, QUERY, GALLERY = [1, 2, 3, 4, 5, 6], [7, 9], [8]


def names() -> list[str]:
    return [
        f"{pair}_{person:03d}_{1 if index <= 5 else 2}_{index:02d}.png"
        for (pair, person), cells in PEOPLE.items()
        for index in cells
    ]


def pixels(name: str) -> np.ndarray:
    """uint8 (H, W, 3), no side like another, so that a wrong transposition shows."""
    rng = np.random.default_rng([int(token) for token in name[:-4].split("_")])
    return rng.integers(0, 256, (7, 4, 3), dtype=np.uint8)


def write_protocol(folder: Path, boxes: str = "labeled", **changed) -> Path:
    """As MATLAB writes it: columns of doubles, a cell array of names."""
    filelist = np.empty((len(names()), 1), dtype=object)
    filelist[:, 0] = names()
    people = [n.split("_")[:2] for n in names()]
    labels = [sorted({tuple(p) for p in people}).index(tuple(p)) + 1 for p in people]
    content = {
        "filelist": filelist,
        "labels": labels,
        "camId": [int(n.split("_")[2]) for n in names()],
        "train_idx": TRAIN,
        "query_idx": QUERY,
        "gallery_idx": GALLERY,
    }
    content |= changed
    for key, value in content.items():
        if key != "filelist" and value is not None:
            content[key] = np.array(value, dtype=np.float64)[:, None]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"cuhk03_new_protocol_config_{boxes}.mat"
    scipy_io.savemat(path, {key: value for key, value in content.items() if value is not None})
    return path


def write_release(path: Path, boxes: tuple[str, ...] = ("labeled", "detected")) -> None:
    """An HDF5 file as MATLAB 7.3 writes cells of cells: references, and every array transposed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", userblock_size=512) as file:
        for kind in boxes:
            pairs = file.create_dataset(kind, (1, 2), dtype=h5py.ref_dtype)
            for pair in (1, 2):
                people = [person for p, person in PEOPLE if p == pair]
                cells = file.create_dataset(
                    f"#refs#/{kind}{pair}", (10, len(people)), dtype=h5py.ref_dtype
                )
                for person in people:
                    for index in range(1, 11):
                        cell = f"#refs#/{kind}_{pair}_{person}_{index}"
                        view = 1 if index <= 5 else 2
                        name = f"{pair}_{person:03d}_{view}_{index:02d}.png"
                        if name in names():
                            file[cell] = pixels(name).T
                        else:
                            file[cell] = np.array([0, 0], dtype=np.uint64)  # an empty cell
                            file[cell].attrs["MATLAB_empty"] = np.uint8(1)
                        cells[index - 1, person - 1] = file[cell].ref
                pairs[0, pair - 1] = cells.ref


def extract(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in names():
        (folder / name).touch()


COUNTS = [
    SplitCounts("train", images=6, identities=2, cameras=2, distractors=0, dropped=0),
    SplitCounts("query", images=2, identities=1, cameras=2, distractors=0, dropped=0),
    SplitCounts("gallery", images=1, identities=1, cameras=1, distractors=0, dropped=0),
]


@pytest.fixture
def release(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    write_release(root / "cuhk03_release" / "cuhk-03.mat")
    write_protocol(root, "labeled")
    write_protocol(root, "detected")
    return root


@pytest.mark.parametrize("boxes", ["labeled", "detected"])
def test_release_becomes_an_extracted_folder(release, capsys, boxes):
    data = open_dataset(release, boxes=boxes)
    assert data.name == f"cuhk03-{boxes}"
    assert data.counts() == COUNTS
    assert sorted(path.name for path in release.glob("images_*")) == [f"images_{boxes}"]
    said = capsys.readouterr()
    assert "extracting 9 images" in said.err
    assert "at most 0 MiB" in said.err
    assert str(release / f"images_{boxes}") in said.err
    assert said.out == ""
    for split in (data.train, data.query, data.gallery):
        for index, path in enumerate(split.paths):
            found = read_image(split.file(index), (7, 4))
            assert np.array_equal(found, pixels(path))


def test_identities_and_cameras_follow_protocol_and_names(release):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one of the two queries is valid: no reason to warn
        data = open_dataset(release)
    assert data.train.paths == tuple(sorted(names()[:6]))
    assert data.train.identities.tolist() == [1, 1, 1, 1, 2, 2]
    assert data.train.cameras.tolist() == [1, 1, 2, 2, 1, 2]
    assert data.query.identities.tolist() == [3, 3]
    assert data.query.paths == ("2_001_1_01.png", "2_001_2_06.png")
    assert data.gallery.paths == ("2_001_1_05.png",)
    assert data.valid_queries().tolist() == [False, True]


def test_extracted_once_and_moved(release, capsys, tmp_path, monkeypatch):
    before = load_cuhk03(release)
    capsys.readouterr()
    (release / "cuhk03_release" / "cuhk-03.mat").unlink()
    release.rename(tmp_path / "moved")
    monkeypatch.setitem(sys.modules, "h5py", None)  # an extracted folder needs scipy only
    after = open_dataset(tmp_path / "moved")
    assert capsys.readouterr().err == ""
    assert after.train.paths == before.train.paths
    assert after.train.file(0).is_file()


def test_protocol_inside_the_release_folder(tmp_path):
    write_release(tmp_path / "cuhk03_release" / "cuhk-03.mat")
    write_protocol(tmp_path / "cuhk03_release")
    assert open_dataset(tmp_path).counts() == COUNTS
    assert (tmp_path / "images_labeled").is_dir()
    assert open_dataset(tmp_path / "cuhk03_release").counts() == COUNTS


def test_read_only_folder_extracts_into_the_cache(release, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != release)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "platform", "linux")
    first = load_cuhk03(release)
    assert not (release / "images_labeled").exists()
    assert (tmp_path / "cache" / "rga_fast") in first.train.file(0).parents
    assert first.train.file(0).is_file()
    assert "extracting" in capsys.readouterr().err
    release = release.rename(tmp_path / "moved")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != release)
    assert load_cuhk03(release).train.file(0) == first.train.file(0)
    assert capsys.readouterr().err == ""


def test_interrupted_extraction_leaves_nothing(release, monkeypatch):
    def fail(self, path, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", fail)
        with pytest.raises(KeyboardInterrupt):
            load_cuhk03(release)
    assert list(release.glob("images_*")) == []
    assert load_cuhk03(release).counts() == COUNTS


def test_a_faster_process_wins(release, monkeypatch):
    """Another process finished the same folder while this one extracted."""
    rename = Path.rename

    def other_first(self, target):
        extract(Path(target))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", other_first)
    assert load_cuhk03(release).counts() == COUNTS
    assert [path.name for path in release.glob("images_*")] == ["images_labeled"]


def test_extracted_folder_alone(tmp_path):
    extract(tmp_path / "images_detected")
    write_protocol(tmp_path, "detected")
    write_protocol(tmp_path, "labeled")
    data = open_dataset(tmp_path)  # there are no labeled images
    assert data.name == "cuhk03-detected"
    assert data.counts() == COUNTS
    with pytest.raises(FileNotFoundError, match=r"images_labeled or the release .*cuhk-03\.mat"):
        open_dataset(tmp_path, boxes="labeled")


@pytest.mark.parametrize("inside", ["", "cuhk03-np"])
def test_market_like(tmp_path, inside):
    for kind, people in (("labeled", 3), ("detected", 2)):
        for folder, first in (("bounding_box_train", 1), ("query", 9), ("bounding_box_test", 9)):
            where = tmp_path / inside / kind / folder
            where.mkdir(parents=True)
            for identity in range(first, first + people):
                for camera in (1, 2):
                    (where / f"{identity:04d}_c{camera}_{identity}.png").touch()
    data = open_dataset(tmp_path)
    assert data.name == "cuhk03-labeled"
    assert [row[1:4] for row in data.counts()] == [(6, 3, 2)] * 3
    detected = open_dataset(tmp_path, boxes="detected")
    assert detected.name == "cuhk03-detected"
    assert len(detected.train) == 4
    assert open_dataset(tmp_path / inside / "detected").train.paths == detected.train.paths


def test_missing_protocol_is_named(tmp_path):
    extract(tmp_path / "images_labeled")
    with pytest.raises(FileNotFoundError, match=r"no cuhk03_new_protocol_config_labeled\.mat"):
        open_dataset(tmp_path)


def test_missing_image_is_counted_and_named(tmp_path):
    extract(tmp_path / "images_labeled")
    write_protocol(tmp_path)
    (tmp_path / "images_labeled" / names()[4]).unlink()
    (tmp_path / "images_labeled" / names()[6]).unlink()
    with pytest.raises(FileNotFoundError, match="2 of the 9 images it lists are missing") as error:
        open_dataset(tmp_path)
    assert str(tmp_path / "images_labeled" / names()[4]) in str(error.value)


def test_web_page_instead_of_the_protocol(tmp_path):
    extract(tmp_path / "images_labeled")
    path = tmp_path / "cuhk03_new_protocol_config_labeled.mat"
    path.write_text("<!DOCTYPE html>\n<html>" + " " * 300)
    with pytest.raises(
        ValueError, match=r"expected a complete MATLAB 5 file.*DOCTYPE html.*web page"
    ):
        open_dataset(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="expected a complete MATLAB 5 file"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("cut", [100, 200, 400])
def test_truncated_protocol(tmp_path, cut):
    extract(tmp_path / "images_labeled")
    path = write_protocol(tmp_path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=path.name):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_idx": [0, 1]}, "train_idx must be indices from 1 to 9, got index 0"),
        ({"gallery_idx": [10]}, "gallery_idx must be indices from 1 to 9, got index 10"),
        ({"query_idx": []}, "query_idx must be indices from 1 to 9, got none"),
        ({"labels": [1, 2, 3]}, "expected a label per file, got 3 for 9 files"),
        ({"labels": None}, "expected the variables of the protocol, got no labels"),
        ({"train_idx": [1, 2]}, "at least 2 identities, got only identity 1"),
    ],
)
def test_wrong_protocol_is_quoted(tmp_path, changed, message):
    extract(tmp_path / "images_labeled")
    path = write_protocol(tmp_path, **changed)
    with pytest.raises(ValueError, match=message) as error:
        open_dataset(tmp_path)
    assert path.name in str(error.value)


def test_release_that_lacks_the_boxes_or_an_image(tmp_path):
    write_protocol(tmp_path)
    write_release(tmp_path / "cuhk-03.mat", boxes=("detected",))
    with pytest.raises(ValueError, match=r"cuhk-03\.mat: expected the variable labeled, got #refs"):
        open_dataset(tmp_path)
    write_release(tmp_path / "cuhk-03.mat")
    with h5py.File(tmp_path / "cuhk-03.mat", "a") as file:
        reference = file["#refs#/labeled_1_2_4"].ref
        file["#refs#/labeled1"][2, 1] = reference  # an empty cell where the protocol has an image
    with pytest.raises(ValueError, match=r"1_002_1_03\.png of labeled must be uint8 \(3, W, H\)"):
        open_dataset(tmp_path)
    filelist = np.empty((9, 1), dtype=object)
    filelist[:, 0] = [*names()[:8], "7_001_1_01.png"]
    write_protocol(tmp_path, filelist=filelist)
    write_release(tmp_path / "cuhk-03.mat")
    with pytest.raises(ValueError, match=r"no cell for 7_001_1_01\.png in labeled, which has 2"):
        open_dataset(tmp_path)
    filelist[8, 0] = "portrait.png"
    write_protocol(tmp_path, filelist=filelist)
    with pytest.raises(ValueError, match=r"names like 1_001_1_01\.png, got 'portrait\.png'"):
        open_dataset(tmp_path)
    assert not (tmp_path / "images_labeled").exists()


def test_release_that_is_no_hdf5_file(release):
    (release / "cuhk03_release" / "cuhk-03.mat").write_bytes(b"not HDF5")
    with pytest.raises(ValueError, match=r"cuhk-03\.mat: expected a MATLAB 7\.3 \(HDF5\) file"):
        open_dataset(release)


def test_missing_libraries_name_the_extra(release, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "h5py", None)
        with pytest.raises(ImportError, match=r"needs h5py.*pip install 'rga-fast\[cuhk03\]'"):
            open_dataset(release)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ImportError, match=r"needs scipy.*pip install 'rga-fast\[cuhk03\]'"):
        open_dataset(release)


def test_unknown_boxes(release):
    with pytest.raises(ValueError, match="boxes must be one of labeled, detected, got 'drawn'"):
        open_dataset(release, boxes="drawn")
