"""Exported files: what they give, what they say, and the gate."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rga_fast import cli
from rga_fast.reid.checkpoint import open_trained
from rga_fast.reid.data.augment import normalise
from rga_fast.reid.data.datasets import open_dataset
from rga_fast.reid.export import facts, fold, parity
from rga_fast.reid.export.formats import FORMATS
from rga_fast.reid.export.write import export_network

DOCS = Path(__file__).parents[3] / "docs" / "export.md"


def export(*arguments) -> int:
    return cli.main(["export", *map(str, arguments)])


def missing(*names):
    return [
        pytest.mark.skipif(
            any(not __import__("importlib").util.find_spec(name) for name in names),
            reason=f"needs {', '.join(names)}",
        )
    ]


ONNX = missing("onnx", "onnxscript", "onnxruntime")


@pytest.mark.parametrize(
    "attention",
    [
        "rga-sc",
        "rga-s//c",
        "rga-cs-no-relations",
        "rga-sc-no-appearance-symmetric",
        "rga-sc-no-embedding",
        "cbam-cs",
        "nl",
        "none",
    ],
)
def test_the_folded_network_is_the_network(make_untrained, market, attention):
    _, network = make_untrained(attention=attention)
    expected = parity.expect(network, open_dataset(market), 24)
    deployable = fold.Deployable(network)
    assert not any(
        isinstance(m, torch.nn.BatchNorm2d) for m in deployable.backbone.layer1.modules()
    )
    parity.check(parity.compare(deployable, expected))
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules()), "not in place"


@pytest.mark.parametrize(
    "kind",
    [
        "torchscript",
        pytest.param("pt2", marks=pytest.mark.slow),
        pytest.param("onnx", marks=[*ONNX, pytest.mark.slow]),
        pytest.param("aoti", marks=pytest.mark.slow),
    ],
)
def test_a_file_gives_what_the_network_gives(run_folder, market, tmp_path, capsys, kind):
    path = tmp_path / f"network{FORMATS[kind].suffix}"
    assert export(run_folder, "--format", kind, "--out", path, "--images", 12) == 0
    printed = capsys.readouterr().out
    assert "batch 1: features" in printed
    assert "batch 5: features" in printed
    assert list(tmp_path.iterdir()) == [path]
    trained = open_trained(run_folder / "checkpoints" / "last.pt", "cpu")
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 32, 16, 3), dtype=torch.uint8, generator=generator)
    features = FORMATS[kind].open(path)(pixels)
    with torch.no_grad():
        expected = trained.network(normalise(pixels))
    for got, want in zip(features, expected[:2], strict=True):  # errors relative to the largest
        torch.testing.assert_close(
            got / want.abs().max(), want / want.abs().max(), rtol=0, atol=1e-4
        )
    said = json.loads(FORMATS[kind].read_facts(path))
    assert said["input"]["shape"] == ["batch", 32, 16, 3]
    assert said["network"]["weights_sha256"] == facts.hash_weights(trained.network.state_dict())
    if kind == "onnx":
        check_consumer(path, market)
        check_onnx(path)


def check_consumer(path, market):
    """The one in the documentation, where this package cannot be imported."""
    code = re.search(r"```python\n(.*?)```", DOCS.read_text(), re.S)[1]
    blocked = f"import sys; sys.modules['rga_fast'] = sys.modules['torch'] = None\n{code}"
    images = sorted((market / "query").iterdir())[:4]
    done = subprocess.run(
        [sys.executable, "-c", blocked, str(path), *map(str, images)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    distances = [float(x) for x in re.findall(r"-?\d\.\d*(?:e-?\d+)?", done.stdout)]
    assert len(distances) == 16
    assert abs(distances[0]) < 1e-5 < max(distances)


def check_onnx(path):
    """Standard operators, any batch, no normalisation left where a convolution precedes it."""
    import onnx

    model = onnx.load(path)
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param


def without_statistics(norm):
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return scale.detach(), norm.bias.detach()


def without_epsilon(norm):
    scale = norm.weight / norm.running_var.sqrt()
    return scale.detach(), (norm.bias - norm.running_mean * scale).detach()


@pytest.mark.parametrize("broken", [without_statistics, without_epsilon])
def test_the_gate_stops_wrong_features(run_folder, tmp_path, monkeypatch, capsys, broken):
    monkeypatch.setattr(fold, "_affine", broken)
    path = tmp_path / "model.pt"
    path.write_text("an earlier file")
    assert export(run_folder, "--format", "torchscript", "--out", path, "--images", 12) == 1
    assert "the file does not give the network's features: batch 1" in capsys.readouterr().err
    assert path.read_text() == "an earlier file"
    assert list(tmp_path.iterdir()) == [path]


def test_the_gate_stops_a_file_that_is_right_for_one_image_only(run_folder, tmp_path, monkeypatch):
    """An attention over the images of a batch, which one image does not show."""
    forward = fold.FoldedRGA.forward
    monkeypatch.setattr(
        fold.FoldedRGA, "forward", lambda self, x: forward(self, x) * (x.mean() / x[:1].mean())
    )
    trained = open_trained(run_folder / "checkpoints" / "last.pt", "cpu", impl="auto")
    data = open_dataset(trained.config.data)
    with pytest.raises(ValueError, match="the network's features: batch 5"):
        export_network(trained, data, tmp_path / "model.pt", "torchscript", images=12)
    assert list(tmp_path.iterdir()) == []


def test_the_gate_compares_mean_average_precision():
    same = {"before_neck": 0.5, "after_neck": 0.5}
    row = parity.Parity(1, 1e-7, 1e-6, same, same)
    parity.check([row])
    with pytest.raises(ValueError, match=r"loses 0\.20 mAP, at most 0\.1 are accepted"):
        parity.check([row._replace(scores={**same, "after_neck": 0.498})])
    quantised = row._replace(limit=None, error=0.1, scores={**same, "after_neck": 0.47})
    parity.check([quantised], most_lost=0.04)
    with pytest.raises(ValueError, match=r"loses 3\.00 mAP, at most 2 are"):
        parity.check([quantised], most_lost=0.02)
    parity.check([quantised._replace(scores=dict.fromkeys(same, 0.9))], most_lost=0.02)


def test_features_that_are_all_alike_do_not_fail(make_untrained, market):
    """Their order is rounding, in network and file; the features are compared all the same."""
    _, network = make_untrained()
    torch.nn.init.constant_(network.feat_bn.weight, 1e-7)
    torch.nn.init.constant_(network.feat_bn.bias, 1.0)
    expected = parity.expect(network, open_dataset(market), 24)
    assert expected.tolerance > parity.MAP_TOLERANCE
    parity.check(parity.compare(fold.Deployable(network), expected))


def test_the_sample_holds_whole_identities(market):
    data = open_dataset(market)
    part = parity.sample(data, 7)
    assert sorted(set(part.query.identities)) == [20, 21]
    assert len(part.query) == len(part.gallery) == 6
    assert part.valid_queries().all()
    assert len(parity.sample(data, 1000).query) == len(data.query)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [pytest.param(m, marks=ONNX) for m in ("static", "dynamic")])
def test_int8_states_what_it_costs(run_folder, tmp_path, capsys, mode):
    onnx = pytest.importorskip("onnx")
    path = tmp_path / "model.onnx"
    arguments = (run_folder, "--int8", mode, "--out", path, "--images", 12)
    assert export(*arguments, "--max-loss", 100) == 0
    assert "mAP before the neck" in capsys.readouterr().out
    assert json.loads(FORMATS["onnx"].read_facts(path))["quantised"] == f"int8, {mode}"
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert kinds & ({"QuantizeLinear"} if mode == "static" else {"ConvInteger"})
    assert list(tmp_path.iterdir()) == [path]


def test_a_failing_exporter_is_reported_in_a_line(run_folder, tmp_path, monkeypatch, capsys):
    class Strange(Exception):
        pass

    def fail(*args, **kwargs):
        raise Strange("no compiler")

    monkeypatch.setattr(torch.jit, "trace", fail)
    arguments = ("--format", "torchscript", "--out", tmp_path / "model.pt", "--images", 6)
    assert export(run_folder, *arguments) == 1
    assert "export: torchscript failed: Strange: no compiler" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_another_size_than_that_of_the_training(run_folder, tmp_path, capsys):
    path = tmp_path / "model.pt"
    arguments = (run_folder, "--format", "torchscript", "--out", path, "--images", 6)
    assert export(*arguments, "height=48", "width=24") == 0
    before, _ = FORMATS["torchscript"].open(path)(torch.zeros(2, 48, 24, 3, dtype=torch.uint8))
    assert before.shape == (2, 64)
    assert export(*arguments, "epochs=3") == 1
    assert "expected height or width, got epochs" in capsys.readouterr().err


def test_what_cannot_be_exported_is_said(run_folder, market, tmp_path, monkeypatch, capsys):
    assert export(run_folder, "--format", "pt2", "--int8", "static") == 1
    assert "int8 needs the format onnx, got pt2" in capsys.readouterr().err
    assert export(tmp_path / "none") == 1
    assert "no checkpoint at" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnx", None)
    path = tmp_path / "model.onnx"
    assert export(run_folder, "--out", path, "--images", 6) == 1
    assert 'pip install "rga-fast[export]"' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_hash_is_of_names_and_values(make_untrained):
    _, network = make_untrained()
    state = network.state_dict()
    first = facts.hash_weights(state)
    assert first == facts.hash_weights(dict(reversed(state.items())))
    state["cls.weight"] = state["cls.weight"] + 1e-3
    assert first != facts.hash_weights(state)


def test_the_command_lists_the_formats():
    from rga_fast.cli import export as verb

    assert set(verb.FORMATS) == set(FORMATS)
