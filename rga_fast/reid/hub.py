"""Trained networks as folders and repositories of the Hugging Face Hub.

    model = PretrainedReid.from_run("runs/mine")
    model.save_pretrained("mine")                  # model.safetensors, config.json, README.md, ...
    model.push_to_hub("name/mine", private=True)
    model = PretrainedReid.from_pretrained("mine")  # or "name/mine"

`save_pretrained`, `from_pretrained` and `push_to_hub` are those of huggingface_hub's mixin.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rga_fast.reid.checkpoint import (
    Trained,
    find_checkpoint,
    load_weights,
    make_network,
    open_trained,
)
from rga_fast.reid.config import Config
from rga_fast.reid.distributed import pick_device
from rga_fast.reid.export.facts import preprocessing
from rga_fast.reid.export.model_card import TAGS, model_card
from rga_fast.reid.files import write_file
from rga_fast.reid.network.reidnet import ReidOutput
from rga_fast.reid.retrieval.threshold import load_threshold

try:
    from huggingface_hub import ModelHubMixin, snapshot_download
except ImportError as error:
    raise ImportError(
        f'huggingface_hub is needed: pip install "rga-fast[hub]" ({error})'
    ) from error

FORMAT = "rga_fast pretrained 1"
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
PREPROCESSING, THRESHOLD = "preprocessing.json", "threshold.json"
_LOCAL = ("data", "cache", "cache_folder", "pretrained", "device")  # of the machine that trained


class PretrainedReid(nn.Module, ModelHubMixin, library_name="rga_fast", tags=list(TAGS)):
    """A trained network with what belongs to it, in evaluation mode.

    Args:
        trained: the network, its configuration and epoch.
        scores: of the evaluation after its training, as in a run's `summary.json`; for the card.
        data: the name of the data set that it was trained on; for the card.
        threshold: the fields of a `Threshold` for "the same person".
    """

    def __init__(
        self,
        trained: Trained,
        *,
        scores: dict[str, Any] | None = None,
        data: str | None = None,
        threshold: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.network = trained.network
        self.config, self.epoch = trained.config, trained.epoch
        self.scores, self.data, self.threshold = scores, data, threshold
        self.eval()

    @property
    def trained(self) -> Trained:
        """As `open_trained` returns it."""
        return Trained(self.network, self.config, self.epoch)

    def forward(self, images: Tensor) -> ReidOutput:
        """(B, 3, H, W), normalised, as `ReidNet`."""
        return self.network(images)

    @classmethod
    def from_run(cls, path: str | os.PathLike[str], device: str = "auto") -> PretrainedReid:
        """The network of a run (its folder) or of a checkpoint, with the run's scores and the
        threshold beside the checkpoint, where there are.

        Raises:
            FileNotFoundError, ValueError: as `open_trained`.
        """
        checkpoint = find_checkpoint(path)
        trained = open_trained(checkpoint, device, impl="auto")
        summary = checkpoint.parent.parent / "summary.json"
        scores = json.loads(summary.read_text())["after"] if summary.is_file() else None
        threshold = load_threshold(checkpoint)
        return cls(
            trained,
            scores=scores,
            data=_data_name(trained.config.data),
            threshold=None if threshold is None else threshold._asdict(),
        )

    def _save_pretrained(self, save_directory: Path) -> None:
        tensors = {k: v.detach().cpu().contiguous() for k, v in self.network.state_dict().items()}
        fields = {k: v for k, v in dataclasses.asdict(self.config).items() if k not in _LOCAL}
        content = {
            "format": FORMAT,
            "config": fields,
            "num_classes": self.network.cls.out_features,
            "run": {"epoch": self.epoch, "data": self.data, "scores": self.scores},
        }
        texts = {CONFIG: content, PREPROCESSING: preprocessing(self.config.size)}
        if self.threshold is not None:
            texts[THRESHOLD] = self.threshold
        write_file(
            save_directory / WEIGHTS,
            lambda partial: save_file(tensors, partial, metadata={"format": "pt"}),
        )
        for name, value in texts.items():
            write_file(save_directory / name, json.dumps(value, indent=2) + "\n")
        write_file(save_directory / CARD, self.generate_model_card().content + "\n")

    def generate_model_card(self, *args: Any, **kwargs: Any) -> Any:
        """The card, as huggingface_hub's `ModelCard`: see `rga_fast.reid.export.model_card`."""
        from huggingface_hub import ModelCard

        return ModelCard(
            model_card(self.trained, scores=self.scores, data=self.data, threshold=self.threshold)
        )

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        device: str = "auto",
        **fields: Any,
    ) -> PretrainedReid:
        folder = Path(model_id)
        if not folder.is_dir():
            folder = Path(
                snapshot_download(
                    model_id,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                    allow_patterns=[WEIGHTS, CONFIG, PREPROCESSING, THRESHOLD],
                )
            )
        return _open_folder(cls, folder, device, fields)


def _open_folder(
    cls: type[PretrainedReid], folder: Path, device: str, fields: dict[str, Any]
) -> PretrainedReid:
    path = folder / CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}, expected {FORMAT!r}")
        config = Config().replace(**{**content["config"], **fields})
        network, run = make_network(config, content["num_classes"]), content["run"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not written by save_pretrained: {error}") from error
    load_weights(network, load_file(folder / WEIGHTS), str(folder / WEIGHTS))
    network.to(pick_device(device)).eval()
    threshold = folder / THRESHOLD
    return cls(
        Trained(network, config, run["epoch"]),
        scores=run["scores"],
        data=run["data"],
        threshold=json.loads(threshold.read_text()) if threshold.is_file() else None,
    )


def _data_name(paths: str | tuple[str, ...] | None) -> str:
    """The data set in words: names of folders, not where they are."""
    if paths is None:
        return "the synthetic data set of rga-fast"
    listed = (paths,) if isinstance(paths, str) else paths
    return ", ".join(Path(path).name for path in listed)
