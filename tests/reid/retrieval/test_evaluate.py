"""`rga-fast evaluate`: checkpoints on data sets, and what it writes."""

import csv
import json
import os
import shutil
import stat

import pytest
import torch
from processes import run_ranks
from safetensors import safe_open
from safetensors.torch import load_file
from small_runs import SMALL, run

from rga_fast.reid.retrieval.threshold import load_threshold

NUMBERS = {"rank1", "rank5", "rank10", "mAP", "mINP", "valid_queries", "skipped_queries"}


@pytest.fixture(scope="module")
def trained(market, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "[first] run"
    assert run("train", "--fused", "--data", market, "--out", out, *SMALL, "epochs=1") == 0
    return out


@pytest.fixture
def other(trained, tmp_path):
    """The same run elsewhere, with other weights."""
    out = shutil.copytree(trained, tmp_path / "other")
    saved = torch.load(out / "checkpoints/last.pt", weights_only=True)
    saved["model"] = {k: v + 0.01 if v.ndim == 4 else v for k, v in saved["model"].items()}
    saved["config"] |= {"device": "cuda:3", "impl": "triton"}  # those of another machine
    torch.save(saved, out / "checkpoints/last.pt")
    return out


def evaluate(*arguments):
    """Refuses numbers that are not JSON."""

    def refuse(text):
        raise AssertionError(text)

    *rest, file = arguments
    assert run("evaluate", *rest, "--json", file) == 0
    return json.loads(file.read_text(), parse_constant=refuse)


def test_it_gives_the_numbers_of_the_run_again(trained, market, tmp_path):
    files = ["--features", tmp_path / "f.safetensors", "--csv", tmp_path / "e.csv"]
    checkpoint = trained / "checkpoints/last.pt"
    (found,) = evaluate(checkpoint, "--data", market, *files, tmp_path / "e.json")
    summary = json.loads((trained / "summary.json").read_text())
    assert {name: found[name] for name in summary["after"]} == summary["after"]
    assert found["checkpoint"] == str(checkpoint)
    assert (found["epoch"], found["data"], found["paths"]) == (1, "market-like", [str(market)])
    rows = list(csv.DictReader((tmp_path / "e.csv").open()))
    assert [row["feature"] for row in rows] == ["before_neck", "after_neck"]
    assert float(rows[1]["mAP"]) == found["after_neck"]["mAP"]
    assert rows[0]["checkpoint"] == str(checkpoint)
    with safe_open(tmp_path / "f.safetensors", "pt") as saved:
        assert saved.get_tensor("query_before_neck").shape == (12, 64)
        assert saved.get_tensor("gallery_identities").tolist() == sorted([20, 21, 22, 23] * 3)
        paths = json.loads(saved.metadata()["gallery_paths"])
    assert paths[0] == "bounding_box_test/0020_c1s1_000017_00.jpg"
    umask = os.umask(0)
    os.umask(umask)
    for name in ("f.safetensors", "e.csv", "e.json"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~umask


def test_several_runs_and_data_sets_are_one_table(trained, other, market, tmp_path, capsys):
    second = shutil.copytree(market, tmp_path / "[2] more")
    for file in second.glob("query/0020*"):
        file.unlink()
    data = ("--data", market, "--data", second, "eval_batch=5", "--device", "cpu")
    arguments = (trained, "cache=off", *data, other / "checkpoints/last.pt")
    found = evaluate(*arguments, "--csv", tmp_path / "e.csv", tmp_path / "e.json")
    assert [row["paths"][0] for row in found] == 2 * [str(market), str(second)]
    assert [row["checkpoint"].split("/checkpoints")[0] for row in found] == [
        *2 * [str(trained)],
        *2 * [str(other)],
    ]
    assert [row["after_neck"]["valid_queries"] for row in found] == 2 * [12, 9]
    assert found[0]["before_neck"] != found[2]["before_neck"]
    assert len(list(csv.DictReader((tmp_path / "e.csv").open()))) == 8
    printed = capsys.readouterr().out
    assert f"1: {trained}, epoch 1, on market-like, 12 queries" in printed
    assert f"4: {other}, epoch 1, on market-like, 9 queries" in printed
    (alone,) = evaluate(other, tmp_path / "e.json")  # on the data of its training
    assert alone["before_neck"] == found[2]["before_neck"]


def test_mirror_images_and_reranking(trained, tmp_path, capsys):
    features = [tmp_path / "plain.safetensors", tmp_path / "flip.safetensors"]
    file = tmp_path / "e.json"
    arguments = ("--rerank", "--csv", tmp_path / "e.csv", "--features", features[0])
    (plain,) = evaluate(trained, *arguments, file)
    assert set(plain["reranked"]) == {"before_neck", "after_neck", "with"}
    assert plain["reranked"]["with"] == [20, 6, 0.3]
    assert set(plain["reranked"]["after_neck"]) == NUMBERS
    rows = list(csv.DictReader((tmp_path / "e.csv").open()))
    assert [row["rerank"] for row in rows] == ["", "", "20,6,0.3", "20,6,0.3"]
    assert "re-ranked" in capsys.readouterr().out
    (flipped,) = evaluate(trained, "--flip", "--features", features[1], file)
    assert flipped["flip"]
    assert "reranked" not in flipped
    before, after = (load_file(path)["query_after_neck"] for path in features)
    assert not torch.equal(before, after)
    torch.testing.assert_close(before, after, rtol=0, atol=float(before.abs().max()))
    assert run("evaluate", trained, "--rerank-with", "20,6") == 1
    assert "expected K1,K2,LAMBDA as 20,6,0.3, got '20,6'" in capsys.readouterr().err


def test_verification_stores_a_threshold(other, tmp_path, capsys):
    (found,) = evaluate(other, "--verification", "--far", "0.05", tmp_path / "e.json")
    verified = found["verification"]["after_neck"]
    assert verified["pairs_of_one_person"] == 24  # 12 queries, two other cameras
    assert verified["pairs_of_two_people"] == 12 * 9
    assert 0 <= verified["equal_error_rate"] <= 1
    curve = verified["curve"]
    assert (curve["false_accept"][0], curve["true_accept"][-1]) == (0, 1)
    assert len(verified["open_set_rank1_at_false_accept_rate"]) == 2
    threshold = load_threshold(other / "checkpoints/last.pt")
    assert threshold._asdict() | {"interval": list(threshold.interval)} == verified["threshold"]
    printed = capsys.readouterr().out
    assert "the same person up to distance" in printed
    assert "EER" in printed
    assert "last.pt.threshold.json" in printed


def test_matches_of_one_camera(trained, market, tmp_path, capsys):
    root = shutil.copytree(market, tmp_path / "one")
    for file in root.glob("*/*.jpg"):
        file.rename(file.with_name(file.name.replace("_c2", "_c1").replace("_c3", "_c1")))
    assert run("evaluate", trained, "--data", root) == 1
    assert f"{root}: no valid query remains" in capsys.readouterr().err
    arguments = (trained, "--data", root, "--keep-same-camera", tmp_path / "e.json")
    assert evaluate(*arguments)[0]["after_neck"]["valid_queries"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "--json", "{tmp}"], "this is a folder"),
        (["{run}", "--csv", "{tmp}/no/e.csv"], "there is no folder"),
        (["{run}", "--csv", "{tmp}/a", "--json", "{tmp}/a"], "given twice"),
        (["{run}", "{run}", "--features", "{tmp}/f"], "one checkpoint and one data set"),
        (["{run}", "epochs=3"], "'epochs' has no effect"),
        (["{run}", "eval_bach=3"], "did you mean 'eval_batch'"),
        (["{run}", "--far", "2"], "--far must be above 0 and below 1, got 2"),
        (["{run}", "--device", "abacus"], "'abacus' cannot be used"),
        (["{tmp}"], "expected the folder of a run, with checkpoints/last.pt"),
        (["{tmp}/nothing"], "no checkpoint at"),
    ],
)
def test_bad_arguments_are_named(arguments, message, trained, tmp_path, capsys):
    texts = [text.format(run=trained, tmp=tmp_path) for text in arguments]
    assert run("evaluate", *texts) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_where_one_of_several_fails(trained, tmp_path, capsys):
    (tmp_path / "broken.pt").write_bytes(b"nothing")
    file = tmp_path / "e.json"
    assert run("evaluate", trained, tmp_path / "broken.pt", "--json", file) == 1
    assert "broken.pt: damaged" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["broken.pt"]


def shared(*arguments):
    return run("evaluate", *arguments)


@pytest.mark.slow
def test_ranks_share_the_work(trained, tmp_path):
    arguments = (trained, "eval_batch=5", "--device=cpu", "--verification", "--far=0.05", "--json")
    assert run_ranks(shared, *arguments, tmp_path / "two.json") == [0, 0]
    assert run("evaluate", *arguments, tmp_path / "one.json") == 0
    assert (tmp_path / "two.json").read_text() == (tmp_path / "one.json").read_text()
