"""Image files as they are met: odd ones are read, others are named in one line or left out."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from small_runs import SMALL, rows, run

from rga_fast.reid.data.damaged import damaged_images, without_damaged
from rga_fast.reid.data.datasets import open_dataset
from rga_fast.reid.data.images import read_image


def photo(height=40, width=20):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_beside_an_odd_tag(tmp_path, orientation):
    """Tag 282, a resolution, as text: writing the EXIF data back would fail."""
    entries = [(0x0112, 3, 1, orientation), (282, 2, 7, 38)]  # tag, type, count, value or its place
    exif = b"II*\x00\x08\x00\x00\x00\x02\x00" + b"".join(struct.pack("<HHII", *e) for e in entries)
    photo().save(tmp_path / "a.png", exif=b"Exif\x00\x00" + exif + bytes(4) + b"72 dpi\x00")
    turned = photo().height if orientation > 4 else photo().width
    size = (60 - turned, turned)
    upright = {
        1: lambda image: image,
        2: lambda image: image[:, ::-1],
        3: lambda image: image[::-1, ::-1],
        4: lambda image: image[::-1],
        5: lambda image: image.transpose(1, 0, 2),
        6: lambda image: np.rot90(image, -1),
        7: lambda image: np.rot90(image, 2).transpose(1, 0, 2),
        8: lambda image: np.rot90(image),
    }[orientation]
    expected = upright(np.asarray(photo()))
    assert np.array_equal(read_image(tmp_path / "a.png", size), expected)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_exif_data_that_cannot_be_parsed(tmp_path):
    photo().save(tmp_path / "a.jpg", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert read_image(tmp_path / "a.jpg", (40, 20)).shape == (40, 20, 3)


def test_a_phone_s_image_with_a_preview(tmp_path):
    photo().save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[photo(8, 4)])
    photo().save(tmp_path / "b.jpg")
    one, two = (read_image(tmp_path / name, (40, 20)) for name in ("a.jpg", "b.jpg"))
    assert np.array_equal(one, two)


def resized_png(width, height):
    """A small PNG whose header claims another size."""
    buffer = io.BytesIO()
    photo().save(buffer, format="PNG")
    content = bytearray(buffer.getvalue())
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def odd_files(folder):
    """Files that cannot be trained on, and a word of what is said of each."""
    frames = [photo(), photo().rotate(180)]
    frames[0].save(folder / "moving.jpg", format="GIF", save_all=True, append_images=frames[1:])
    Image.new("RGB", (1, 1)).save(folder / "dot.jpg")
    (folder / "huge.png").write_bytes(resized_png(20_000, 20_000))
    (folder / "empty.jpg").touch()
    (folder / "page.jpg").write_text("<html>")
    (folder / "folder.jpg").mkdir()
    (folder / "loop.jpg").symlink_to("loop.jpg")
    return {
        **{"moving.jpg": "an animation", "dot.jpg": "1 x 1 pixels", "huge.png": "400000000 pixels"},
        **{"empty.jpg": "not a readable image", "page.jpg": "not a readable image"},
        **{"folder.jpg": "Is a directory", "loop.jpg": "symbolic links"},
    }


def test_each_is_named_in_a_line(tmp_path):
    expected = odd_files(tmp_path)
    photo().save(tmp_path / "good.jpg")
    files = sorted(tmp_path.iterdir())
    found = damaged_images(files)
    assert {file.name for file in found} == set(expected)
    for file, sentence in found.items():
        assert sentence.startswith(f"{file}: ")
        assert expected[file.name] in sentence
        assert "\n" not in sentence


def test_a_file_without_permission(tmp_path, monkeypatch):
    """Root may read every file, so that the refusal is made here."""

    def refuse(*_):
        raise PermissionError(13, "Permission denied", str(tmp_path / "a.jpg"))

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(PermissionError):
        read_image(tmp_path / "a.jpg", (8, 4))
    (sentence,) = damaged_images([tmp_path / "a.jpg"]).values()
    assert sentence == f"{tmp_path / 'a.jpg'}: Permission denied"


@pytest.fixture
def people(tmp_path):
    """Eight people, two cameras, an image each."""
    root = tmp_path / "people"
    root.mkdir()
    for person in range(8):
        for camera in (1, 2):
            photo().save(root / f"000{person}_c{camera}.png")
    return root


def test_damaged_images_are_left_out(people):
    odd_files(people)
    for index, name in enumerate(("dot.jpg", "empty.jpg", "moving.jpg", "page.jpg")):
        (people / name).rename(people / f"000{index}_c{index}.jpg")
    (people / "huge.png").rename(people / "0009_c9.png")
    data, damaged = without_damaged(open_dataset(people))
    assert sorted(file.name for file in damaged) == [
        *("0000_c0.jpg", "0001_c1.jpg", "0002_c2.jpg", "0003_c3.jpg", "0009_c9.png"),
    ]
    kept = {*data.train.paths, *data.query.paths, *data.gallery.paths}
    assert kept == {f"000{person}_c{camera}.png" for person in range(8) for camera in (1, 2)}
    assert sorted(set(data.train.identities.tolist())) == [0, 1, 2, 4, 5, 6]
    assert np.unique(data.train.labels).tolist() == list(range(6))


def test_without_damage_nothing_changes(people):
    data = open_dataset(people)
    assert without_damaged(data) == (data, {})


@pytest.mark.slow
def test_train_skips_damaged_images(people, tmp_path, capsys):
    (people / "0001_c1.png").write_bytes(b"damaged")
    (people / "0003_c2.png").write_bytes(b"")
    options = ["--data", people, *SMALL, "epochs=1"]
    assert run("train", *options, "--out", tmp_path / "out") == 1
    assert "0001_c1.png: not a readable image" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run("data", people, "--decode") == 1
    assert "damaged images in all: 2; `train --skip-damaged`" in capsys.readouterr().out
    assert run("train", *options, "--out", tmp_path / "out", "--skip-damaged") == 0
    text = capsys.readouterr().out
    assert f"left out: {people / '0001_c1.png'}: not a readable image" in text
    assert "damaged images that are left out: 2" in text
    assert len(rows(tmp_path / "out")) == 1
