"""Market-1501: what is read, what is left out, and what bad folders are told."""

import os
from pathlib import Path

import numpy as np
import pytest

from rga_fast.reid.data.datasets import (
    Split,
    SplitCounts,
    load_market1501,
    open_dataset,
    require_evaluation,
    require_training,
)

TRAIN, QUERY, GALLERY = "bounding_box_train", "query", "bounding_box_test"


def name(identity: int, camera: int, frame: int = 0, suffix: str = ".jpg") -> str:
    shown = "-1" if identity == -1 else f"{identity:04d}"
    return f"{shown}_c{camera}s1_{frame:06d}_00{suffix}"


def write(root: Path, folder: str, names: list[str]) -> None:
    """Files of no content: readers go by names."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    for file in names:
        (root / folder / file).touch()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """3 + 2 identities, cameras 1, 2 and 15, 4 junk images, 3 distractors, and files in between."""
    root = tmp_path / "data"
    people = [name(i, c, f) for i in (11, 2, 7) for c in (2, 15) for f in (0, 1)]
    write(root, TRAIN, [*people, name(-1, 1), name(0, 1), "Thumbs.db", "._0002_c1s1_000000_00.jpg"])
    write(root, QUERY, [name(5, 1), name(1501, 15, suffix=".JPG"), name(-1, 1)])
    found = [name(5, 2), name(5, 15), name(1501, 1, suffix=".jpeg"), name(1501, 2, suffix=".PNG")]
    strangers = [name(0, 1), name(0, 15), name(0, 2), name(-1, 1), name(-1, 2)]
    write(root, GALLERY, [*found, *strangers, "readme.txt"])
    (root / GALLERY / "0009_c1s1_000000_00.jpg").mkdir()
    return root


def test_counts(tree):
    assert open_dataset(tree).counts() == [
        SplitCounts("train", images=12, identities=3, cameras=2, distractors=0, dropped=2),
        SplitCounts("query", images=2, identities=2, cameras=2, distractors=0, dropped=1),
        SplitCounts("gallery", images=7, identities=2, cameras=3, distractors=3, dropped=2),
    ]


def test_records_follow_the_sorted_names(tree):
    train = load_market1501(tree).train
    assert list(train.paths) == sorted(train.paths)
    assert train.paths[0] == f"{TRAIN}/0002_c15s1_000000_00.jpg"
    assert train.identities.tolist() == [2] * 4 + [7] * 4 + [11] * 4
    assert train.cameras.tolist() == [15, 15, 2, 2] * 3
    assert train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert train.file(5) == tree / train.paths[5]
    assert train.file(5).is_file()


def test_order_does_not_depend_on_the_file_system(tree, monkeypatch):
    before = load_market1501(tree)
    listed = os.scandir

    class Reversed:
        def __init__(self, path):
            with listed(path) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *error):
            return None

    monkeypatch.setattr("rga_fast.reid.data.datasets.os.scandir", Reversed)
    after = load_market1501(tree)
    assert after.train.paths == before.train.paths
    assert after.train.labels.tolist() == before.train.labels.tolist()


def test_distractors_stay_in_the_gallery_only(tree):
    data = load_market1501(tree)
    assert data.distractor_identity == 0
    assert (data.gallery.identities == 0).sum() == 3
    for split in (data.train, data.query, data.gallery):
        assert (split.identities != -1).all()
    assert (data.train.identities > 0).all()
    assert (data.query.identities > 0).all()


def test_the_parent_folder_and_a_moved_folder_load_alike(tree, tmp_path):
    here = load_market1501(tree)
    tree.rename(tmp_path / "Market-1501-v15.09.15")
    moved = open_dataset(tmp_path)
    assert moved.gallery.paths == here.gallery.paths
    assert moved.gallery.file(0).is_file()


def test_records_are_immutable(tree):
    train = load_market1501(tree).train
    for array in (train.identities, train.cameras, train.labels):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    with pytest.raises(AttributeError):
        train.root = tree


def test_split_wants_one_identity_per_path():
    with pytest.raises(ValueError, match=r"identities must be \(2,\), one per path, got \(3,\)"):
        Split(Path(), ("a", "b"), np.zeros(3, np.int64), np.zeros(2, np.int64))


@pytest.mark.slow
def test_market_in_full_size(tmp_path):
    """The published counts, on a tree of the published size with made-up names."""
    (tmp_path / "image").touch()

    def write(folder: str, identities: list[int]) -> None:
        (tmp_path / folder).mkdir()
        for n, identity in enumerate(identities):  # links are made faster than files
            os.link(tmp_path / "image", tmp_path / folder / name(identity, n % 6 + 1, n))

    people = np.arange(1, 752)
    others = np.arange(752, 1502)
    write(TRAIN, np.resize(people, 12936).tolist())
    write(QUERY, np.resize(others, 3368).tolist())
    write(GALLERY, [-1] * 3819 + [0] * 2798 + np.resize(others, 13115).tolist())
    assert len(list((tmp_path / GALLERY).iterdir())) == 19732

    data = open_dataset(tmp_path)
    assert data.counts() == [
        SplitCounts("train", 12936, 751, 6, distractors=0, dropped=0),
        SplitCounts("query", 3368, 750, 6, distractors=0, dropped=0),
        SplitCounts("gallery", 15913, 750, 6, distractors=2798, dropped=3819),
    ]
    assert np.array_equal(np.unique(data.train.labels), np.arange(751))


@pytest.mark.parametrize("missing", [TRAIN, QUERY, GALLERY])
def test_a_missing_part_is_empty_and_reported(tree, missing):
    (tree / missing).rename(tree / "elsewhere")
    if missing == TRAIN:
        data = open_dataset(tree)
        assert data.valid_queries().all()
        with pytest.raises(ValueError, match=r"data: no training images .*can be evaluated only"):
            require_training(data)
    else:
        with pytest.warns(UserWarning, match="data: no (query|gallery) images: nothing can be ev"):
            data = open_dataset(tree)
        require_training(data)
        with pytest.raises(ValueError, match="nothing can be evaluated"):
            require_evaluation(data)
    sizes = {TRAIN: len(data.train), QUERY: len(data.query), GALLERY: len(data.gallery)}
    assert [name for name, size in sizes.items() if size == 0] == [missing]


def test_no_folder_or_a_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        open_dataset(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="expected the folder of a data set"):
        load_market1501(tmp_path / "file")


def test_unknown_layout_tells_what_was_expected_and_found(tmp_path):
    with pytest.raises(ValueError, match=r"bounding_box_train/, query/.*found an empty folder"):
        open_dataset(tmp_path)
    (tmp_path / "alice").mkdir()
    with pytest.raises(ValueError, match="found alice"):
        open_dataset(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder bounding_box_train, query, bounding"):
        load_market1501(tmp_path)


def test_folder_without_images(tree):
    for file in (tree / QUERY).iterdir():
        file.unlink()
    (tree / QUERY / "Thumbs.db").touch()
    with pytest.raises(ValueError, match=r"query: no images \(.jpg, .jpeg, .jpe"):
        open_dataset(tree)


def test_folder_of_junk_only(tree):
    for file in (tree / QUERY).iterdir():
        file.unlink()
    write(tree, QUERY, [name(-1, 1), name(-1, 2)])
    with pytest.raises(ValueError, match="all 2 images are junk"):
        open_dataset(tree)


@pytest.mark.parametrize("wrong", ["alice_c1.jpg", "0002_s1.jpg", "x0002_c1.jpg"])
def test_foreign_name_is_quoted_with_an_example(tree, wrong):
    (tree / TRAIN / wrong).touch()
    with pytest.raises(ValueError, match=r"0002_c1s1_000451_03\.jpg") as error:
        open_dataset(tree)
    assert wrong in str(error.value)


def test_one_identity_is_not_enough_to_train(tree):
    for file in (tree / TRAIN).iterdir():
        if not file.name.startswith("0007"):
            file.unlink()
    with pytest.raises(ValueError, match="at least 2 identities, got only identity 7"):
        open_dataset(tree)
