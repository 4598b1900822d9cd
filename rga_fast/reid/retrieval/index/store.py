"""The folder of an index: shards of features with their tables, and one manifest.

    manifest.json          what the index holds; replaced as a whole, so readers never see a part
    network/last.pt        the network that made it, a checkpoint
    shards/N.safetensors   features (n, D) float32 as extracted, and their lengths, norms (n,)
    shards/N.csv           path, identity, camera, time, size, modified: a row per feature

A shard never changes once it has its name. Shards that no manifest lists belong to an index that
was interrupted, and are used when it is continued.
"""

from __future__ import annotations

import csv
import io
import json
import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rga_fast.reid.files import write_file
from rga_fast.reid.retrieval.breakdown import Interval
from rga_fast.reid.retrieval.index.gallery import Entry
from rga_fast.reid.retrieval.threshold import Threshold

FORMAT = "rga_fast index 1"
MANIFEST, SHARDS = "manifest.json", "shards"


class Shard(NamedTuple):
    name: str
    rows: int


class Manifest(NamedTuple):
    """What an index holds.

    network: its record, see `network_record`. feature, flip: which features of it. width: D.
    images: the gallery's folder, relative to the index. threshold: up to which distance two images
    show the same person, None if unknown. shards: in the order of the rows. approximate: of the
    file for approximate search: `name`, `kind`, `recall` with its `k` and `queries`; empty if none.
    """

    network: dict[str, Any]
    feature: str
    flip: bool
    width: int
    images: str
    threshold: Threshold | None = None
    shards: tuple[Shard, ...] = ()
    approximate: dict[str, Any] = {}  # noqa: RUF012

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def made_by(self) -> dict[str, Any]:
        """What every shard has to agree with."""
        return {"network": self.network["hash"], "feature": self.feature, "flip": self.flip}


class ShardData(NamedTuple):
    """features (n, D) float32, mapped from the file; norms (n,), their lengths; entries, n."""

    features: Tensor
    norms: Tensor
    entries: list[Entry]


def read_manifest(folder: Path) -> Manifest:
    """FileNotFoundError if `folder` is no index, ValueError if its manifest is damaged."""
    path = folder / MANIFEST
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if fields.pop("format") != FORMAT:
            raise ValueError("another format")
        fields["shards"] = tuple(Shard(*shard) for shard in fields["shards"])
        if fields["threshold"] is not None:
            interval = Interval(*fields["threshold"].pop("interval"))
            fields["threshold"] = Threshold(interval=interval, **fields["threshold"])
        return Manifest(**fields)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{folder}: not an index: there is no {MANIFEST}; rga-fast index makes one"
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: damaged, or of another version: {error}") from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """From here on readers see what `manifest` lists."""
    fields = manifest._asdict() | {"format": FORMAT}
    if manifest.threshold is not None:
        fields["threshold"] = manifest.threshold._asdict()
    write_file(folder / MANIFEST, json.dumps(fields, indent=1) + "\n")


def write_shard(
    folder: Path, manifest: Manifest, features: Tensor, entries: Iterable[Entry]
) -> Shard:
    """Writes features (n, D) and their entries under a new name, which no manifest lists yet."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Entry._fields)
    writer.writerows(entries)
    name = uuid.uuid4().hex
    features = features.contiguous()
    tensors = {"features": features, "norms": torch.linalg.vector_norm(features, dim=1)}
    metadata = {"format": FORMAT, "made_by": json.dumps(manifest.made_by)}
    write_file(_table(folder, name), text.getvalue().encode("utf-8", "surrogateescape"))
    # The features complete the shard.
    write_file(_tensors(folder, name), lambda path: save_file(tensors, path, metadata=metadata))
    return Shard(name, len(features))


def read_shard(folder: Path, name: str) -> ShardData:
    """FileNotFoundError if it is not there, ValueError if it is damaged."""
    entries = read_entries(folder, name)
    try:
        with safe_open(_tensors(folder, name), framework="pt") as file:
            data = ShardData(file.get_tensor("features"), file.get_tensor("norms"), entries)
    except SafetensorError as error:
        raise ValueError(f"{_tensors(folder, name)}: damaged: {error}") from error
    if not len(data.features) == len(data.norms) == len(entries):
        raise ValueError(
            f"{_tensors(folder, name)}: {len(data.features)} features, but {len(entries)} rows"
        )
    return data


def read_entries(folder: Path, name: str) -> list[Entry]:
    """The table of a shard."""
    path = _table(folder, name)
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = csv.reader(file)
            if tuple(next(rows, ())) != Entry._fields:
                raise ValueError("another header")
            return [
                Entry(image, identity, camera, time, int(size), int(modified))
                for image, identity, camera, time, size, modified in rows
            ]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}: damaged: {error}") from error


def left_over_shards(folder: Path, manifest: Manifest) -> list[Shard]:
    """Complete shards of the same network that the manifest does not list yet."""
    listed = {shard.name for shard in manifest.shards}
    kept = []
    for path in sorted((folder / SHARDS).glob("*.safetensors")):
        if path.stem not in listed and _table(folder, path.stem).is_file():
            rows = _rows_made_by(path, manifest)
            kept += [Shard(path.stem, rows)] if rows else []
    return kept


def delete_unlisted(folder: Path, manifest: Manifest) -> None:
    """Deletes what the manifest does not list. Readers that have such a file open keep it."""
    listed = {shard.name for shard in manifest.shards} | {manifest.approximate.get("name")}
    for path in (folder / SHARDS).iterdir():
        if path.name.split(".")[0] not in listed or path.suffix == ".partial":
            path.unlink(missing_ok=True)


def _rows_made_by(path: Path, manifest: Manifest) -> int:
    """The rows of a shard of this network, 0 for any other."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            shape = file.get_slice("norms").get_shape()
    except (SafetensorError, OSError):
        return 0
    same = json.loads(metadata.get("made_by", "null")) == manifest.made_by
    return shape[0] if same and metadata.get("format") == FORMAT else 0


def images_folder(folder: Path, manifest: Manifest) -> Path:
    """The folder of the gallery's images."""
    return Path(os.path.normpath(folder / manifest.images))


def _tensors(folder: Path, name: str) -> Path:
    return folder / SHARDS / f"{name}.safetensors"


def _table(folder: Path, name: str) -> Path:
    return folder / SHARDS / f"{name}.csv"
