"""MSMT17, repacks in Market-1501's layout, own images, joined data sets and the report."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest

from rga_fast.reid.data.datasets import (
    SplitCounts,
    dataset_report,
    join_training,
    load_csv,
    load_folders,
    load_msmt17,
    open_dataset,
)
from rga_fast.reid.data.sampler import IdentitySampler

LISTS = ("train", "val", "query", "gallery")


def touch(root: Path, *files: str) -> None:
    """Files of no content: readers go by names."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()


def msmt_name(identity: int, camera: int, frame: int = 0) -> str:
    return f"{identity:04d}/{identity:04d}_{frame:03d}_{camera:02d}_0303morning_0008_0.jpg"


def write_msmt(root: Path, train: str = "train", test: str = "test") -> Path:
    """Identities 0 to 2 train, other people with the numbers 0 and 1 test; cameras 1 to 15."""
    lists = {
        "train": [(i, c) for i in (0, 1, 2) for c in (1, 10, 15)],
        "val": [(i, c) for i in (0, 1) for c in (2, 11)],
        "query": [(0, 1), (0, 12), (1, 3)],
        "gallery": [(0, 2), (0, 12), (1, 3), (1, 14)],
    }
    for name, pairs in lists.items():
        folder = train if name in ("train", "val") else test
        frame = LISTS.index(name)
        files = [msmt_name(i, c, frame) for i, c in pairs]
        touch(root / folder, *files)
        lines = [f"{file} {i}\n" for file, (i, _) in zip(files, pairs, strict=True)]
        (root / f"list_{name}.txt").write_text("".join(reversed(lines)))
    return root


MSMT_COUNTS = [
    SplitCounts("train", images=13, identities=3, cameras=5, distractors=0, dropped=0),
    SplitCounts("query", images=3, identities=2, cameras=3, distractors=0, dropped=0),
    SplitCounts("gallery", images=4, identities=2, cameras=4, distractors=0, dropped=0),
]


@pytest.mark.parametrize(
    ("version", "train", "test"),
    [("MSMT17_V1", "train", "test"), ("MSMT17_V2", "mask_train_v2", "mask_test_v2")],
)
def test_msmt17_versions(tmp_path, version, train, test):
    write_msmt(tmp_path / version, train, test)
    for path in (tmp_path, tmp_path / version):
        data = open_dataset(path)
        assert data.name == "msmt17"
        assert version in data.layout
        assert data.counts() == MSMT_COUNTS
        assert data.distractor_identity is None
        assert all(data.gallery.file(n).is_file() for n in range(4))
    assert sorted(set(data.train.cameras.tolist())) == [1, 2, 10, 11, 15]
    assert list(data.train.paths) == sorted(data.train.paths)
    assert data.train.identities.tolist() == [0] * 5 + [1] * 5 + [2] * 3
    assert data.query.cameras.tolist() == [1, 12, 3]
    (tmp_path / version).rename(tmp_path / "elsewhere")
    assert open_dataset(tmp_path / "elsewhere").train.paths == data.train.paths


def test_msmt17_people_of_train_and_test_stay_apart(tmp_path):
    data = open_dataset(write_msmt(tmp_path))
    assert not set(data.train.paths) & {*data.query.paths, *data.gallery.paths}
    assert {path.split("/")[0] for path in data.train.paths} == {"train"}
    assert {path.split("/")[0] for path in data.query.paths} == {"test"}
    assert data.valid_queries().tolist() == [True, True, True]


def test_msmt17_val_is_optional(tmp_path):
    write_msmt(tmp_path)
    assert len(open_dataset(tmp_path).train) == 13
    (tmp_path / "list_val.txt").unlink()
    data = open_dataset(tmp_path, train_on_val=False)
    assert len(data.train) == 9
    assert data.name == "msmt17-without-val"
    with pytest.raises(FileNotFoundError, match=r"list_val\.txt: no such file.*train_on_val"):
        open_dataset(tmp_path)


def test_msmt17_missing_lists_folders_and_images(tmp_path):
    write_msmt(tmp_path)
    (tmp_path / "test" / msmt_name(1, 14, 3)).unlink()
    with pytest.raises(FileNotFoundError, match=r"list_gallery\.txt: 1 of the 4 images") as error:
        open_dataset(tmp_path)
    assert msmt_name(1, 14, 3) in str(error.value)
    (tmp_path / "list_query.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"list_query\.txt: no such file; MSMT17 has list_"):
        open_dataset(tmp_path)
    (tmp_path / "test").rename(tmp_path / "tests")
    with pytest.raises(FileNotFoundError, match="train/ and test/ or mask_train_v2/"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("line", ["0000/0000_000_01_0303morning.jpg", "alice.jpg 3", "a_b_c.jpg 1"])
def test_msmt17_wrong_line_is_quoted(tmp_path, line):
    write_msmt(tmp_path)
    with (tmp_path / "list_train.txt").open("a") as file:
        file.write(f"\n{line}\n")
    with pytest.raises(ValueError, match=r"list_train\.txt, line 11: expected 'path id") as error:
        open_dataset(tmp_path)
    assert line in str(error.value)


def test_msmt17_empty_list_and_both_versions(tmp_path):
    write_msmt(tmp_path / "MSMT17_V1")
    (tmp_path / "MSMT17_V1" / "list_val.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"list_val\.txt: expected lines.*got an empty file"):
        open_dataset(tmp_path)
    write_msmt(tmp_path / "MSMT17_V2", "mask_train_v2", "mask_test_v2")
    with pytest.raises(ValueError, match=r"more than one copy of MSMT17.*MSMT17_V1.*MSMT17_V2"):
        load_msmt17(tmp_path)


def write_market(root: Path, train, query, gallery, pattern: str = "{:04d}_c{}_{}.jpg") -> Path:
    for folder, pairs in (
        ("bounding_box_train", train),
        ("query", query),
        ("bounding_box_test", gallery),
    ):
        touch(root, *(f"{folder}/{pattern.format(i, c, n)}" for n, (i, c) in enumerate(pairs)))
    return root


def test_repack_of_msmt17_keeps_cameras_and_the_person_numbered_0(tmp_path):
    cameras = range(1, 16)
    people = [(i, c) for i in range(3) for c in cameras]
    root = write_market(tmp_path / "MSMT17_repack", people, [(0, 10), (1, 1)], people)
    data = open_dataset(root)
    assert data.name == "msmt17"
    assert data.distractor_identity is None
    assert data.counts() == [
        SplitCounts("train", 45, 3, 15, 0, 0),
        SplitCounts("query", 2, 2, 2, 0, 0),
        SplitCounts("gallery", 45, 3, 15, 0, 0),
    ]
    assert data.query.cameras.tolist() == [10, 1]


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("market-1501", "market1501"),
        ("CUHK03_detected", "cuhk03-detected"),
        ("msmt17_v2", "msmt17"),
        ("office", "market-like"),
    ],
)
def test_names_of_market_like_folders(tmp_path, folder, expected):
    people = [(i, c) for i in (1, 2) for c in (1, 2)]
    assert open_dataset(write_market(tmp_path / folder, people, people, people)).name == expected


def test_known_by_its_identities_and_cameras(tmp_path):
    train = [(i, i % 2 + 1) for i in range(1, 768)]
    root = write_market(tmp_path / "x", train, [(900, 1)], [(900, 2)], "{:04d}_c{}_{}.png")
    assert open_dataset(root).name == "cuhk03-labeled"


def folders(root: Path, people: dict[str, list[str]]) -> Path:
    touch(root, *(f"{person}/{file}" for person, files in people.items() for file in files))
    return root


PEOPLE = {
    "Ägypten": ["c1_0001.jpg", "c2_0001.JPG", "IMG_C12_7.Png"],
    "anna": ["c1_a.jpeg", "x-c2.jpg"],
    "Łukasz": ["c3_ß.jpg"],
    "山田": ["c1_1.jpg", "c1_2.jpg", "c10_1.jpg"],
}


def test_folder_per_identity(tmp_path):
    folders(tmp_path, PEOPLE)
    touch(tmp_path, "notes.txt", "__MACOSX/anna/c1.jpg", ".git/c1_1.jpg", "anna/.c1_hidden.jpg")
    data = open_dataset(tmp_path)
    assert data.name == "own images"
    assert data.train.paths == (  # sorted by character
        "anna/c1_a.jpeg",
        "anna/x-c2.jpg",
        "Ägypten/IMG_C12_7.Png",
        "Ägypten/c1_0001.jpg",
        "Ägypten/c2_0001.JPG",
        "Łukasz/c3_ß.jpg",
    )
    assert data.train.cameras.tolist() == [1, 2, 12, 1, 2, 3]
    assert data.train.labels.tolist() == [0, 0, 1, 1, 1, 2]
    assert data.gallery.paths == ("山田/c10_1.jpg", "山田/c1_1.jpg", "山田/c1_2.jpg")
    assert data.query.paths == ("山田/c10_1.jpg", "山田/c1_1.jpg")
    assert data.valid_queries().all()
    assert all(data.train.file(n).is_file() for n in range(6))


def test_every_fourth_identity_is_held_out_and_numbers_are_kept(tmp_path):
    people = {f"{i:04d}": ["c1_1.jpg", "c2_1.jpg"] for i in range(3, 12)}
    data = open_dataset(folders(tmp_path, people))
    assert sorted(set(data.query.identities.tolist())) == [6, 10]
    assert sorted(set(data.train.identities.tolist())) == [3, 4, 5, 7, 8, 9, 11]


def test_numbers_that_mean_the_same_stay_two_people(tmp_path):
    data = open_dataset(folders(tmp_path, {n: ["c1.jpg", "c2.jpg"] for n in ("1", "01", "2", "3")}))
    assert len(np.unique(data.train.identities)) == 3


def test_train_query_gallery_folders(tmp_path):
    folders(tmp_path / "Train", {"a": ["c1_.jpg"], "b": ["c2_.jpg"]})
    folders(tmp_path / "query", {"z": ["c1_.jpg"]})
    folders(tmp_path / "gallery", {"z": ["c2_.jpg"], "y": ["c2_.jpg"]})
    data = open_dataset(tmp_path)
    assert data.train.paths == ("Train/a/c1_.jpg", "Train/b/c2_.jpg")
    assert data.query.identities.tolist() == [4]
    assert data.gallery.identities.tolist() == [3, 4]
    assert data.valid_queries().tolist() == [True]
    (tmp_path / "gallery").rename(tmp_path / "Test")
    assert open_dataset(tmp_path).gallery.paths == ("Test/y/c2_.jpg", "Test/z/c2_.jpg")


def test_one_camera_warns_that_no_query_is_valid(tmp_path):
    folders(tmp_path, {name: ["1.jpg", "car_c4x.jpg", "abc5.jpg"] for name in "abcd"})
    with pytest.warns(UserWarning, match=r"no valid query remains.*\(1 in all\)"):
        data = open_dataset(tmp_path)
    assert set(data.train.cameras.tolist()) == {1}
    assert any("1 of 1 will be skipped" in problem for problem in dataset_report(data).problems)


def test_cameras_in_some_names_only(tmp_path):
    folders(tmp_path, {**PEOPLE, "zoe": ["portrait.jpg"]})
    with pytest.raises(ValueError, match=r"got none in 1 of 10") as error:
        open_dataset(tmp_path)
    assert str(tmp_path / "zoe" / "portrait.jpg") in str(error.value)


def test_fewer_identities_than_needed(tmp_path):
    folders(tmp_path, {name: ["c1_.jpg"] for name in "abc"})
    with pytest.raises(ValueError, match=r"at least 4 identities .*, got a, b, c"):
        open_dataset(tmp_path)
    folders(tmp_path, {"d": ["c1_.jpg", "c2_.jpg"]})
    data = open_dataset(tmp_path)
    (problem,) = [p for p in dataset_report(data).problems if "batch" in p]
    assert problem.startswith("train: 3 identities, but a batch of the published recipe takes 16")
    with pytest.raises(ValueError, match="only 3; lower identities_per_batch"):
        IdentitySampler(data.train.labels, 16)


def test_identity_folder_without_images(tmp_path):
    folders(tmp_path, PEOPLE)
    touch(tmp_path, "empty/monday/1.jpg")
    with pytest.raises(ValueError, match=r"empty: no images .* folders monday are not named like"):
        load_folders(tmp_path)


ROWS = [
    "images/ä b.JPG,Änne,Eingang,train",
    "images/2.jpg,Bob,Hof,train",
    "images/3.jpg,Carl,Hof,query",
    '"images/4, neu.png",Carl,Eingang,gallery',
]


def write_csv(root: Path, rows=ROWS, header="path,identity,camera,split", encoding="utf-8") -> Path:
    touch(root / "images", "ä b.JPG", "2.jpg", "3.jpg", "4, neu.png")
    path = root / "people.csv"
    path.write_bytes("\r\n".join([header, *rows, ""]).encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_csv(tmp_path, encoding):
    path = write_csv(tmp_path / "here", encoding=encoding)
    for data in (open_dataset(path), open_dataset(tmp_path / "here"), load_csv(path)):
        assert data.train.paths == ("images/2.jpg", "images/ä b.JPG")
        assert data.train.identities.tolist() == [1, 3]  # Bob, Carl, Änne
        assert data.train.cameras.tolist() == [2, 1]
        assert data.gallery.paths == ("images/4, neu.png",)
        assert data.query.identities.tolist() == data.gallery.identities.tolist() == [2]
        assert data.train.file(1).is_file()
    (tmp_path / "here").rename(tmp_path / "moved")
    assert open_dataset(tmp_path / "moved").train.file(1).is_file()


def test_csv_columns_in_any_order_and_backslashes(tmp_path):
    rows = [
        r"train,9,1,images\2.jpg,x",
        r"train,7,2,images\3.jpg,",
        r"query,8,1,images\2.jpg,",
        r"gallery,8,12,images\3.jpg,",
    ]
    path = write_csv(tmp_path, rows, header="split,identity,camera,path,remark")
    data = open_dataset(path)
    assert data.train.identities.tolist() == [9, 7]
    assert data.gallery.cameras.tolist() == [12]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("images/2.jpg,,1,train", "line 6: expected .*, got no identity"),
        ("images/2.jpg,Bob", "line 6: expected .*, got no split"),
        ("images/2.jpg,Bob,,train", r"images/2\.jpg: expected a camera .*, got none in 1 of 5"),
        (
            "images/2.jpg,Bob,1,exam",
            "line 6: split must be one of train, query, gallery, test, got",
        ),
    ],
)
def test_csv_wrong_line_is_named(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        open_dataset(write_csv(tmp_path, [*ROWS, row]))


def test_csv_missing_files_splits_and_columns(tmp_path):
    path = write_csv(tmp_path, [*ROWS, "images/5.jpg,Bob,1,train"])
    with pytest.raises(FileNotFoundError, match=r"people\.csv: 1 of the 5 images.*5\.jpg"):
        open_dataset(path)
    write_csv(tmp_path, ROWS[:3])
    with pytest.warns(UserWarning, match=r"people\.csv: no gallery images: nothing can be eval"):
        open_dataset(path)
    write_csv(tmp_path, ROWS[1:])
    with pytest.raises(ValueError, match=r"people\.csv: training needs .* got only identity 1"):
        open_dataset(path)
    write_csv(tmp_path, [], header="path|identity|camera|split")
    with pytest.raises(
        ValueError, match=r"in the first line .*, got path\|identity\|camera\|split"
    ):
        open_dataset(path)
    write_csv(tmp_path, [])
    for where in (path, tmp_path):
        with pytest.raises(ValueError, match="a row per image after the header, got none"):
            open_dataset(where)
    write_csv(tmp_path, [], header="")
    with pytest.raises(ValueError, match="got an empty file"):
        open_dataset(path)
    write_csv(tmp_path, encoding="cp1252")
    with pytest.raises(ValueError, match="expected UTF-8, got byte 0xe4"):
        open_dataset(path)


def test_a_stray_csv_does_not_hide_the_folders(tmp_path):
    folders(tmp_path, PEOPLE)
    (tmp_path / "notes.csv").write_text("date,weather\n")
    assert open_dataset(tmp_path).layout.startswith("a folder per identity")


def test_somebody_who_trains_and_tests_is_reported(tmp_path):
    rows = [*ROWS, "images/2.jpg,Bob,Eingang,gallery"]
    with pytest.warns(
        UserWarning, match="1 identities are in training and test images, the first is Bob"
    ):
        open_dataset(write_csv(tmp_path, rows))


def test_joined_training_keeps_people_and_cameras_apart(tmp_path):
    pairs = [(i, c) for i in (1, 5) for c in (1, 2)]
    market = open_dataset(write_market(tmp_path / "a" / "market1501", pairs, pairs, pairs))
    msmt = open_dataset(write_msmt(tmp_path / "b" / "MSMT17_V1"))
    own = open_dataset(folders(tmp_path / "own", PEOPLE))
    joined = join_training([market, msmt, own])
    train = joined.train
    assert joined.name == "market1501 + msmt17 + own images"
    assert joined.query is market.query
    assert joined.gallery is market.gallery
    assert len(train) == 4 + 13 + 6
    assert all(train.file(n).is_file() for n in range(len(train)))
    assert train.root == tmp_path
    assert train.paths[0] == "a/market1501/bounding_box_train/0001_c1_0.jpg"
    origin = np.repeat([0, 1, 2], [4, 13, 6])
    for numbers in (train.identities, train.cameras):
        assert len(np.unique(numbers)) == len(np.unique(np.stack([numbers, origin]), axis=1).T)
    assert train.identities[:4].tolist() == market.train.identities.tolist()
    assert train.cameras[:4].tolist() == market.train.cameras.tolist()
    people = [set(train.labels[origin == n].tolist()) for n in range(3)]
    assert [len(group) for group in people] == [2, 3, 3]
    assert len(set.union(*people)) == 8
    assert len(next(iter(IdentitySampler(train.labels, 8, 2)))) == 16


def test_join_of_one_of_none_and_twice(tmp_path, monkeypatch):
    msmt = open_dataset(write_msmt(tmp_path / "MSMT17_V1"))
    assert join_training([msmt]) is msmt
    with pytest.raises(ValueError, match="at least one data set"):
        join_training([])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="MSMT17_V1 is given twice"):
        join_training([msmt, open_dataset("MSMT17_V1")])


def test_joined_relative_folders(tmp_path, monkeypatch):
    write_msmt(tmp_path / "MSMT17_V1")
    folders(tmp_path / "own", PEOPLE)
    monkeypatch.chdir(tmp_path)
    train = join_training([open_dataset("own"), open_dataset(tmp_path / "MSMT17_V1")]).train
    assert all(train.file(n).is_file() for n in range(len(train)))


def test_report_of_a_known_set_in_full_size(tmp_path):
    """CUHK03-NP labeled at its published size with made-up names, then with an image missing."""
    root = tmp_path / "cuhk03-np" / "labeled"
    touch(tmp_path, "image")

    def write(folder: str, people: range, count: int, suffix: str = ".png") -> None:
        (root / folder).mkdir(parents=True)
        for n, i in enumerate(np.resize(people, count)):  # links are made faster than files
            name = f"{i:04d}_c{n // len(people) % 2 + 1}_{n}{suffix}"
            os.link(tmp_path / "image", root / folder / name)

    write("bounding_box_train", range(1, 768), 7368)
    write("query", range(768, 1468), 1400)
    write("bounding_box_test", range(768, 1468), 5328)
    right = dataset_report(open_dataset(tmp_path))
    assert right.name == "cuhk03-labeled"
    assert right.problems == []
    assert right.rows[0].found == ("train", *right.rows[0].published)
    assert right.rows[2].published == (5328, 700, 2, 0, 0)

    (root / "bounding_box_train" / "0767_c1_766.png").unlink()
    wrong = dataset_report(open_dataset(tmp_path))
    assert wrong.problems == ["train: 7,367 images, published are 7,368"]
    assert wrong.errors == wrong.problems


def test_report_of_unknown_sets_compares_nothing(tmp_path):
    people = [(i, c) for i in range(1, 21) for c in (1, 2)]
    found = dataset_report(open_dataset(write_market(tmp_path / "office", people, people, people)))
    assert found.problems == []
    assert all(row.published is None for row in found.rows)
    assert found.rows[0] == (("train", 40, 20, 2, 0, 0), None)


def test_report_without_val_has_no_published_number_of_images(tmp_path):
    found = dataset_report(open_dataset(write_msmt(tmp_path), train_on_val=False))
    assert "train: 3 identities, published are 1,041" in found.problems
    assert not any(problem.startswith("train: 9 images") for problem in found.problems)
    assert "query: 3 images, published are 11,659" in found.problems


def test_report_of_single_images(tmp_path):
    found = dataset_report(open_dataset(folders(tmp_path, PEOPLE)))
    assert any("1 of 3 identities have a single image" in problem for problem in found.problems)


def test_good_data_warns_of_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_dataset(write_msmt(tmp_path / "a"))
        open_dataset(folders(tmp_path / "b", PEOPLE))
        open_dataset(write_csv(tmp_path / "c"))
