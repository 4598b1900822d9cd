"""Making an index, bringing it up to date, removing images from it."""

from __future__ import annotations

import fnmatch
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock, Timeout

from rga_fast import validation
from rga_fast.reid.distributed import Ranks
from rga_fast.reid.files import write_file
from rga_fast.reid.retrieval.index import approximate, record, store
from rga_fast.reid.retrieval.index.extract import extract_files
from rga_fast.reid.retrieval.index.gallery import Entry, Gallery, open_gallery
from rga_fast.reid.retrieval.index.pack import pack_shards
from rga_fast.reid.retrieval.index.search import Index
from rga_fast.reid.retrieval.index.store import Manifest
from rga_fast.reid.retrieval.model import ReidModel
from rga_fast.reid.retrieval.threshold import load_threshold

PART_ROWS, PART_SECONDS = 2048, 60.0  # what an interruption costs at most


class Changes(NamedTuple):
    """What `build_index` did: images added, removed and kept, and the errors of those skipped.
    Images that an interrupted run had extracted count as kept."""

    added: int
    removed: int
    kept: int
    skipped: list[str]


class _Plan(NamedTuple):
    """What every rank has to know."""

    manifest: Manifest
    root: Path
    todo: list[Entry]


def build_index(
    model: ReidModel,
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    split: str | None = None,
    batch_size: int | None = None,
    ranks: Ranks | None = None,
    progress: Callable[..., None] | None = None,
) -> Changes:
    """Makes the index in `folder` hold the images of `source`: new and changed ones are added,
    those that are gone are removed, the others stay as they are.

    An interrupted call, by kill -9, too, changes nothing for readers; the next one continues where
    it stopped. Images that cannot be read are skipped. The threshold stored beside the checkpoint
    is copied.

    Args:
        source, split: see `open_gallery`.
        ranks: with several, each extracts a share; the main one writes the manifest.
        progress: called with (done, total) images.

    Raises:
        OSError, ValueError: of `open_gallery`; ValueError if the index was made by another network,
            with another feature, or of another folder, or if another process is writing it.
    """
    folder, ranks = Path(folder), ranks or Ranks()
    gallery = open_gallery(source, split) if ranks.main else None
    with _writing(folder, ranks):
        plan = ranks.from_main(lambda: _plan(model, gallery, folder))
        own = list(_share(plan.todo, batch_size or model.config.eval_batch, ranks))
        skipped = _extract(model, plan, folder, own, batch_size, ranks, progress)
        errors = list(chain.from_iterable(ranks.gather(skipped)))
        return ranks.from_main(lambda: _commit(plan, gallery, folder, errors))


def remove_images(folder: str | os.PathLike[str], patterns: Sequence[str]) -> int:
    """Removes the images whose paths match any of the patterns, such as "alice/*". Their number.

    Raises:
        FileNotFoundError, ValueError: if `folder` is no index; ValueError if nothing matches, or
            another process is writing it.
    """
    folder = Path(folder)
    store.read_manifest(folder)
    with _writing(folder, Ranks()):
        manifest = store.read_manifest(folder)

        def stays(entry: Entry) -> bool:
            return not any(fnmatch.fnmatchcase(entry.path, pattern) for pattern in patterns)

        shards = pack_shards(folder, manifest, manifest.shards, stays)
        removed = manifest.rows - sum(shard.rows for shard in shards)
        if not removed:
            raise ValueError(f"{folder}: no image's path matches {' or '.join(patterns)}")
        _publish(folder, manifest._replace(shards=shards, approximate={}))
    return removed


def add_approximate(
    folder: str | os.PathLike[str], kind: str = "ivf", k: int = 10, queries: int = 200
) -> float:
    """Adds a FAISS index for approximate search, in place of a former one. It goes when images are
    added or removed.

    Args:
        kind: "ivf": cells around centres, of which a few are searched; "hnsw": a graph; "pq": cells
            with codes of about D / 8 bytes in place of the 4 * D bytes of the features.
        k, queries: of the recall.

    Returns:
        The recall, see `Index.recall`. It is stored in the manifest, too.

    Raises:
        ImportError: without FAISS. FileNotFoundError, ValueError: if `folder` is no index;
            ValueError for another kind, a gallery of less than 2 k images, or if another process
            is writing it.
    """
    validation.check_choice("add_approximate", "kind", kind, approximate.KINDS)
    folder = Path(folder)
    store.read_manifest(folder)
    with _writing(folder, Ranks()):
        index = Index(folder)
        if len(index) < 2 * k:
            raise ValueError(f"{folder}: expected at least {2 * k} images, got {len(index)}")
        manifest = index.manifest
        built = approximate.make(kind, index.shards, len(index), manifest.width)
        name = uuid.uuid4().hex
        path = folder / store.SHARDS / f"{name}{approximate.SUFFIX}"
        write_file(path, lambda partial: approximate.save(built, partial))
        entry = {"name": name, "kind": kind, "k": k, "queries": queries}
        index.manifest = manifest._replace(approximate=entry)
        recall = index.recall(k, queries)
        _publish(folder, manifest._replace(approximate=entry | {"recall": recall}))
    return recall


@contextmanager
def _writing(folder: Path, ranks: Ranks) -> Iterator[None]:
    """One writer at a time; the lock ends with the process."""
    if ranks.main:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not (folder / store.SHARDS).is_dir():
            raise ValueError(
                f"{folder}: expected an index or an empty folder, it holds other files"
            )
    lock = FileLock(folder / ".lock")

    def acquire() -> str | None:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return f"{folder}: another process is writing this index"
        return None

    refused = ranks.from_main(acquire)
    if refused is not None:
        raise ValueError(refused)
    try:
        yield
    finally:
        lock.release()


def _plan(model: ReidModel, gallery: Gallery | None, folder: Path) -> _Plan:
    assert gallery is not None
    manifest = _manifest(model, gallery.root, folder)
    known: set[Entry] = set()
    for shard in [*manifest.shards, *store.left_over_shards(folder, manifest)]:
        known.update(store.read_entries(folder, shard.name))
    return _Plan(manifest, gallery.root, [e for e in gallery.entries if e not in known])


def _manifest(model: ReidModel, root: Path, folder: Path) -> Manifest:
    """That of the index, after the checks; of an empty one if there is none yet."""
    (folder / store.SHARDS).mkdir(exist_ok=True)
    threshold = load_threshold(model.path)
    if threshold is not None and (threshold.feature, threshold.flip) != (model.feature, model.flip):
        threshold = None
    if not (folder / store.MANIFEST).exists():
        record.save_network(folder, model)
        images = _relative(root, folder)
        own = record.network_record(model)
        return Manifest(own, model.feature, model.flip, model.feature_dim, images, threshold)
    manifest = store.read_manifest(folder)
    record.check_same_model(folder, manifest, model)
    known = store.images_folder(folder, manifest)
    if known.resolve() != root.resolve():
        raise ValueError(f"{folder} is the index of the images in {known}, not of {root}")
    return manifest._replace(threshold=threshold or manifest.threshold)


def _relative(root: Path, folder: Path) -> str:
    """Both may be moved together; on Windows not across drives."""
    try:
        return Path(os.path.relpath(root.resolve(), folder.resolve())).as_posix()
    except ValueError:
        return root.resolve().as_posix()


def _share(todo: Sequence[Entry], batch_size: int, ranks: Ranks) -> Iterator[Entry]:
    """Every `world`-th batch."""
    for start in range(ranks.rank * batch_size, len(todo), ranks.world * batch_size):
        yield from todo[start : start + batch_size]


def _extract(
    model: ReidModel,
    plan: _Plan,
    folder: Path,
    entries: Sequence[Entry],
    batch_size: int | None,
    ranks: Ranks,
    progress: Callable[..., None] | None,
) -> list[str]:
    """Writes the features of `entries` in shards. The errors of images that cannot be read."""
    errors: list[str] = []
    features: list[torch.Tensor] = []
    held: list[Entry] = []
    done, written = 0, time.monotonic()
    files = [plan.root / entry.path for entry in entries]
    for batch in extract_files(model, files, batch_size or model.config.eval_batch):
        features.append(batch.features)
        held += [entries[place] for place in batch.places]
        errors += batch.errors
        done += len(batch.places) + len(batch.errors)
        late = time.monotonic() - written > PART_SECONDS
        if held and (late or len(held) >= PART_ROWS or done == len(entries)):
            store.write_shard(folder, plan.manifest, torch.cat(features).cpu(), held)
            features, held, written = [], [], time.monotonic()
        if progress is not None:
            progress(min(done * ranks.world, len(plan.todo)), len(plan.todo))
    return errors


def _commit(plan: _Plan, gallery: Gallery | None, folder: Path, errors: list[str]) -> Changes:
    """Replaces the manifest by one of what was kept and what was added."""
    assert gallery is not None
    before, wanted = plan.manifest, set(gallery.entries)
    added = store.left_over_shards(folder, before)
    shards = pack_shards(folder, before, [*before.shards, *added], wanted.__contains__)
    rows = sum(shard.rows for shard in shards)
    changed = shards != before.shards
    kept = {} if changed else before.approximate
    _publish(folder, before._replace(shards=shards, approximate=kept))
    new = len(plan.todo) - len(errors)
    return Changes(new, before.rows - (rows - new), rows - new, errors)


def _publish(folder: Path, manifest: Manifest) -> None:
    store.write_manifest(folder, manifest)
    store.delete_unlisted(folder, manifest)
