"""The synthetic data set: the same bytes for a seed, in the layout of Market-1501."""

import functools
import hashlib
import shutil

import numpy as np
import pytest
from PIL import Image

from rga_fast import cli
from rga_fast.reid.data.datasets import open_dataset
from rga_fast.reid.synth import cached, contact_sheet, write_dataset


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp("synth") / "people"
    return root, write_dataset(root, 6, seed=3, size=(64, 32), workers=1)


def digest(root):
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.mark.slow
def test_the_bytes_depend_on_the_seed_alone(drawn, tmp_path):
    root, counts = drawn
    assert write_dataset(tmp_path / "again", 6, seed=3, size=(64, 32), workers=2) == counts
    assert digest(tmp_path / "again") == digest(root)
    write_dataset(tmp_path / "other", 3, seed=4, size=(64, 32), workers=1)
    pictures = {h for name, h in digest(root).items() if name.endswith(".jpg")}
    assert not pictures & set(digest(tmp_path / "other").values())


def test_layout_and_counts(drawn):
    root, counts = drawn
    data = open_dataset(root)
    train, query, gallery = data.counts()
    assert (train.images, train.identities) == (counts["train_images"], 4)
    assert (query.images, query.identities) == (counts["query_images"], 2)
    assert gallery.identities == 2
    assert gallery.images == counts["gallery_images"] + counts["distractor_images"]
    assert gallery.distractors == counts["distractor_images"] > 0
    assert gallery.dropped == counts["junk_images"] > 0
    assert not set(data.train.identities) & set(data.query.identities)
    with Image.open(data.train.file(0)) as image:
        assert image.size == (32, 64)
        assert np.asarray(image).std() > 5


def test_every_query_has_a_match_under_another_camera(drawn):
    data = open_dataset(drawn[0])
    for identity, camera in zip(data.query.identities, data.query.cameras, strict=True):
        same = data.gallery.identities == identity
        assert (data.gallery.cameras[same] != camera).any()


def test_nothing_is_overwritten_or_left_half_written(drawn, tmp_path, capsys):
    before = digest(drawn[0])
    with pytest.raises(FileExistsError, match="not an empty folder"):
        write_dataset(drawn[0], 6, seed=3)
    assert digest(drawn[0]) == before
    assert cli.main(["synth", str(tmp_path / "few"), "--identities", "2"]) == 1
    assert "identities must be at least 3, got 2" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert cli.main(["synth", str(tmp_path / "file" / "people"), "--identities", "3"]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_two_first_runs_share_what_the_faster_one_wrote(drawn, tmp_path, monkeypatch):
    small = functools.partial(write_dataset, size=(32, 16), workers=1)
    monkeypatch.setattr(cached, "write_dataset", small)
    monkeypatch.setattr(cached, "IDENTITIES", 3)
    monkeypatch.setattr(cached, "user_cache", lambda: tmp_path)

    def finish_the_other(done, total):
        if done == total:
            shutil.copytree(drawn[0], cached.cached_folder())

    folder = cached.cached_dataset(finish_the_other)
    assert digest(folder) == digest(drawn[0])
    assert list(tmp_path.iterdir()) == [folder]  # no draft is left
    monkeypatch.setattr(cached, "user_cache", lambda: folder / "README.txt")
    with pytest.raises(OSError, match="cannot write the data set"):
        cached.cached_dataset()


def test_contact_sheet(drawn, tmp_path):
    assert contact_sheet(drawn[0], blocks=1, rows=2).size == (34 + 6 * 32, 18 + 2 * 64)
    with pytest.raises(FileNotFoundError, match="no data set"):
        contact_sheet(tmp_path)


@pytest.mark.slow
def test_the_command_draws_and_shows_what_it_drew(tmp_path, capsys):
    assert cli.main(["synth", str(tmp_path / "people"), "--identities", "3"]) == 0
    told = capsys.readouterr().out
    assert "synthetic" in told
    assert str(tmp_path / "people" / "contact_sheet.jpg") in told
    with Image.open(tmp_path / "people" / "contact_sheet.jpg") as sheet:
        assert min(sheet.size) > 100
