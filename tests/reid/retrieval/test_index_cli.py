"""`rga-fast index` and `rga-fast search`, as a user calls them."""

import json
import re

import processes
import pytest
from PIL import Image
from small_runs import run

from rga_fast import reid
from rga_fast.reid.retrieval.index import store
from rga_fast.reid.retrieval.index.gallery import open_gallery
from rga_fast.reid.retrieval.threshold import Interval, Threshold


@pytest.fixture(scope="module")
def made(small_run, market, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "market.index"
    assert run("index", market, "--checkpoint", small_run, "--out", folder) == 0
    return folder


@pytest.fixture
def query(market):
    return market / "bounding_box_test" / "0020_c1s1_000017_00.jpg"


def test_a_data_set_gives_its_gallery(made, market, capsys):
    entries = reid.Index(made).entries()
    assert len(entries) == 12
    assert entries[0].path.startswith("bounding_box_test/0020_c1")
    assert entries[0][1:4] == ("20", "1", "")
    assert run("index", market, "--out", made) == 0, "the network is that of the index"
    assert "12 images, 0 of them new, 0 removed" in capsys.readouterr().out


def test_search_prints_and_draws(made, query, tmp_path, capsys):
    sheet, rows = tmp_path / "sheet.png", tmp_path / "rows.json"
    more = ["-k", 4, "--camera", 2, "--camera", 3, "--png", sheet, "--json", rows]
    assert run("search", made, query, query, *more) == 0
    out = capsys.readouterr().out
    assert re.search(r"1 │\s+0\.\d{4} │ \d+\s+│ [23]\s+│\s+│ bounding_box_test/", out)
    assert "has no threshold" in out
    (first, _) = json.loads(rows.read_text())
    assert {match["camera"] for match in first["matches"]} == {"2", "3"}
    assert len(first["matches"]) == 4
    with Image.open(sheet) as image:
        assert image.size == (550, 494)
        assert image.getpixel((40, 100)) != (255, 255, 255)


@pytest.mark.parametrize(
    ("value", "sentence"), [(0.5, "in the gallery"), (-1, "not in the gallery")]
)
def test_a_threshold_decides(made, query, value, sentence, tmp_path, capsys):
    manifest = store.read_manifest(made)
    threshold = Threshold(value, 0.01, 0.9, Interval(0.1, 0.6), "market-like")
    store.write_manifest(made, manifest._replace(threshold=threshold))
    try:
        assert run("search", made, query, "--png", tmp_path / "sheet.png") == 0
    finally:
        store.write_manifest(made, manifest)
    out = capsys.readouterr().out
    assert f"\n{sentence}: the nearest image is at 0.000" in out
    assert ("yes" in out) == (value > 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["index", "{market}", "--out", "{tmp}/new"], "--checkpoint PATH is needed"),
        (["index", "{tmp}", "--checkpoint", "{run}", "--out", "{tmp}/i"], "no images"),
        (["index", "{tmp}/none", "--checkpoint", "{run}", "--out", "{tmp}/i"], "no such folder"),
        (["index", "{market}", "--batch-size", "0"], "at least 1, got 0"),
        (["index", "{market}", "--out", "{tmp}", "--remove", "*"], "not an index"),
        (["search", "{tmp}", "{query}"], "not an index"),
        (["search", "{made}", "{tmp}/none.jpg"], "none.jpg: No such file"),
        (["search", "{made}", "{query}", "-k", "0"], "expected k >= 1"),
        (["search", "{made}", "{query}", "--from", "noon"], "noon"),
        (["search", "{made}", "{query}", "--approximate"], "--approximate makes one"),
    ],
)
def test_wrong_input_is_answered_in_a_line(
    arguments, message, market, small_run, made, query, tmp_path, capsys
):
    names = {"market": market, "run": small_run, "made": made, "query": query, "tmp": tmp_path}
    assert run(*(text.format(**names) for text in arguments)) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_table_names_images_people_cameras_and_times(market, tmp_path):
    lines = ["path,identity,camera,time,split", "a.png,Zoë,north,2026-01-31T14:25:30Z,gallery"]
    lines += ["b.png,,,,query", "c.png,,,,gallery"]
    for name in "abc":
        Image.new("RGB", (8, 16)).save(tmp_path / f"{name}.png")
    table = tmp_path / "table.csv"
    table.write_text("\n".join(lines), encoding="utf-8")
    entries = open_gallery(table).entries
    assert [entry[:4] for entry in entries] == [
        ("a.png", "Zoë", "north", "2026-01-31T14:25:30Z"),
        ("c.png", "", "", ""),
    ]
    assert len(open_gallery(table, "all").entries) == 3
    for line, message in [
        ("../a.png,,,,gallery", r"line 5: expected a path inside"),
        ("a.png,,,noon,gallery", r"line 5: expected a time as .*'noon'"),
    ]:
        table.write_text("\n".join([*lines, line]), encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            open_gallery(table)
    with pytest.raises(ValueError, match="split must be one of"):
        open_gallery(market, "test")


def test_names_and_folders_say_who_where_and_when(tmp_path):
    expected = {
        "-1_c2s1_000001_00.png": ("", "2", ""),
        "0000_c1s1_000001_00.png": ("", "1", ""),
        "0007_c12s1_000001_00.png": ("0007", "12", ""),
        "alice/2026-01-31 14.25.30.png": ("alice", "", "2026-01-31T14:25:30"),
        "alice/holiday/20261331T999999_c04.png": ("alice", "4", ""),
        "cam3/bob/x.png": ("bob", "3", ""),
    }
    for path in [*expected, ".hidden.png", ".git/a.png"]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 16)).save(tmp_path / path)
    entries = open_gallery(tmp_path).entries
    assert {entry.path: entry[1:4] for entry in entries} == expected
    assert [entry.path for entry in entries] == sorted(expected)


def index_ranked(small_run, market, folder):
    return run("index", market, "--checkpoint", small_run, "--out", folder, "--batch-size", 5)


@pytest.mark.slow
def test_two_processes_share_the_work(small_run, market, made, tmp_path):
    assert processes.run_ranks(index_ranked, small_run, market, tmp_path / "index") == [0, 0]
    entries = reid.Index(tmp_path / "index").entries()
    assert sorted(entries) == sorted(reid.Index(made).entries())
