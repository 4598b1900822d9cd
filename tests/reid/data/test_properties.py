"""Trees, lists and files made at random, whole and broken, are held to one rule: they are read with
the right identities and cameras, every file accounted for, or refused in one line that names them.

RGA_FAST_EXAMPLES is the number of examples of each test, for a long run.
"""

import io
import os
import re
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from rga_fast import cli
from rga_fast.reid.data.datasets import dataset_report, read_dataset
from rga_fast.reid.data.datasets.listing import IMAGE_SUFFIXES
from rga_fast.reid.data.images import read_image

often = settings(
    max_examples=int(os.environ.get("RGA_FAST_EXAMPLES", "15")),
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

SUFFIXES = st.sampled_from([*IMAGE_SUFFIXES, ".JPG", ".Png"])
NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="/\\", exclude_categories=["C", "Z"]),
    min_size=1,
    max_size=12,
).filter(lambda name: not name.startswith((".", "__")))


def market_name(identity, camera, frame):
    return f"{identity:04d}_c{camera}s1_{frame:06d}_00"


LAYOUTS = {  # a format of (identity, camera, frame), and whether parts are folders of splits
    "flat": lambda i, c, f: market_name(i, c, f),
    "mars": lambda i, c, f: f"{i:04d}C{c}T0001F{f:03d}",
    "people": lambda i, c, f: f"{i:04d}/cam{c}_{f}",
    "people, then cameras": lambda i, c, f: f"{i:04d}/camera_{c}/{f}",
    "cameras, then people": lambda i, c, f: f"C{c}/{i:04d}/{f}",
}
PARTS = {
    "market": ("bounding_box_train/", "query/", "bounding_box_test/"),
    "own": ("train/", "query/", "gallery/"),
    "test": ("Train/", "probe/", "test/"),
}


@st.composite
def trees(draw):
    """{path: (part, identity, camera)} of a layout, and its parts."""
    layout = draw(st.sampled_from(list(LAYOUTS)))
    parts = draw(st.sampled_from([("",), *PARTS.values()]))
    if parts == PARTS["market"]:
        layout = "flat"
    suffix = draw(SUFFIXES)
    files = {}
    for number, part in enumerate(parts):
        least = 5 if part == "" else 2
        first = 1 if number == 0 else 101  # people who train are not those who test
        for identity in range(first, first + draw(st.integers(least, least + 3))):
            for camera in draw(st.sets(st.integers(1, 12), min_size=1, max_size=3)):
                for frame in range(1, 1 + draw(st.integers(1, 2))):
                    path = f"{part}{LAYOUTS[layout](identity, camera, frame)}{suffix}"
                    files[path] = (part, identity, camera)
    return files, parts


def write(root, files):
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()


def read(root):
    """The data set at `root`; None if it is refused, in one line that names the folder."""
    before = snapshot(root)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            data = read_dataset(root)
        dataset_report(data)
    except (ValueError, OSError) as error:
        is_one_line(error, str(root))
        data = None
    assert snapshot(root) == before  # nothing is written
    return data


def is_one_line(error, name):
    assert name in str(error)
    assert len(str(error).splitlines()) == 1


def snapshot(root):
    return sorted(str(path) for path in root.rglob("*"))


def records(data):
    """{path: (identity, camera)} of all splits; a path has the same ones in each."""
    found = {}
    for split in (data.train, data.query, data.gallery):
        for path, identity, camera in zip(
            split.paths, split.identities.tolist(), split.cameras.tolist(), strict=True
        ):
            assert found.setdefault(path, (identity, camera)) == (identity, camera)
    return found


@often
@given(trees())
def test_whole_trees_are_read(tree):
    files, parts = tree
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write(root, files)
        data = read(root)
    assert records(data) == {path: found[1:] for path, found in files.items()}
    if len(parts) == 3:
        for split, part in zip((data.train, data.query, data.gallery), parts, strict=True):
            assert set(split.paths) == {path for path, found in files.items() if found[0] == part}
    else:
        assert not set(data.train.paths) & {*data.query.paths, *data.gallery.paths}
        assert set(data.query.paths) <= set(data.gallery.paths)


STRANGE = st.one_of(
    st.builds("{}{}".format, NAMES, SUFFIXES),
    st.builds("{}/{}".format, NAMES, NAMES),
    st.builds("-1_c{}s1_000001_00.jpg".format, st.integers(1, 9)),
    st.builds("0000_c{}s1_000001_00.jpg".format, st.integers(1, 9)),
    st.sampled_from(
        ["readme.txt", "a.heic", "Thumbs.db", "list.csv", "list_train.txt", "-1/x.jpg"]
    ),
)


@often
@given(trees(), st.lists(STRANGE, min_size=1, max_size=4), st.data())
def test_no_file_of_a_broken_tree_is_lost_or_misread(tree, strange, data_):
    """Strange files among the others, some of which are missing."""
    files, parts = tree
    gone = data_.draw(st.sets(st.sampled_from(sorted(files)), max_size=4))
    added = [data_.draw(st.sampled_from(parts)) + name for name in strange]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write(root, set(files) - gone)
        for name in added:
            try:
                write(root, [name])
            except OSError:  # a file where a folder should be
                return
        present = {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()}
        data = read(root)
    if data is None:
        return
    found = records(data)
    assert set(found) <= present
    for field in (0, 1):  # numbered anew where strange names are among them, but never mixed up
        pairs = {(files[path][field + 1], found[path][field]) for path in set(found) & set(files)}
        assert len(pairs) == len({made for made, _ in pairs}) == len({seen for _, seen in pairs})
    dropped = sum(split.dropped for split in (data.train, data.query, data.gallery))
    if len(found) + dropped < len(set(files) - gone):
        assert any("not read" in note for note in data.notes)


CELLS = st.one_of(st.sampled_from(["1", "1.0", "-1", "0", "train", "", '"', "x"]), NAMES)
CSV_HEADERS = ("path", "identity", "camera", "split")


@st.composite
def csv_files(draw):
    """The text of a valid CSV file, and what it says: {path: (split, identity, camera)}."""
    delimiter = draw(st.sampled_from(",;\t"))
    order = draw(st.permutations(CSV_HEADERS))
    space = draw(st.sampled_from(["", " "]))
    decimals = draw(st.sampled_from(["", ".0"]))
    said = {}
    for number in range(draw(st.integers(3, 8))):
        split = ("train", "query", "gallery")[min(number // 2, 2)]
        identity = number + 1 if split == "train" else draw(st.integers(20, 22))
        said[f"{number}.jpg"] = (split, identity, draw(st.integers(1, 3)))
    lines = [[draw(st.sampled_from([str.upper, str.title, str]))(name) for name in order]]
    for path, (split, identity, camera) in said.items():
        part = draw(st.sampled_from(["test", "Gallery"])) if split == "gallery" else split
        quoted = draw(st.sampled_from(["{}", '"{}"']))
        values = {"path": quoted.format(path), "identity": f"{identity}{decimals}"}
        values |= {"camera": f"{camera}{draw(st.sampled_from(['', '.0']))}", "split": part}
        lines.append([values[name] for name in order])
    lines += [[""] * 4] * draw(st.integers(0, 2))
    end = draw(st.sampled_from(["\n", "\r\n"]))
    text = "".join((delimiter + space).join(line) + end for line in lines)
    return draw(st.sampled_from(["", "\ufeff"])) + text, said


@often
@given(csv_files())
def test_whole_lists_are_read(made):
    text, said = made
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write(root, said)
        (root / "list.csv").write_bytes(text.encode())
        data = read(root)
    for name in ("train", "query"):
        split = getattr(data, name)
        expected = {path: found for path, found in said.items() if found[0] == name}
        found = zip(split.paths, split.identities.tolist(), split.cameras.tolist(), strict=True)
        if name == "train" or expected:
            assert {p: (name, i, c) for p, i, c in found} == expected


@often
@given(csv_files(), st.data())
def test_broken_lists_are_read_or_named(made, data_):
    text, said = made
    content = bytearray(text.encode())
    for _ in range(data_.draw(st.integers(1, 4))):
        place = data_.draw(st.integers(0, len(content)))
        length = data_.draw(st.integers(0, 5))
        content[place : place + length] = data_.draw(
            st.one_of(st.binary(max_size=4), CELLS.map(str.encode))
        )
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write(root, said)
        (root / "list.csv").write_bytes(content)
        data = read(root)
    if data is not None:
        assert set(records(data)) <= set(said)


MSMT = "{0:04d}/{0:04d}_{2:03d}_{1:02d}_0303morning_0008_0.jpg"


@often
@given(st.data())
def test_lists_of_msmt17(data_):
    """A line of one list is changed: the same images, or the list and its line are named."""
    lists = {}
    for number, name in enumerate(("train", "val", "query", "gallery")):
        lines = [(MSMT.format(i, c, number), i) for i in (0, 1) for c in (1, 15)]
        lists[name] = [f"{path} {identity}" for path, identity in lines]
    expected = {f"train/{line.split()[0]}" for line in lists["train"] + lists["val"]}
    changed = data_.draw(st.sampled_from(sorted(lists)))
    place = data_.draw(st.integers(0, 3))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name, lines in lists.items():
            part = "train" if name in ("train", "val") else "test"
            write(root / part, [line.split()[0] for line in lines])
        line = lists[changed][place]
        cut = data_.draw(st.integers(0, len(line)))
        lists[changed][place] = line[:cut] + data_.draw(NAMES | st.just("")) + line[cut:]
        for name, lines in lists.items():
            (root / f"list_{name}.txt").write_text("\r\n".join(lines), encoding="utf-8-sig")
        data = read(root)
    if data is not None:
        assert set(data.train.paths) == expected


def picture(kind):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 12, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind)
    return buffer.getvalue()


PICTURES = {kind: picture(kind) for kind in ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF")}


@often
@given(st.sampled_from(sorted(PICTURES)), st.data())
def test_damaged_images_are_pixels_or_a_line(kind, data_):
    content = bytearray(PICTURES[kind])
    for _ in range(data_.draw(st.integers(0, 6))):
        place = data_.draw(st.one_of(st.integers(0, 60), st.integers(0, len(content) - 1)))
        content[place % len(content)] = data_.draw(st.integers(0, 255))
    content = content[: data_.draw(st.one_of(st.none(), st.integers(0, len(content))))]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of odd tags
        path = Path(folder) / "a.jpg"
        path.write_bytes(content)
        try:
            pixels = read_image(path, (8, 4))
        except ValueError as error:
            is_one_line(error, f"{path}: not a readable image: ")
        else:
            assert (pixels.shape, pixels.dtype) == ((8, 4, 3), np.uint8)


@often
@given(st.lists(st.builds("{}{}".format, NAMES, SUFFIXES), max_size=5), st.text(max_size=20))
def test_patterns(names, pattern):
    """Any text as a pattern: read, or refused by name."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), names)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read_dataset(folder, pattern=f"(?P<identity>{pattern})")
        except ValueError as error:
            is_one_line(error, "pattern: " if str(error).startswith("pattern: ") else folder)


@pytest.mark.parametrize("broken", [True, False])
def test_the_command_says_the_same(tmp_path, capsys, broken):
    """Status and lines of the command, for one tree of each kind."""
    write(tmp_path, [f"{market_name(i, c, 1)}.jpg" for i in range(1, 9) for c in (1, 2)])
    if broken:
        write(tmp_path, ["holiday.jpg"])
    assert cli.main(["data", str(tmp_path)]) == int(broken)
    text = capsys.readouterr()
    assert bool(text.err) == broken
    if broken:
        assert re.fullmatch(r"rga-fast: error: .*holiday\.jpg.*\n", text.err)
