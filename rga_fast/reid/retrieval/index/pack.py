"""Shards of even size: rows that go are left out, small shards are joined."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from rga_fast.reid.retrieval.index.gallery import Entry
from rga_fast.reid.retrieval.index.store import (
    Manifest,
    Shard,
    read_entries,
    read_shard,
    write_shard,
)

SHARD_ROWS = 1 << 14  # 128 MB of 2048 float32 each


def pack_shards(
    folder: Path, manifest: Manifest, shards: Sequence[Shard], stays: Callable[[Entry], bool]
) -> tuple[Shard, ...]:
    """`shards` without the rows that do not stay and without second rows of a path. Shards that
    change or are small are written again, under new names; the others come first, as they are."""
    seen: set[str] = set()
    rows: dict[Shard, list[int]] = {}  # that stay
    for shard in shards:
        entries = read_entries(folder, shard.name)
        rows[shard] = [
            row
            for row, entry in enumerate(entries)
            if stays(entry) and entry.path not in seen and not seen.add(entry.path)  # type: ignore[func-returns-value]
        ]
    cut = [shard for shard in shards if len(rows[shard]) < shard.rows]
    small = [shard for shard in shards if shard not in cut and shard.rows < SHARD_ROWS // 2]
    rewritten = {*cut, *(small if len(small) + len(cut) > 1 else ())}
    kept = [shard for shard in shards if shard not in rewritten]
    parts = _parts(folder, [(shard, rows[shard]) for shard in shards if shard in rewritten])
    return (*kept, *(write_shard(folder, manifest, *part) for part in _even(parts)))


def _parts(
    folder: Path, shards: Sequence[tuple[Shard, list[int]]]
) -> Iterator[tuple[Tensor, list[Entry]]]:
    for shard, rows in shards:
        data = read_shard(folder, shard.name)
        yield data.features[torch.tensor(rows, dtype=torch.long)], [data.entries[i] for i in rows]


def _even(parts: Iterator[tuple[Tensor, list[Entry]]]) -> Iterator[tuple[Tensor, list[Entry]]]:
    """The same rows, `SHARD_ROWS` at a time."""
    held: list[Tensor] = []
    entries: list[Entry] = []
    for features, more in parts:
        held.append(features)
        entries += more
        while len(entries) >= SHARD_ROWS:
            joined = torch.cat(held)
            yield joined[:SHARD_ROWS], entries[:SHARD_ROWS]
            held, entries = [joined[SHARD_ROWS:]], entries[SHARD_ROWS:]
    if entries:
        yield torch.cat(held), entries
