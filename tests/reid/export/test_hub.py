"""Networks as folders for the Hugging Face Hub."""

import json
import shutil
import sys

import pytest
import torch

from rga_fast.reid.export.model_card import model_card
from rga_fast.reid.retrieval.breakdown import Interval
from rga_fast.reid.retrieval.threshold import Threshold, save_threshold

hub = pytest.importorskip("rga_fast.reid.hub", reason="needs huggingface_hub")

SCORES = {
    name: {"rank1": 0.5, "rank5": 0.75, "rank10": 0.8, "mAP": 0.4, "mINP": 0.25}
    for name in ("before_neck", "after_neck")
}
THRESHOLD = Threshold(0.25, 0.01, 0.9, Interval(0.2, 0.3), "some data")


@pytest.fixture
def model(run_folder, tmp_path_factory):
    """Of a run with an evaluation and a threshold."""
    run = tmp_path_factory.mktemp("hub") / "run"
    shutil.copytree(run_folder, run)
    (run / "summary.json").write_text(json.dumps({"after": SCORES}))
    save_threshold(run / "checkpoints" / "last.pt", THRESHOLD)
    return hub.PretrainedReid.from_run(run, "cpu")


def test_a_folder_holds_all_that_a_user_needs(model, tmp_path):
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessing.json",
        "threshold.json",
    ]
    config = json.loads((folder / "config.json").read_text())
    assert "market" not in json.dumps(config["config"]), "where the data was is nobody's business"
    assert json.loads((folder / "preprocessing.json").read_text())["height"] == 32
    card = (folder / "README.md").read_text()
    for said in (
        "library_name: rga_fast",
        "It identifies people",
        "resnet18 with rga-sc after stages 1, 4",
        "| after the neck | 50.0 | 75.0 | 40.0 | 25.0 |",
        "at most 0.2500 (after_neck)",
    ):
        assert said in card, said

    again = hub.PretrainedReid.from_pretrained(folder, device="cpu")
    images = torch.randn(2, 3, 32, 16)
    with torch.no_grad():
        for first, second in zip(again(images), model(images), strict=True):
            assert torch.equal(first, second)
    assert not again.training
    assert (again.epoch, again.scores) == (3, SCORES)
    assert again.threshold["value"] == THRESHOLD.value
    assert again.data == model.data
    assert again.config.size == (32, 16)
    other = hub.PretrainedReid.from_pretrained(folder, device="cpu", impl="reference")
    assert other.config.impl == "reference"


def test_pushing_uploads_that_folder(model, monkeypatch):
    uploaded = {}

    class Api:
        def __init__(self, *args, **kwargs):
            pass

        def create_repo(self, repo_id, **kwargs):
            uploaded["private"] = kwargs["private"]
            return type("Url", (), {"repo_id": repo_id})()

        def upload_folder(self, *, folder_path, repo_id, **kwargs):
            uploaded["repo"] = repo_id
            uploaded["files"] = {path.name for path in folder_path.iterdir()}

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    model.push_to_hub("someone/reid", private=True)
    assert uploaded["repo"] == "someone/reid"
    assert uploaded["private"] is True
    assert {"model.safetensors", "README.md"} <= uploaded["files"]


def test_a_repository_is_downloaded(model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path / "served")
    asked = []

    def download(repo, **options):
        asked.append((repo, options["revision"]))
        return str(tmp_path / "served")

    monkeypatch.setattr(hub, "snapshot_download", download)
    # The mixin itself asks the Hub for config.json, which a run without a network does not have.
    again = hub.PretrainedReid._from_pretrained(
        model_id="someone/reid", revision="main", cache_dir=None, force_download=False,
        local_files_only=False, token=None, device="cpu",
    )  # fmt: skip
    assert asked == [("someone/reid", "main")]
    assert torch.equal(again.network.cls.weight, model.network.cls.weight)


def test_a_damaged_folder_is_refused(model, tmp_path):
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text('{"format": "another"}')
    with pytest.raises(ValueError, match=r"config\.json: not written by save_pretrained"):
        hub.PretrainedReid.from_pretrained(tmp_path)


def test_a_card_without_an_evaluation_says_so(model):
    card = model_card(model.trained)
    assert "Not evaluated." in card
    assert "a data set that is not known" in card


def test_without_the_package_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(sys.modules, "rga_fast.reid.hub")
    with pytest.raises(ImportError, match=r'pip install "rga-fast\[hub\]"'):
        __import__("rga_fast.reid.hub")
