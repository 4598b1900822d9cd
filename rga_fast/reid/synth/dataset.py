"""Writes the procedural data set in the layout and naming of Market-1501."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rga_fast.reid.synth.cameras import CAMERAS
from rga_fast.reid.synth.shot import misfire, photograph, pose_on, walk
from rga_fast.reid.synth.wardrobe import look_of, stranger

VERSION = 1  # of the generator: to be increased when the same seed gives other pictures
TRAIN, TEST, QUERY = "bounding_box_train", "bounding_box_test", "query"
DISTRACTOR, JUNK = 0, -1
# First words of the seed of each kind of generator; look_of uses 1 and 2.
VISITS, TRACKS, PICTURES, EXTRAS = 3, 4, 5, 6
NOTE = """A procedural pedestrian data set in the layout and naming of Market-1501.

Nobody in these pictures exists. Written by rga_fast; synthetic.json holds the seed, the number of
identities and the counts. The same seed gives the same files with the same versions of the
generator, numpy and Pillow.
"""


@dataclass(frozen=True)
class Task:
    """What one worker writes at a time: the pictures of `identity`, or, for `DISTRACTOR` and
    `JUNK`, the pictures with the numbers in `numbers`.
    """

    identity: int
    numbers: range = range(0)


def is_test(identity: int) -> bool:
    """Every third identity is a test identity, the others are training identities."""
    return identity % 3 == 0


def write_dataset(
    out: Path | str,
    identities: int = 240,
    seed: int = 0,
    size: tuple[int, int] = (128, 64),
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, int]:
    """Writes the data set to the folder `out`, which must not exist or be empty.

    Two thirds of the `identities` are training identities, one third test identities. `size` is
    (height, width) in pixels. `workers` processes draw (all cores by default); the files do not
    depend on it, and the pictures of an identity do not depend on the number of identities.
    `progress(done, total)` is called every few pictures. Everything is written to a temporary
    folder next to `out`, which is renamed when complete.

    Returns the counts: `train_identities`, `train_images`, `test_identities`, `query_images`,
    `gallery_images` (of test identities), `distractor_images`, `junk_images`.

    Raises ValueError for arguments out of range, FileExistsError if `out` is not empty, and OSError
    if it cannot be written.
    """
    out = Path(out)
    if identities < 3:
        raise ValueError(f"write_dataset: identities must be at least 3, got {identities}")
    if seed < 0:
        raise ValueError(f"write_dataset: seed must not be negative, got {seed}")
    if len(size) != 2 or size[0] < 32 or size[1] < 16:
        raise ValueError(f"write_dataset: size must be at least (32, 16), got {tuple(size)}")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise FileExistsError(f"write_dataset: {out} exists and is not an empty folder")
    tasks = _tasks(identities)
    expected = {task: len(list(_names(task, seed))) for task in tasks}
    draft = out.parent / f".{out.name}.{os.getpid()}.part"
    try:
        for folder in (TRAIN, TEST, QUERY):
            (draft / folder).mkdir(parents=True)
        done, total = 0, sum(expected.values())
        for task in _run(tasks, draft, seed, size, workers or os.cpu_count() or 1):
            done += expected[task]
            if progress is not None:
                progress(done, total)
        counts = _counts(draft)
        about = {
            "generator": VERSION,
            "seed": seed,
            "identities": identities,
            "size": list(size),
            "counts": counts,
        }
        (draft / "synthetic.json").write_text(json.dumps(about, indent=2) + "\n")
        (draft / "README.txt").write_text(NOTE)
        if out.exists():
            out.rmdir()
        draft.rename(out)
    except OSError as error:
        raise OSError(
            error.errno, f"cannot write the data set: {error.strerror}", str(out)
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return counts


def _tasks(identities: int) -> list[Task]:
    """The work, in tasks of about a dozen pictures."""
    tasks = [Task(identity) for identity in range(1, identities + 1)]
    for identity, count in ((DISTRACTOR, 2 * identities // 3), (JUNK, identities // 2)):
        for first in range(0, count, 12):
            tasks.append(Task(identity, range(first, min(first + 12, count))))
    return tasks


def _run(
    tasks: list[Task], draft: Path, seed: int, size: tuple[int, int], workers: int
) -> Iterator[Task]:
    """Draws all tasks and yields each when its pictures are on disk."""
    left = dict.fromkeys(tasks)
    if workers > 1:
        # spawn: a fork of a process in which torch's threads run may hang.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            with _interrupts_ignored():  # which the processes inherit: this one ends them
                futures = {pool.submit(_draw, task, draft, seed, size): task for task in tasks}
            try:
                for future in as_completed(futures):
                    future.result()
                    left.pop(futures[future])
                    yield futures[future]
            except BrokenProcessPool:
                pass  # processes cannot start, as in a script without a main guard: draw here
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    for task in left:
        _draw(task, draft, seed, size)
        yield task


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _generator(*words: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(words))


def _names(task: Task, seed: int) -> Iterator[tuple[int, int, str]]:
    """Camera, number and path below the data set of each picture of a task."""
    if task.identity <= 0:
        word = "0000" if task.identity == DISTRACTOR else "-1"
        for number in task.numbers:
            camera = 1 + number % len(CAMERAS)
            yield camera, number, f"{TEST}/{word}_c{camera}s1_{number:06d}_01.jpg"
        return
    rng = _generator(seed, VISITS, task.identity)
    cameras = rng.permutation(len(CAMERAS))[: rng.integers(2, len(CAMERAS) + 1)] + 1
    for camera in sorted(cameras.tolist()):
        frame = int(rng.integers(1, 90000))
        for number in range(int(rng.integers(2, 5))):
            folder, box = TRAIN, 1
            if is_test(task.identity):
                folder, box = (QUERY, 0) if number == 0 else (TEST, 1)
            frame_name = f"{frame + 25 * number:06d}_{box:02d}"
            yield camera, number, f"{folder}/{task.identity:04d}_c{camera}s1_{frame_name}.jpg"


def _draw(task: Task, draft: Path, seed: int, size: tuple[int, int]) -> None:
    """Writes the pictures of one task. Each has its own generator."""
    for camera, number, name in _names(task, seed):
        place = CAMERAS[camera - 1]
        if task.identity > 0:
            look = look_of(task.identity, seed)
            track = walk(place, look, _generator(seed, TRACKS, task.identity, camera))
            rng = _generator(seed, PICTURES, task.identity, camera, number)
            picture = photograph(camera, look, pose_on(track, place, rng), size, rng)
        else:
            rng = _generator(seed, EXTRAS, -task.identity, number)
            if task.identity == DISTRACTOR:
                look = stranger(rng)
                pose = pose_on(walk(place, look, rng), place, rng)
                picture = photograph(camera, look, pose, size, rng)
            else:
                picture = misfire(camera, size, rng)
        image, quality = picture
        image.save(draft / name, quality=quality)


def _counts(root: Path) -> dict[str, int]:
    """Counts the files that were written."""
    names = {folder: [p.name for p in (root / folder).iterdir()] for folder in (TRAIN, TEST, QUERY)}
    kinds = Counter(name.split("_")[0] for name in names[TEST])
    distractors, junk = kinds.pop("0000", 0), kinds.pop("-1", 0)
    return {
        "train_identities": len({name.split("_")[0] for name in names[TRAIN]}),
        "train_images": len(names[TRAIN]),
        "test_identities": len({name.split("_")[0] for name in names[QUERY]}),
        "query_images": len(names[QUERY]),
        "gallery_images": sum(kinds.values()),
        "distractor_images": distractors,
        "junk_images": junk,
    }
