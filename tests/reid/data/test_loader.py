"""From files to batches: decoding, damaged files, the cache, workers, resuming."""

import gc
import multiprocessing
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rga_fast.reid.data.augment import Augmentation, normalise
from rga_fast.reid.data.datasets import ReidData, open_dataset
from rga_fast.reid.data.images import (
    CachedImages,
    ImageFiles,
    decode_files,
    open_images,
    read_image,
)
from rga_fast.reid.data.loader import EvalBatches, TrainBatches
from rga_fast.reid.data.sampler import IdentitySampler

SIZE = (16, 8)


def photo(seed: int = 0, size: tuple[int, int] = (40, 20)) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 2, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)


@pytest.fixture
def data(tmp_path: Path) -> ReidData:
    """6 identities with 3 images each to train on; 2 to search for."""
    shown = {"bounding_box_train": range(1, 7), "query": (8, 9), "bounding_box_test": (0, 8, 9)}
    for folder, identities in shown.items():
        (tmp_path / folder).mkdir()
        for identity in identities:
            for camera in (1, 2, 3):
                file = tmp_path / folder / f"{identity:04d}_c{camera}s1_000000_00.jpg"
                photo(10 * identity + camera).save(file)
    return open_dataset(tmp_path)


def train_batches(data: ReidData, *, cache: str = "memory", **options) -> TrainBatches:
    sampler = IdentitySampler(data.train.labels, 2, 2, seed=1)
    images = open_images(data.train, SIZE, cache=cache)
    return TrainBatches(images, data.train.labels, sampler, Augmentation(), **options)


def epoch_of(batches: TrainBatches, epoch: int, first_step: int = 0) -> list[torch.Tensor]:
    batches.set_epoch(epoch, first_step)
    return [images for images, _ in batches]


# --- decoding


def test_resize_is_that_of_the_published_recipe(tmp_path):
    photo().save(tmp_path / "a.png")
    expected = np.asarray(photo().resize((8, 16), Image.Resampling.BILINEAR))
    pixels = read_image(tmp_path / "a.png", (16, 8))
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, expected)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("L", ".jpg"),
        ("CMYK", ".jpg"),
        ("1", ".png"),
        ("LA", ".png"),
        ("P", ".png"),
        ("P", ".gif"),
        ("RGBA", ".png"),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, mode, suffix):
    """A plain colour survives, but for what the mode itself cannot hold."""
    colour = Image.new("RGB", (20, 40), (200, 60, 30))
    file = tmp_path / f"a{suffix}"
    colour.convert(mode).save(file)
    with Image.open(file) as stored:
        assert stored.mode == mode
    pixels = read_image(file, SIZE)
    assert pixels.shape == (*SIZE, 3)
    expected = (200, 60, 30) if mode in ("CMYK", "P", "RGBA") else (98, 98, 98)  # luminance
    tolerance = 26 if mode == "P" else 12 if mode == "1" else 3  # palette, dithering, JPEG
    assert np.abs(pixels.reshape(-1, 3).mean(axis=0) - expected).max() <= tolerance


def test_transparency_is_dropped(tmp_path):
    Image.new("RGBA", (20, 40), (200, 60, 30, 0)).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png", SIZE) == (200, 60, 30)).all()


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    photo().transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.png", exif=exif)
    photo().save(tmp_path / "b.png")
    upright = read_image(tmp_path / "a.png", (40, 20))
    assert np.array_equal(upright, read_image(tmp_path / "b.png", (40, 20)))


@pytest.mark.parametrize("progressive", [False, True])
def test_truncated_file_is_named_wherever_it_ends(tmp_path, progressive):
    file = tmp_path / "a.jpg"
    photo(size=(128, 64)).save(file, progressive=progressive)
    content = file.read_bytes()
    assert read_image(file, SIZE).any()
    for length in [*range(0, len(content), 50), len(content) - 1]:
        file.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"a\.jpg: not a readable image: "):
            read_image(file, SIZE)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\xff\xd8\xff\xe0" + bytes(100)])
def test_foreign_file_is_named(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.jpg: not a readable image: "):
        read_image(tmp_path / "a.jpg", SIZE)


def test_16_bits_are_refused(tmp_path):
    Image.fromarray(np.full((40, 20), 30_000, dtype=np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="expected 8 bits per channel, got Pillow's mode I;16"):
        read_image(tmp_path / "a.png", SIZE)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"):
        read_image(tmp_path / "gone.jpg", SIZE)


def test_non_ascii_name(tmp_path):
    photo().save(tmp_path / "Zoë 人.png")
    assert read_image(tmp_path / "Zoë 人.png", SIZE).shape == (*SIZE, 3)


# --- the images of a split


@pytest.mark.parametrize("threads", [1, 4, None])
def test_decode_files_keeps_the_order_and_tells_progress(data, threads):
    files = [data.train.file(i) for i in range(len(data.train))]
    told = []
    pixels = decode_files(
        files, SIZE, threads=threads, progress=lambda done, of: told.append((done, of))
    )
    assert np.array_equal(pixels, np.stack([read_image(file, SIZE) for file in files]))
    assert told == [(done, 18) for done in range(1, 19)]


def test_decode_files_stops_at_a_damaged_file(data):
    data.train.file(3).write_bytes(b"damaged")
    with pytest.raises(ValueError, match=f"{data.train.paths[3]}: not a readable image"):
        open_images(data.train, SIZE, cache="memory")


def test_cached_images_and_files_hold_the_same(data):
    cached = open_images(data.gallery, SIZE, cache="memory")
    files = open_images(data.gallery, SIZE, cache="off")
    assert isinstance(cached, CachedImages)
    assert isinstance(files, ImageFiles)
    assert len(cached) == len(files) == 9
    indices = np.array([5, 0, 5])
    assert cached[indices].dtype == torch.uint8
    assert cached[indices].shape == (3, *SIZE, 3)
    assert torch.equal(cached[indices], files[indices])


def test_cached_images_may_be_mapped_and_are_copied(data, tmp_path):
    pixels = decode_files([data.query.file(0), data.query.file(1)], SIZE)
    np.save(tmp_path / "pixels.npy", pixels)
    mapped = CachedImages(np.load(tmp_path / "pixels.npy", mmap_mode="r"))
    batch = mapped[np.array([1])]
    assert np.array_equal(batch[0], pixels[1])
    batch.zero_()
    assert np.array_equal(mapped[np.array([1])][0], pixels[1])


def test_cached_images_want_bytes():
    with pytest.raises(ValueError, match=r"uint8 \(N, H, W, 3\), got float32 \(2, 4, 4, 3\)"):
        CachedImages(np.zeros((2, 4, 4, 3), dtype=np.float32))


# --- batches


def test_batches_to_train_on(data):
    batches = train_batches(data)
    assert len(batches) == 3
    seen = list(batches)
    assert len(seen) == 3
    for images, labels in seen:
        assert images.shape == (4, 3, *SIZE)
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert labels[0] == labels[1] != labels[2] == labels[3]
    assert torch.cat([labels for _, labels in seen]).bincount().tolist() == [2] * 6


def test_labels_belong_to_the_images(data):
    """Without augmentation, a batch's images are those of the files of their labels."""
    images = open_images(data.train, SIZE, cache="memory")
    labels = data.train.labels
    nothing = Augmentation(translate=0, flip=0, erase=0)
    batches = TrainBatches(images, labels, IdentitySampler(labels, 3, 3), nothing)
    for batch, batch_labels in batches:
        for image, label in zip(batch, batch_labels.tolist(), strict=True):
            own = normalise(images[np.flatnonzero(labels == label)])
            assert any(torch.equal(image, candidate) for candidate in own)


@pytest.mark.parametrize(("cache", "workers"), [("off", 0), ("off", 2), ("memory", 2)])
def test_cache_and_workers_change_nothing(data, cache, workers):
    plain = train_batches(data)
    other = train_batches(data, cache=cache, workers=workers)
    for epoch in (0, 1):
        for a, b in zip(epoch_of(plain, epoch), epoch_of(other, epoch), strict=True):
            assert torch.equal(a, b)


def test_seed_epoch_and_step_decide_everything(data):
    batches = train_batches(data, seed=7)
    first, second = epoch_of(batches, 0), epoch_of(batches, 1)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    again = epoch_of(train_batches(data, seed=7), 1)
    assert torch.equal(torch.stack(again), torch.stack(second))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(torch.stack(first), torch.stack(second))
    other = epoch_of(train_batches(data, seed=8), 1)
    assert not torch.equal(torch.stack(other), torch.stack(second))


def test_each_step_draws_anew():
    pixels = np.repeat(np.asarray(photo(size=SIZE))[None], 8, axis=0)
    labels = np.arange(8)
    batches = TrainBatches(
        CachedImages(pixels), labels, IdentitySampler(labels, 2, 2), Augmentation()
    )
    first, second, *_ = epoch_of(batches, 0)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_can_be_left_and_resumed_in_its_middle(data, workers):
    whole = epoch_of(train_batches(data), 4)
    batches = train_batches(data, cache="off", workers=workers)
    batches.set_epoch(4)
    assert torch.equal(next(iter(batches))[0], whole[0])  # interrupted after a step
    rest = epoch_of(batches, 4, first_step=1)
    assert torch.equal(torch.stack(rest), torch.stack(whole[1:]))
    assert torch.equal(torch.stack(epoch_of(batches, 4)), torch.stack(whole))


def test_batches_to_evaluate(data):
    images = open_images(data.gallery, SIZE, cache="memory")
    batches = EvalBatches(images, batch_size=4)
    seen = list(batches)
    assert len(batches) == len(seen) == 3
    assert [indices.tolist() for _, indices in seen] == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
    assert torch.equal(torch.cat([batch for batch, _ in seen]), normalise(images[np.arange(9)]))
    from_files = EvalBatches(open_images(data.gallery, SIZE, cache="off"), 4, workers=2)
    for (a, _), (b, _) in zip(seen, from_files, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_file_ends_the_epoch_with_its_name_alone(data, workers):
    for index in range(len(data.train)):
        data.train.file(index).write_bytes(b"damaged")
    batches = train_batches(data, cache="off", workers=workers)
    with pytest.raises(ValueError, match=r"^\S+\.jpg: not a readable image: [^\n]*$"):
        list(batches)
    start = time.monotonic()
    del batches
    gc.collect()
    assert not multiprocessing.active_children()
    assert time.monotonic() - start < 4  # DataLoader kills a worker after 5 s


def test_bad_arguments(data):
    images = open_images(data.train, SIZE, cache="memory")
    sampler = IdentitySampler(data.train.labels, 2, 2)
    with pytest.raises(ValueError, match="18 images, but 6 labels"):
        TrainBatches(images, data.query.labels, sampler, Augmentation())
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        EvalBatches(images, 0)
