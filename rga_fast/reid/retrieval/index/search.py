"""Searching an index: exactly, one shard at a time, or approximately."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rga_fast.reid.retrieval.index import approximate, store
from rga_fast.reid.retrieval.index.gallery import Entry, parse_time
from rga_fast.reid.retrieval.index.store import ShardData
from rga_fast.reid.retrieval.threshold import Threshold
from rga_fast.reid.retrieval.topk import lowest

_QUERIES = 1024  # at a time
_ATTEMPTS = 10  # to open an index that is being replaced


class Match(NamedTuple):
    """An image of the gallery and its cosine distance (0 to 2) from the query.

    `path` is relative to the gallery; `identity`, `camera` and `time` are "" where unknown.
    """

    path: str
    distance: float
    identity: str
    camera: str
    time: str


class Filter(NamedTuple):
    """Which images may be found: of these cameras (any if none is named), from `begin` to `end`
    (ISO 8601, both included). Images whose time is unknown are left out where a time is asked
    for."""

    cameras: Collection[str] = ()
    begin: str | None = None
    end: str | None = None

    def __bool__(self) -> bool:
        return bool(self.cameras) or self.begin is not None or self.end is not None


def in_gallery(matches: Sequence[Match], threshold: Threshold | None) -> bool | None:
    """Whether the nearest match shows the person by the threshold; None where that is unknown."""
    if threshold is None:
        return None
    return bool(matches) and matches[0].distance <= threshold.value


class Index:
    """An open index. It stays as it was when it was opened, whatever is written later.

    Attributes: `folder`, `manifest`, `images` (the folder of the gallery's images), `threshold`
    (None if unknown). `len(index)` is the number of images.

    Raises:
        FileNotFoundError: if there is no index. ValueError: if it is damaged.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.manifest, self._shards = _opened(self.folder)
        self.images = store.images_folder(self.folder, self.manifest)
        self.threshold = self.manifest.threshold

    def __len__(self) -> int:
        return self.manifest.rows

    def entries(self) -> list[Entry]:
        """All images, in the order of their rows."""
        return [entry for shard in self._shards for entry in shard.entries]

    def cameras(self) -> list[str]:
        """The cameras of the gallery, numbers in their order."""
        found = {str(name) for names in self._cameras for name in np.unique(names)} - {""}
        return sorted(found, key=lambda name: (not name.isdecimal(), name.zfill(12)))

    def search(
        self, features: Tensor, k: int = 10, where: Filter | None = None, exact: bool = True
    ) -> list[list[Match]]:
        """The k nearest images of each of the features (Nq, D), nearest first; equal distances rank
        by row. Fewer where the filter leaves fewer.

        Args:
            where: which images may be found.
            exact: False takes the approximate index (`add_approximate`); with a filter the search
                is exact all the same.

        Raises:
            ValueError: for a k below 1, features of another width or not finite, a time that is
                none, or an approximate search without its index.
        """
        if features.ndim != 2 or features.shape[1] != self.manifest.width:
            raise ValueError(
                f"search: features must be (N, {self.manifest.width}), got {tuple(features.shape)}"
            )
        features = features.detach().float().cpu()
        if k < 1 or not features.isfinite().all():
            raise ValueError(f"search: expected k >= 1 and finite features, got k {k}")
        unit = torch.nn.functional.normalize(features)
        if exact or where:
            found = [self._exact(part, k, where or Filter()) for part in unit.split(_QUERIES)]
        else:
            found = [approximate.search(self._approximate, unit, k)]
        begin = np.cumsum([0, *(len(shard.entries) for shard in self._shards)])
        return [
            [
                self._match(int(row), float(distance), begin)
                for row, distance in zip(rows, distances, strict=True)
                if np.isfinite(distance)
            ]
            for rows_of, distances_of in found
            for rows, distances in zip(rows_of.tolist(), distances_of.tolist(), strict=True)
        ]

    @cached_property
    def _approximate(self) -> Any:
        if not self.manifest.approximate:
            raise ValueError(
                f"{self.folder} has no index for approximate search, or images were added or "
                "removed since: rga-fast index --approximate makes one"
            )
        path = self.folder / store.SHARDS / f"{self.manifest.approximate['name']}.faiss"
        return approximate.load(path)

    def shards(self) -> Iterator[Tensor]:
        """The features (n, D) of each shard, as extracted."""
        return (shard.features for shard in self._shards)

    def recall(self, k: int, queries: int) -> float:
        """The share of the k exact nearest images that the approximate search finds, for images of
        the gallery in which each is not counted itself."""
        rows = torch.arange(0, len(self), max(1, math.ceil(len(self) / queries)))
        parts, first = [], 0
        for features in self.shards():
            inside = (rows >= first) & (rows < first + len(features))
            parts.append(features[rows[inside] - first])
            first += len(features)
        unit = torch.nn.functional.normalize(torch.cat(parts))
        exact, _ = self._exact(unit, k + 1, Filter())
        found, _ = approximate.search(self._approximate, unit, k + 1)
        shared = [
            len((set(a) & set(b)) - {own})
            for a, b, own in zip(exact.tolist(), found.tolist(), rows.tolist(), strict=True)
        ]
        return sum(shared) / (k * len(rows))

    @torch.no_grad()
    def _exact(self, unit: Tensor, k: int, where: Filter) -> tuple[Tensor, Tensor]:
        """Rows and distances (Nq, k) of queries of length 1; each feature is read once."""
        best = torch.empty(len(unit), 0, dtype=torch.long), torch.empty(len(unit), 0)
        first = 0
        for shard, mask in zip(self._shards, self._masks_of(where), strict=True):
            if mask is None or mask.any():
                distances = _distances(unit, shard)
                if mask is not None:
                    distances.masked_fill_(~mask, torch.inf)
                best = _merged(best, distances, first, k)
            first += len(shard.entries)
        return best

    def _masks_of(self, where: Filter) -> Sequence[Tensor | None]:
        if not where:
            return [None] * len(self._shards)
        unknown = set(where.cameras) - set(self.cameras())
        if unknown:
            raise ValueError(
                f"{self.folder}: no image is of camera {', '.join(sorted(unknown))}; the cameras "
                f"are {', '.join(self.cameras()) or 'unknown'}"
            )
        begin, end = (None if t is None else parse_time(t) for t in (where.begin, where.end))
        masks = []
        for place, shard in enumerate(self._shards):
            mask = np.ones(len(shard.entries), bool)
            if where.cameras:
                mask &= np.isin(self._cameras[place], sorted(where.cameras))
            if begin is not None:
                mask &= self._times[place] >= begin
            if end is not None:
                mask &= self._times[place] <= end
            masks.append(torch.from_numpy(mask))
        return masks

    @cached_property
    def _cameras(self) -> list[np.ndarray]:
        return [np.array([entry.camera for entry in shard.entries]) for shard in self._shards]

    @cached_property
    def _times(self) -> list[np.ndarray]:
        """In seconds since 1970; NaN, which is within no bounds, where unknown."""
        return [
            np.array([parse_time(entry.time) if entry.time else np.nan for entry in shard.entries])
            for shard in self._shards
        ]

    def _match(self, row: int, distance: float, begin: np.ndarray) -> Match:
        shard = int(np.searchsorted(begin, row, side="right")) - 1
        entry = self._shards[shard].entries[row - int(begin[shard])]
        return Match(entry.path, max(distance, 0.0), entry.identity, entry.camera, entry.time)


def _merged(
    best: tuple[Tensor, Tensor], distances: Tensor, first: int, k: int
) -> tuple[Tensor, Tensor]:
    """The k nearest of `best` and of the rows from `first` on; (Nq, at most k) each."""
    near = None
    if len(distances) == 1 and best[1].shape[1] == k:  # few are nearer than all so far: no sorting
        near = (distances[0] < best[1][0, -1]).nonzero().flatten()
        if not len(near):
            return best
        distances = distances[:, near]
    rows, values = lowest(distances, min(k, distances.shape[1]))
    rows = (rows if near is None else near[rows]) + first
    rows, values = torch.cat([best[0], rows], 1), torch.cat([best[1], values], 1)
    chosen, values = lowest(values, min(k, values.shape[1]))
    return rows.gather(1, chosen), values


def _distances(unit: Tensor, shard: ShardData) -> Tensor:
    """(Nq, n) cosine distances."""
    if len(unit) == 1:
        products = torch.mv(shard.features, unit[0])[None]
    else:
        products = unit @ shard.features.T
    return products.div_(shard.norms.clamp_min(1e-12)).neg_().add_(1)


def _opened(folder: Path) -> tuple[store.Manifest, list[ShardData]]:
    """The manifest and all its shards. Where the index is replaced meanwhile, once more."""
    manifest = store.read_manifest(folder)
    for _ in range(_ATTEMPTS):
        try:
            return manifest, [store.read_shard(folder, shard.name) for shard in manifest.shards]
        except FileNotFoundError as error:
            before, manifest = manifest, store.read_manifest(folder)
            if manifest == before:
                raise ValueError(f"{folder}: damaged: {error.filename} is missing") from error
    raise ValueError(f"{folder}: the index is replaced faster than it can be read")
