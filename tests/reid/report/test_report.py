"""`rga-fast report`: one self-contained page whose lists and numbers agree."""

import json
import re
import shutil
import sys
from html.parser import HTMLParser

import pytest
import torch
from small_runs import run

from rga_fast.reid.checkpoint import open_trained
from rga_fast.reid.data.source import open_source
from rga_fast.reid.report.evaluated import names_of
from rga_fast.reid.retrieval.features import extract_query_gallery, open_eval_data

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")


class Page(HTMLParser):
    """Addresses in a page, its rank lists, and the texts of its tables' rows."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.lists, self.rows = [], [], []
        self._kind, self._into = None, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        classes = (given.get("class") or "").split()
        self.addresses += [given[name] for name in ("src", "href") if name in given]
        if tag == "h4":
            self.lists.append({"title": "", "score": "", "hits": [], "ranked": []})
            self._into = "title"
        elif tag == "p" and "score" in classes:
            if self.lists[-1]["score"]:  # the same query in the second run
                self.lists.append({**self.lists[-1], "hits": [], "ranked": []})
            self.lists[-1]["score"], self._into, self._kind = "", "score", None
        elif tag == "figure" and "cell" in classes:
            self._kind = classes[1]
        elif tag == "figcaption" and self._kind == "query":
            self._kind = None
        elif tag == "b" and self._kind in ("hit", "miss"):
            self._into = "rank"
        elif tag == "tr":
            self.rows.append([])
        elif tag == "td":
            self.rows[-1].append("")
            self._into = "cell"

    def handle_data(self, data):
        if self._into in ("title", "score"):
            self.lists[-1][self._into] += data
        elif self._into == "cell":
            self.rows[-1][-1] += data
        elif self._into == "rank":
            self.lists[-1]["ranked"].append(int(data))
            if self._kind == "hit":
                self.lists[-1]["hits"].append(int(data))

    def handle_endtag(self, tag):
        if tag in ("h4", "p", "td") or (tag == "b" and self._into == "rank"):
            self._into = None


@pytest.fixture(scope="module")
def page(trained):
    assert not run("report", trained / "rga-sc")
    text = (trained / "rga-sc" / "report.html").read_text(encoding="utf-8")
    return text, Page(text)


@pytest.fixture(scope="module")
def both(trained):
    target = trained / "both.html"
    assert not run("report", trained / "rga-sc", trained / "none", "--out", target)
    text = target.read_text(encoding="utf-8")
    return text, Page(text)


def test_nothing_from_outside(page, both, trained):
    for text, parsed in (page, both):
        assert len(parsed.addresses) > 50
        assert all(a.startswith(("data:image/", "#")) for a in parsed.addresses)
        assert "default-src 'none'" in text
        assert not re.search(r"@import|url\(|<link|<script src|fetch\(", text)
        assert str(trained) not in text
    assert not list(trained.rglob("*.partial"))


def test_numbers_are_those_of_the_training(page, trained):
    after = json.loads((trained / "rga-sc" / "summary.json").read_text())["after"]
    cells = {tuple(row[:2]): row[2] for row in page[1].rows if len(row) == 3}
    for feature in ("before_neck", "after_neck"):
        for metric, name in (("rank1", "rank-1"), ("mAP", "mAP"), ("mINP", "mINP")):
            text = cells[feature.replace("_", " the "), name]
            value, low, high = map(float, re.findall(r"[\d.]+", text))
            assert value == pytest.approx(100 * after[feature][metric], abs=0.051)
            assert low <= value <= high


def test_lists_have_the_ranks_of_a_plain_sort(page, trained):
    """Sorted by what the network says of the images, without the code of the metrics."""
    network, config, _ = open_trained(trained / "rga-sc" / "checkpoints" / "last.pt", impl="auto")
    data = open_source(config.data)
    query, gallery = extract_query_gallery(network, open_eval_data(data, config.size))
    q, g = (torch.nn.functional.normalize(f.after_neck.double()) for f in (query, gallery))
    ids, cameras = data.gallery.identities, data.gallery.cameras
    assert len(page[1].lists) == 12
    for shown in page[1].lists:
        index = data.query.paths.index(shown["title"].split(":")[0])
        own = ids == data.query.identities[index]
        kept = ~(own & (cameras == data.query.cameras[index]))
        order = (1 - q[index] @ g.T).argsort(stable=True).numpy()
        order = order[kept[order]]
        ranks = [place + 1 for place, image in enumerate(order) if own[image]]
        assert shown["ranked"] == list(range(1, 11))
        assert shown["hits"] == [rank for rank in ranks if rank <= 10]
        assert shown["score"].endswith(f"ranks {', '.join(map(str, ranks))}")
        precision = sum((n + 1) / rank for n, rank in enumerate(ranks)) / len(ranks)
        assert shown["score"].startswith(f"AP {100 * precision:.1f} %")


def test_two_runs(both):
    text, parsed = both
    assert "none: a network without attention." in text
    assert {row[3] for row in parsed.rows if row and row[0] == "attention"} == {"differs"}
    metrics = [row for row in parsed.rows if len(row) == 5 and row[1] == "mAP"]
    for _, _, ours, theirs, gap in metrics:
        values = [float(cell.split()[0]) for cell in (ours, theirs, gap)]
        assert values[2] == pytest.approx(values[1] - values[0], abs=0.11)
    assert len({shown["title"] for shown in parsed.lists}) * 2 <= len(parsed.lists)


def test_runs_on_different_data_stand_one_after_the_other(trained, market, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(market, other)
    next((other / "query").iterdir()).unlink()
    moved = tmp_path / "run<b>"
    shutil.copytree(trained / "none", moved)
    (moved / "summary.json").unlink()  # as a run that was killed
    with (moved / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')
    saved = torch.load(moved / "checkpoints" / "last.pt", weights_only=True)
    saved["config"]["data"] = str(other)
    torch.save(saved, moved / "checkpoints" / "last.pt")
    assert not run("report", trained / "rga-sc", moved, "--out", tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert 'id="lists-2"' in text
    assert "difference" not in text
    assert "run<b>" not in text
    assert "run&lt;b&gt;" in text


def test_errors_say_what_is_missing(trained, market, tmp_path, capsys, monkeypatch):
    def error(*arguments):
        assert run("report", *arguments) == 1
        return capsys.readouterr().err

    assert "no such folder" in error(tmp_path / "nowhere")
    assert "with checkpoints/last.pt" in error(market)
    assert "expected the folder of a run" in error(next((market / "query").iterdir()))
    assert "twice" in error(trained / "none", trained / "none")
    assert f"there is no folder {tmp_path / 'no'}" in error(
        trained / "none", "--out", tmp_path / "no" / "a.html"
    )
    saved = torch.load(trained / "none" / "checkpoints" / "last.pt", weights_only=True)
    saved["config"]["data"] = str(tmp_path / "gone")
    (tmp_path / "checkpoints").mkdir()
    torch.save(saved, tmp_path / "checkpoints" / "last.pt")
    message = error(tmp_path)
    assert "gone: no such folder" in message
    assert "--data names another place" in message
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert "pip install 'rga-fast[report]'" in error(trained / "none")
    assert not list(tmp_path.glob("*.html*"))


def test_names(tmp_path):
    assert names_of([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert names_of([tmp_path / "x" / "run", tmp_path / "y" / "run"]) == ["x/run", "y/run"]
    with pytest.raises(ValueError, match="different runs"):
        names_of([tmp_path, tmp_path / "a" / ".."])
