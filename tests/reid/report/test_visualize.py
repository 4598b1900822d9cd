"""`rga-fast visualize`: pictures of every attention system, and what they show."""

import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import run

from rga_fast.reid.checkpoint import open_trained
from rga_fast.reid.network.attention import NAMES
from rga_fast.reid.network.reidnet import ReidNet
from rga_fast.reid.report import visualize as visualize_module
from rga_fast.reid.report.gradcam import grad_cam
from rga_fast.reid.report.visualize import KINDS, TARGETS, _figures, _stems, _why_not

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def image(market):
    return sorted((market / "query").iterdir())[0]


def checkpoint(trained, name):
    return trained / name / "checkpoints" / "last.pt"


def test_pictures_and_one_sheet(trained, market, image, tmp_path, capsys):
    other = tmp_path / "sub" / image.name  # of the same name
    other.parent.mkdir()
    other.write_bytes(sorted((market / "query").iterdir())[5].read_bytes())
    out = tmp_path / "pictures"
    options = ["--baseline", checkpoint(trained, "none"), "--target", "0.5,0.5", "--out", out]
    assert not run("visualize", checkpoint(trained, "rga-sc"), image, other, *options)
    assert f"pictures: {out / 'index.html'}" in capsys.readouterr().out
    stems = (image.stem, f"{image.stem}-2")
    expected = {f"{stem}-{kind}.png" for stem in stems for kind in KINDS} | {"index.html"}
    assert {path.name for path in out.iterdir()} == expected
    for path in out.glob("*.png"):
        with Image.open(path) as picture:
            assert np.asarray(picture.convert("L")).std() > 10
    text = (out / "index.html").read_text(encoding="utf-8")
    addresses = re.findall(r'(?:src|href)="([^"]{,40})', text)
    assert len(addresses) == 8
    assert all(address.startswith("data:image/png;base64,") for address in addresses)


@pytest.mark.parametrize("name", [name for name in NAMES if name.count("-") < 2])
def test_every_system_has_its_figures(name, image):
    torch.manual_seed(0)
    network = ReidNet("resnet18", 4, (32, 16), attention=name, width=8).eval()
    figures = _figures(network, image, TARGETS, None, name)
    parts = {name} if not name.startswith("rga-") else {f"rga-{name[4:]}"}
    spatial = parts & {"rga-s", "rga-sc", "rga-cs", "rga-s//c", "cbam-s", "cbam-cs", "snl"}
    spatial |= parts & {"fc-s", "fc-s//c"}
    channel = parts & {"rga-c", "rga-sc", "rga-cs", "rga-s//c", "cbam-c", "cbam-cs", "se"}
    channel |= parts & {"fc-c", "fc-s//c"}
    related = parts & {"rga-s", "rga-sc", "rga-cs", "rga-s//c", "nl"}
    flags = {"attention": spatial, "affinity": related, "gradcam": {1}, "channels": channel}
    assert set(figures) == {kind for kind, flag in flags.items() if flag}
    for kind in set(KINDS) - set(figures):
        assert _why_not(network, kind)
    for kind, rows in figures.items():
        stages = 1 if kind == "gradcam" else 6 if kind == "channels" else 4
        assert all(len(row) == 1 + stages for row in rows)
        assert len(rows) == {"affinity": 3, "channels": 4}.get(kind, 1)


def test_panels_hold_the_values_of_the_network(trained, image):
    network = open_trained(checkpoint(trained, "rga-sc")).network
    figures = _figures(network, image, [(0.0, 0.0), (1.0, 1.0)], None, "")
    x = visualize_module._network_image(network, image)
    for stage, panel in enumerate(figures["attention"][0][1:], start=1):
        maps = visualize_module.maps_before_attention(network, x)
        values = network.attention[stage].attention_values(maps[stage])["spatial"][0, 0]
        assert np.array_equal(panel.map, values.numpy())
        assert (panel.low, panel.high) == (float(values.min()), float(values.max()))
    (first, last) = figures["affinity"]
    H, W = first[1].map.shape
    assert first[1].marks == [(0.5 / H, 0.5 / W)]
    assert last[1].marks == [(1 - 0.5 / H, 1 - 0.5 / W)]
    assert (first[1].low, first[1].high) == (last[1].low, last[1].high)  # one scale
    for row in figures["channels"]:
        strengths = [float(panel.title.split()[-1]) for panel in row[1:]]
        assert strengths == sorted(strengths, reverse=True)


def test_grad_cam():
    """Against the derivative of the logit by the last map, taken by finite differences."""
    torch.manual_seed(0)
    network = ReidNet("resnet18", 6, (32, 16), width=8, attention="none").double().eval()
    torch.nn.init.normal_(network.cls.weight)
    images = torch.randn(2, 3, 32, 16, dtype=torch.float64)
    found = grad_cam(network, images)
    with torch.no_grad():
        maps = network.backbone(images)
        logits = network.cls(network.feat_bn(maps.mean((2, 3))))
        chosen = logits.argmax(dim=1)
        weights = torch.empty(2, maps.shape[1], dtype=torch.float64)
        for channel in range(maps.shape[1]):
            moved = maps.clone()
            moved[:, channel] += 1e-3
            changed = network.cls(network.feat_bn(moved.mean((2, 3))))
            weights[:, channel] = (changed - logits)[range(2), chosen]
        expected = (weights[..., None, None] * maps).sum(1).relu()
        expected /= expected.amax((1, 2), keepdim=True)
    torch.testing.assert_close(found, expected)
    assert not network.backbone._forward_hooks


def test_names_do_not_meet(tmp_path):
    paths = [tmp_path / name for name in ("a.jpg", "x/a.png", "a-2.jpg", "b.jpg")]
    assert _stems(paths) == ["a", "a-2", "a-2-2", "b"]


def test_errors(trained, image, tmp_path, capsys, monkeypatch):
    def error(*arguments, rc=1):
        try:
            code = run("visualize", *arguments, "--out", tmp_path / "out")
        except SystemExit as exit:
            code = exit.code
        assert code == rc
        return capsys.readouterr().err

    model = checkpoint(trained, "rga-sc")
    damaged = tmp_path / "damaged.jpg"
    damaged.write_bytes(b"no image")
    assert "damaged.jpg: not a readable image" in error(model, image, damaged)
    assert "nowhere.jpg" in error(model, tmp_path / "nowhere.jpg")
    assert "no checkpoint at" in error(tmp_path / "nowhere.pt", image)
    assert "expected Y,X" in error(model, image, "--target", "0.5", rc=2)
    assert "expected Y,X" in error(model, image, "--target", "0.5,1.5", rc=2)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install 'rga-fast[report]'" in error(model, image)
    assert not (tmp_path / "out").exists()
