"""Indexes: what they hold, how they change, and what a reader meets meanwhile."""

import os
import shutil
import signal
import time

import processes
import pytest
import torch
from PIL import Image

from rga_fast import reid
from rga_fast.reid.retrieval.distances import FeatureDistances
from rga_fast.reid.retrieval.index import build, pack, store
from rga_fast.reid.retrieval.index.gallery import open_gallery
from rga_fast.reid.retrieval.index.record import open_network
from rga_fast.reid.retrieval.threshold import Interval, Threshold, save_threshold
from rga_fast.reid.retrieval.topk import nearest


@pytest.fixture(scope="module")
def net(small_run):
    return reid.load(small_run, device="cpu")


@pytest.fixture(scope="module")
def people(market, tmp_path_factory):
    """A folder per person, as a user would have it."""
    root = tmp_path_factory.mktemp("people")
    for file in sorted((market / "bounding_box_test").iterdir()):
        person, camera = file.name[:4], file.name.split("_")[1][1]
        (root / person).mkdir(exist_ok=True)
        shutil.copy(file, root / person / f"c{camera}_20260131T14253{camera}.jpg")
    return root


@pytest.fixture(scope="module")
def made(net, people, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "index"
    assert build.build_index(net, people, folder) == (12, 0, 0, [])
    return folder


@pytest.fixture
def index(made, people, tmp_path):
    """A copy to be changed, with its own images."""
    shutil.copytree(people, tmp_path / "people")
    shutil.copytree(made, tmp_path / "index")
    manifest = store.read_manifest(made)._replace(images="../people")
    store.write_manifest(tmp_path / "index", manifest)
    return tmp_path / "index"


def paths(folder):
    return sorted(entry.path for entry in reid.Index(folder).entries())


def test_an_index_holds_features_labels_and_its_network(made, net, people):
    index = reid.Index(made)
    files = [people / entry.path for entry in index.entries()]
    assert torch.equal(torch.cat(list(index.shards())), net.features(files))
    assert index.entries()[4][:4] == (
        "0021/c2_20260131T142532.jpg",
        "0021",
        "2",
        "2026-01-31T14:25:32",
    )
    assert index.cameras() == ["1", "2", "3"]
    again = open_network(made, index.manifest, device="cpu")
    assert again.hash == net.hash
    assert torch.equal(again.features(files), net.features(files))
    assert index.images.resolve() == people.resolve()


def test_a_search_is_that_of_all_distances(made, net, people, monkeypatch):
    monkeypatch.setattr(pack, "SHARD_ROWS", 5)
    index = reid.Index(made)
    features = torch.cat(list(index.shards()))
    expected = nearest(FeatureDistances(features[:3], features), 5)
    rows = {entry.path: row for row, entry in enumerate(index.entries())}
    for queries in (3, 1):  # several and one take different products
        found = net.search(made, features[:queries], k=5)
        assert [[rows[m.path] for m in match] for match in found] == expected.images[
            :queries
        ].tolist()
        distances = torch.tensor([[m.distance for m in match] for match in found])
        torch.testing.assert_close(
            distances, expected.distances[:queries].clamp(min=0), atol=1e-6, rtol=0
        )
    (match,) = net.search(made, people / "0020" / "c1_20260131T142531.jpg", k=1)[0]
    assert match.path == "0020/c1_20260131T142531.jpg"
    assert match.distance < 1e-6


def test_shards_are_searched_as_one(made, net, index):
    whole = reid.Index(made)
    manifest = store.read_manifest(index)
    data = store.read_shard(index, manifest.shards[0].name)
    shards = [
        store.write_shard(index, manifest, data.features[i : i + 5], data.entries[i : i + 5])
        for i in (0, 5, 10)
    ]
    store.write_manifest(index, manifest._replace(shards=tuple(shards)))
    cut = reid.Index(index)
    features = torch.cat(list(whole.shards()))
    assert torch.equal(torch.cat(list(cut.shards())), features)
    for part in (features, features[7:8]):
        got, want = cut.search(part, 7), whole.search(part, 7)
        assert [[m.path for m in row] for row in got] == [[m.path for m in row] for row in want]


def test_equal_distances_rank_by_row(index):
    """In shards of four rows, which the product treats alike."""
    manifest = store.read_manifest(index)
    data = store.read_shard(index, manifest.shards[0].name)
    same = data.features[:1].expand(12, -1)
    shards = [
        store.write_shard(index, manifest, same[i : i + 4], data.entries[i : i + 4])
        for i in (0, 4, 8)
    ]
    store.write_manifest(index, manifest._replace(shards=tuple(shards)))
    found = reid.Index(index).search(same[:1], 8)[0]
    assert [match.path for match in found] == [entry.path for entry in data.entries[:8]]


def test_filters_by_camera_and_time(made, net, people):
    query = people / "0020" / "c1_20260131T142531.jpg"

    def cameras(**where):
        return {m.camera for m in net.search(made, query, 12, where=reid.Filter(**where))[0]}

    assert cameras(cameras=("2",)) == {"2"}
    assert cameras(begin="2026-01-31T14:25:32") == {"2", "3"}
    assert cameras(begin="2026-01-31T14:25:32", end="2026-01-31 15:25:32+01:00") == {"2"}
    assert cameras(end="2026-01-30") == set()
    with pytest.raises(ValueError, match="no image is of camera 9; the cameras are 1, 2, 3"):
        cameras(cameras=("9",))
    with pytest.raises(ValueError, match="noon"):
        cameras(end="noon")


def test_images_come_and_go(index, net):
    people = index.parent / "people"
    shutil.copy(people / "0020/c1_20260131T142531.jpg", people / "0020/new.png")
    (people / "0021/c1_20260131T142531.jpg").unlink()
    Image.new("RGB", (20, 40), "red").save(people / "0022/c1_20260131T142531.jpg")
    before = reid.Index(index)
    assert build.build_index(net, people, index) == (2, 2, 10, [])
    assert len(before) == 12, "an open index stays as it was"
    assert before.search(torch.cat(list(before.shards())), 12)
    after = reid.Index(index)
    assert paths(index) == sorted(e.path for e in open_gallery(people).entries)
    files = [people / entry.path for entry in after.entries()]
    torch.testing.assert_close(torch.cat(list(after.shards())), net.features(files))
    assert len(list((index / "shards").iterdir())) == 2
    assert build.remove_images(index, ["0020/*", "*142533.jpg"]) == 7
    assert len(reid.Index(index)) == 5
    with pytest.raises(ValueError, match=r"no image's path matches alice/\*"):
        build.remove_images(index, ["alice/*"])
    assert build.build_index(net, people, index) == (7, 0, 5, [])


def test_damaged_images_are_skipped_and_named(index, net):
    people = index.parent / "people"
    (people / "0020" / "torn.jpg").write_bytes(b"\xff\xd8 torn")
    changes = build.build_index(net, people, index, batch_size=1)
    assert changes[:3] == (0, 0, 12)
    assert "torn.jpg: not a readable image" in changes.skipped[0]


def test_another_network_is_refused_by_name(index, net, small_run, tmp_path):
    other = reid.load(small_run, device="cpu")
    with torch.no_grad():
        other.network.feat_bn.weight[0] += 1
    for call in (
        lambda: other.search(index, torch.zeros(1, other.feature_dim)),
        lambda: build.build_index(other, index.parent / "people", index),
    ):
        with pytest.raises(ValueError, match=f"made by network {net.hash[:12]}.*{other.hash[:12]}"):
            call()
    with pytest.raises(ValueError, match="holds the feature after_neck"):
        reid.load(small_run, device="cpu", feature="before_neck").search(index, index)
    with pytest.raises(ValueError, match="is the index of the images in"):
        build.build_index(net, index.parent / "people" / "0020", index)


def test_a_foreign_folder_stays_as_it_is(net, people, tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="it holds other files"):
        build.build_index(net, people, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_one_writer_at_a_time(index, net):
    with build._writing(index, build.Ranks()), pytest.raises(ValueError, match="another process"):
        build.build_index(net, index.parent / "people", index)


@pytest.mark.parametrize("file", ["manifest.json", "safetensors", "csv"])
def test_a_damaged_index_is_named(index, file):
    (path,) = [*index.glob(file), *index.glob(f"shards/*.{file}")]
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=f"{path.name}: damaged"):
        reid.Index(index)
    path.unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=r"is missing|not an index"):
        reid.Index(index)


def test_the_threshold_is_copied(net, people, tmp_path):
    shutil.copy(net.path, tmp_path / "last.pt")
    threshold = Threshold(0.25, 0.01, 0.9, Interval(0.2, 0.3), "market-like")
    save_threshold(tmp_path / "last.pt", threshold)
    own = reid.load(tmp_path / "last.pt", device="cpu")
    build.build_index(own, people, tmp_path / "index")
    assert reid.Index(tmp_path / "index").threshold == threshold


def test_faiss_finds_what_is_near(index, net):
    pytest.importorskip("faiss")
    manifest = store.read_manifest(index)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(900, 40, generator=generator)
    entry = reid.Index(index).entries()[0]
    entries = [entry._replace(path=f"{row}.jpg") for row in range(900)]
    shard = store.write_shard(index, manifest, features, entries)
    store.write_manifest(index, manifest._replace(width=40, shards=(shard,)))
    with pytest.raises(ValueError, match="--approximate makes one"):
        reid.Index(index).search(features[:1], 1, exact=False)
    for kind, least in (("ivf", 0.6), ("hnsw", 0.9), ("pq", 0.05)):
        recall = build.add_approximate(index, kind)
        assert least < recall <= 1
        made = reid.Index(index)
        assert made.manifest.approximate["recall"] == recall
        (found,) = made.search(features[7:8], 3, exact=False)
        if kind != "pq":
            assert found[0].path == "7.jpg"
            assert found[0].distance < 1e-5
    assert len(list((index / "shards").glob("*.faiss"))) == 1
    build.remove_images(index, ["7.jpg"])
    assert not list((index / "shards").glob("*.faiss"))


# What is killed, and what is read meanwhile.


def index_slowly(small_run, people, folder):
    """One image a shard, one shard every 20 ms."""
    write = store.write_shard

    def slow(*arguments):
        time.sleep(0.02)
        return write(*arguments)

    build.PART_ROWS = 1
    build.store.write_shard = slow
    net = reid.load(small_run, device="cpu")
    build.build_index(net, people, folder, batch_size=1)


@pytest.mark.slow
def test_a_killed_index_is_continued_and_never_seen(small_run, net, people, tmp_path, monkeypatch):
    folder = tmp_path / "index"
    process = processes.start(index_slowly, small_run, people, folder)
    deadline = time.monotonic() + 60
    while len(list(folder.glob("shards/*.safetensors"))) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with pytest.raises(FileNotFoundError, match="not an index"):
        reid.Index(folder)
    extracted = []
    original = build.extract_files
    monkeypatch.setattr(
        build, "extract_files", lambda m, files, b: extracted.extend(files) or original(m, files, b)
    )
    changes = build.build_index(net, people, folder)
    assert changes.added == len(extracted) <= 8
    assert changes.added + changes.kept == 12
    assert paths(folder) == paths_of(people)


def paths_of(people):
    return sorted(entry.path for entry in open_gallery(people).entries)


def change_for_ever(small_run, people, folder):
    net = reid.load(small_run, device="cpu")
    while True:
        build.remove_images(folder, ["0020/*"])
        build.build_index(net, people, folder)


@pytest.mark.slow
def test_a_reader_sees_one_state_or_the_other(small_run, index):
    """While images come and go, and behind a writer that is killed."""
    process = processes.start(change_for_ever, small_run, index.parent / "people", index)
    states = set()
    try:
        deadline = time.monotonic() + 60
        while len(states) < 2 or time.monotonic() < deadline - 58:
            seen = reid.Index(index)
            assert all(len(row) == len(seen) for row in seen.search(next(seen.shards())[:1], 99))
            states.add(len(seen))
            assert time.monotonic() < deadline
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert states == {9, 12}
    assert len(reid.Index(index)) in states
    net = open_network(index, reid.Index(index).manifest, device="cpu")
    build.build_index(net, index.parent / "people", index)
    assert len(reid.Index(index)) == 12
