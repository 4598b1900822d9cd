"""Layouts, names and lists as they circulate: each is read with the right identities, cameras,
junk and split, or refused in a sentence."""

import os
from pathlib import Path

import numpy as np
import pytest

from rga_fast.reid.data.datasets import (
    SplitCounts,
    dataset_report,
    join_training,
    load_pattern,
    open_dataset,
)


def touch(root: Path, *files: str) -> Path:
    """Files of no content: readers go by names."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def people(identities, folder="", *, cameras=(1, 2), name="{:04d}_c{}s1_000001_00.jpg"):
    """Market names, in `folder/<identity>/` if it is given."""
    return [
        (f"{folder}/{i:04d}/" if folder else "") + name.format(i, c)
        for i in identities
        for c in cameras
    ]


def test_flat_folder_of_market_names(tmp_path):
    data = open_dataset(touch(tmp_path, *people(range(1, 9)), *people([-1], name="-1_c1s1_0.jpg")))
    assert set(data.train.identities.tolist()) == {1, 2, 3, 5, 6, 7}
    assert data.query.identities.tolist() == [4, 4, 8, 8]
    assert data.gallery.cameras.tolist() == [1, 2, 1, 2]
    assert data.gallery.dropped == 1  # both names of junk are one file
    assert data.valid_queries().all()
    assert "no split is given: 6 identities train, every 4th is held out (2)" in data.notes[0]


def test_flat_folder_of_mars_names(tmp_path):
    names = [f"{i:04d}C{c}T0001F{f:03d}.jpg" for i in range(1, 5) for c in (1, 6) for f in (1, 2)]
    data = open_dataset(touch(tmp_path, *names, "00-1C1T0001F001.jpg"))
    assert set(data.train.identities.tolist()) == {1, 2, 3}
    assert data.gallery.cameras.tolist() == [1, 1, 6, 6]
    assert data.query.paths == ("0004C1T0001F001.jpg", "0004C6T0001F001.jpg")
    assert data.gallery.dropped == 1


@pytest.mark.parametrize("test", ["val", "test", "Validation"])
def test_train_and_val_with_a_folder_per_identity(tmp_path, test):
    data = open_dataset(touch(tmp_path, *people((1, 2), "train"), *people((3, 4), test)))
    assert data.counts() == [
        SplitCounts("train", 4, 2, 2, 0, 0),
        SplitCounts("query", 4, 2, 2, 0, 0),
        SplitCounts("gallery", 4, 2, 2, 0, 0),
    ]
    assert "the 4 queries are the first image of each test identity and camera" in data.notes


def test_pytorch_layout_drops_junk_and_keeps_distractors(tmp_path):
    """A much-used baseline's copy of Market-1501. Junk as wrong matches would lower every score."""
    files = [*people((2, 7), "train"), *people((2,), "train_all"), *people((7,), "train_all")]
    files += [*people((2, 7), "val", cameras=[1]), *people((3,), "query")]
    files += [*people((3,), "gallery"), "gallery/-1/-1_c1s1_0.jpg", "gallery/-1/-1_c2s1_0.jpg"]
    files += ["gallery/0000/0000_c3s1_0.jpg", "multi-query/0003/0003_c1s1_0.jpg"]
    touch(tmp_path / "pytorch", *files)
    for root in (tmp_path, tmp_path / "pytorch"):
        data = open_dataset(root)
        assert data.counts() == [
            SplitCounts("train", 4, 2, 2, 0, 0),
            SplitCounts("query", 2, 1, 2, 0, 0),
            SplitCounts("gallery", 3, 1, 3, 1, 2),
        ]
        assert data.distractor_identity == 0
        assert data.train.paths[0].startswith("train_all/")
        assert "3 not read: multi-query/, train/, val/" in data.notes[0]


def test_mars_tracklets(tmp_path):
    def frames(part, person, cameras=(1, 2)):
        names = [f"{person}C{c}T0001F{f:03d}.jpg" for c in cameras for f in (1, 2)]
        return [f"{part}/{person}/{name}" for name in names]

    files = [*frames("bbox_train", "0001"), *frames("bbox_train", "0003", (5, 6))]
    files += [*frames("bbox_test", "0002"), *frames("bbox_test", "00-1"), "info/query_IDX.mat"]
    files += frames("bbox_test", "0000", [3])
    data = open_dataset(touch(tmp_path, *files))
    assert data.name == "mars"
    assert data.counts() == [
        SplitCounts("train", 8, 2, 4, 0, 0),
        SplitCounts("query", 2, 1, 2, 0, 0),
        SplitCounts("gallery", 6, 1, 3, 2, 4),
    ]
    assert data.valid_queries().all()


@pytest.mark.slow
def test_dukemtmc_in_full_size(tmp_path):
    """The published counts, on a tree of the published size with made-up names."""
    root = tmp_path / "DukeMTMC-reID"
    touch(tmp_path, "image")

    def write(folder: str, identities: np.ndarray) -> None:
        (root / folder).mkdir(parents=True)
        for n, identity in enumerate(identities.tolist()):  # links are made faster than files
            name = f"{identity:04d}_c{n % 8 + 1}_f{n:07d}.jpg"
            os.link(tmp_path / "image", root / folder / name)

    write("bounding_box_train", np.resize(np.arange(1, 703), 16522))
    write("query", np.resize(np.arange(1001, 1703), 2228))
    write("bounding_box_test", np.resize(np.arange(1001, 2111), 17661))
    report = dataset_report(open_dataset(tmp_path))
    assert report.name == "dukemtmc"
    assert [row.found.images for row in report.rows] == [16522, 2228, 17661]
    assert [row.found.identities for row in report.rows] == [702, 702, 1110]
    assert report.problems == []


PATTERN = r"(?P<identity>\d{4})(?P<camera>\d{3})"


def test_any_naming_by_a_pattern(tmp_path):
    names = [f"campus/{i:04d}{c:03d}.png" for i in range(1, 6) for c in (1, 2)]
    data = open_dataset(touch(tmp_path, *names, "campus/notes.txt", "map.png"), pattern=PATTERN)
    assert data.train.identities.tolist() == [1, 1, 2, 2, 3, 3, 5, 5]
    assert data.train.cameras.tolist() == [1, 2] * 4
    assert data.query.paths == ("campus/0004001.png", "campus/0004002.png")
    assert "2 not read: campus/notes.txt, map.png" in data.notes[0]
    assert "4 identities train, every 4th is held out (1)" in data.notes[1]


def test_a_pattern_with_a_slash_reads_the_path_and_folders_of_splits_divide(tmp_path):
    files = [f"{part}/cam_{c}/{i}.bmp" for part, i in (("train", 1), ("train", 2)) for c in "ab"]
    files += [f"test/cam_{c}/3.bmp" for c in "ab"]
    pattern = r"cam_(?P<camera>[ab])/(?P<identity>\d+)"
    data = open_dataset(touch(tmp_path, *files), pattern=pattern)
    assert data.train.identities.tolist() == [1, 2, 1, 2]
    assert data.train.cameras.tolist() == [1, 1, 2, 2]
    assert data.gallery.identities.tolist() == [3, 3]
    assert data.valid_queries().all()


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(?P<identity", "pattern: not a regular expression"),
        (r"\d+", r"pattern: expected the groups \(\?P<identity>"),
        (r"(?P<identity>\d)(?P<cam>\d)", "pattern: expected the groups"),
        (r"(?P<identity>x\d)", "no image matches the pattern .* the first image is 0001_c1s1"),
    ],
)
def test_wrong_patterns(tmp_path, pattern, message):
    with pytest.raises(ValueError, match=message):
        load_pattern(touch(tmp_path, *people(range(1, 5))), pattern)


@pytest.mark.parametrize(
    "word", ["c{}", "C{}", "cam{}", "Cam{}", "camera{}", "camera_{}", "cam-{}"]
)
def test_words_for_cameras(tmp_path, word):
    files = [f"{p}/x_{word.format(c)}_1.jpg" for p in "abcd" for c in (1, 12)]
    data = open_dataset(touch(tmp_path / "own", *files))
    assert sorted(data.train.cameras.tolist()) == [1] * 3 + [12] * 3
    names = [f"bounding_box_train/000{i}_{word.format(c)}s2_9.jpg" for i in (1, 2) for c in (3, 12)]
    with pytest.warns(UserWarning, match="no query and no gallery images"):
        data = open_dataset(touch(tmp_path / "market", *names))
    assert sorted(data.train.cameras.tolist()) == [3, 3, 12, 12]


@pytest.mark.parametrize("form", ["{p}/{c}/1.jpg", "{c}/{p}/1.jpg"])
@pytest.mark.parametrize(("one", "two"), [("cam1", "cam2"), ("C1", "C2"), ("camera_a", "camera_B")])
def test_a_folder_per_camera(tmp_path, form, one, two):
    files = [form.format(p=p, c=c) for p in ("ann", "bob", "cid", "dee") for c in (one, two)]
    data = open_dataset(touch(tmp_path, *files))
    assert sorted(
        zip(data.train.identities.tolist(), data.train.cameras.tolist(), strict=True)
    ) == [(i, c) for i in (1, 2, 3) for c in (1, 2)]
    assert data.valid_queries().tolist() == [True, True]


def test_suffixes_and_what_is_not_read(tmp_path):
    kinds = ("JPG", "bmp", "WebP", "tif", "TIFF", "jfif", "jpe", "Png")
    files = [f"{p}/c{n}.{kind}" for p in "abcd" for n, kind in enumerate(kinds, start=1)]
    touch(tmp_path, *files, "a/c1.heic", "b/Thumbs.db", "c/.c1.jpg", "d/info.txt", "plan.jpg")
    (tmp_path / "a" / "c3.jpg").mkdir()
    (tmp_path / "a" / "c4.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "a" / "c5.jpg").symlink_to("c5.jpg")
    data = open_dataset(tmp_path)
    assert len(data.train) == 3 * len(kinds)
    found = {*data.train.cameras.tolist()}
    assert found == set(range(1, 9))
    assert "6 not read: a/c1.heic, a/c3.jpg/, a/c4.jpg, ..." in data.notes[0]
    assert any("6 not read" in remark for remark in dataset_report(data).remarks)


def test_a_folder_that_links_to_itself(tmp_path):
    touch(tmp_path, *(f"x/{i:04d}001.png" for i in range(1, 5)))
    (tmp_path / "x" / "again").symlink_to(tmp_path / "x")
    with pytest.warns(UserWarning, match="nothing can be evaluated"):
        assert len(open_dataset(tmp_path, pattern=PATTERN).train) == 3


def csv(root: Path, text: str, encoding="utf-8") -> Path:
    touch(root, *(f"{n}.jpg" for n in range(1, 9)), "a b, c.jpg")
    path = root / "list.csv"
    path.write_bytes(text.encode(encoding))
    return path


EXCEL = "Path;Identity;CAMERA;Split\r\n1.jpg;12;1;Train\r\n2.jpg;13;1;train\r\n"
EXCEL += "3.jpg;14;1;query\r\n4.jpg;14;2;test\r\n;;;\r\n\r\n"
PANDAS = "path,identity,camera,split,score\n1.jpg,12.0,1.0,train,\n2.jpg,13.0,1,train,0.5\n"
PANDAS += "3.jpg,14.0,1.0,query,\n4.jpg,14,2,gallery,\n"
TABS = "split\tpath\tidentity\tcamera\ntrain\t1.jpg\t12\t01\ntrain\t2.jpg\t13\t1\n"
TABS += "query\t3.jpg\t14\t1\ngallery\t4.jpg\t14\t2\n"
SPACES = 'path, identity, camera, split\n1.jpg, 12, 1, train\n"2.jpg", "13", "1", train\n'
SPACES += '3.jpg, 14, 1, query\n4.jpg, 14, 2, "gallery"\n'


@pytest.mark.parametrize("text", [EXCEL, PANDAS, TABS, SPACES])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_csv_as_programs_write_it(tmp_path, text, encoding):
    data = open_dataset(csv(tmp_path, text, encoding))
    assert data.train.identities.tolist() == [12, 13]
    assert data.train.cameras.tolist() == [1, 1]
    assert data.query.identities.tolist() == data.gallery.identities.tolist() == [14]
    assert (data.query.cameras.tolist(), data.gallery.cameras.tolist()) == ([1], [2])


def test_camera_1_and_1_point_0_are_one(tmp_path):
    """As two cameras they would let a query find its own camera's images."""
    rows = "1.jpg,1,1,train\n2.jpg,2,1,train\n3.jpg,3,1,query\n4.jpg,3,1.0,test\n5.jpg,3,01,test\n"
    with pytest.warns(UserWarning, match=r"no valid query remains.*\(1 in all\)"):
        data = open_dataset(csv(tmp_path, f"path,identity,camera,split\n{rows}"))
    assert not data.valid_queries().any()


def test_csv_without_split_or_camera(tmp_path):
    rows = "".join(f"{n}.jpg,p{(n + 1) // 2},{n % 2}\n" for n in range(1, 9))
    data = open_dataset(csv(tmp_path, f"path,identity,camera\n{rows}"))
    assert (len(data.train), len(data.query), len(data.gallery)) == (6, 2, 2)
    rows = rows.replace(",0\n", "\n").replace(",1\n", "\n")
    with pytest.warns(UserWarning, match="nothing can be evaluated"):
        data = open_dataset(csv(tmp_path, f"path,identity\n{rows}"))
    assert set(data.train.cameras.tolist()) == {1}


def test_a_quote_that_is_not_closed(tmp_path):
    rows = 'path,identity,camera,split\n"1.jpg,1,1,train\n2.jpg,2,1,train\n'
    with pytest.raises(ValueError, match=r"list\.csv, line 3: .*is a quote not closed\?") as error:
        open_dataset(csv(tmp_path, rows))
    assert "\n" not in str(error.value)


def test_junk_and_distractors_in_a_csv(tmp_path):
    rows = "1.jpg,1,1,train\n2.jpg,2,1,train\n3.jpg,3,1,query\n4.jpg,3,2,test\n"
    rows += "5.jpg,-1,2,test\n6.jpg,0,2,test\n7.jpg,-1.0,1,test\n"
    data = open_dataset(csv(tmp_path, f"path,identity,camera,split\n{rows}"))
    assert data.counts()[2] == SplitCounts("gallery", 2, 1, 1, distractors=1, dropped=2)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_msmt17_lists_with_a_mark_and_crlf(tmp_path, end):
    name = "{0:04d}/{0:04d}_000_{1:02d}_0303morning_0008_0.jpg"
    for number, part in enumerate(("train", "val", "query", "gallery")):
        files = [name.format(i, number % 3 + i + 1) for i in (0, 1)]
        touch(tmp_path / ("train" if number < 2 else "test"), *files)
        lines = "".join(f"{file}\t{i}{end}" for i, file in enumerate(files))
        (tmp_path / f"list_{part}.txt").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    data = open_dataset(tmp_path)
    assert data.name == "msmt17"
    assert data.train.identities.tolist() == [0, 0, 1, 1]
    assert all(data.train.file(n).is_file() for n in range(4))


def test_the_same_set_through_a_link_or_a_list_is_refused(tmp_path):
    touch(tmp_path / "real", *people(range(1, 5)))
    (tmp_path / "link").symlink_to(tmp_path / "real")
    datasets = [open_dataset(tmp_path / name) for name in ("real", "link")]
    with pytest.raises(ValueError, match="link is given twice"):
        join_training(datasets)
    rows = "".join(f"real/{file},{file[:4]},{file[6]}\n" for file in people(range(1, 5)))
    (tmp_path / "all.csv").write_text(f"path,identity,camera\n{rows}")
    with pytest.raises(ValueError, match="is given twice"):
        join_training([datasets[0], open_dataset(tmp_path / "all.csv")])


def test_train_on_one_set_and_evaluate_on_another(tmp_path):
    market = [f"query/{name}" for name in people([9])]
    market += [f"bounding_box_test/{name}" for name in people([9])]
    tested = open_dataset(touch(tmp_path / "tested", *market))
    trained = open_dataset(touch(tmp_path / "trained", *people(range(1, 5))))
    data = join_training([tested, trained])
    assert (len(data.train), len(data.query)) == (6, 2)
    with pytest.raises(ValueError, match="tested: no training images"):
        join_training([trained, tested])


def test_names_that_show_no_identity(tmp_path):
    touch(tmp_path, "holiday 1.jpg", "holiday 2.jpg")
    with pytest.raises(
        ValueError, match=r"2 images, but their names .* is holiday 1\.jpg\..*--pat"
    ):
        open_dataset(tmp_path)
    touch(tmp_path, "0001_c1_1.jpg")
    with pytest.raises(ValueError, match=r"holiday 1\.jpg: expected a name with identity and cam"):
        open_dataset(tmp_path)
