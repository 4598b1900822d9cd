"""The augmentation: its statistics, its pixels against Pillow, and that a generator decides it."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from rga_fast.reid.data.augment import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Augmentation,
    Draws,
    normalise,
)

SIZE = (128, 64)
NOTHING = Augmentation(translate=0, flip=0, erase=0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(count: int, size: tuple[int, int] = SIZE) -> torch.Tensor:
    return torch.randint(0, 256, (count, *size, 3), dtype=torch.uint8, generator=generator(1))


def drawn(count: int = 20_000, **fields) -> Draws:
    return Augmentation(**fields).draw(count, SIZE, generator())


def within_4_sigma(share: float, p: float, count: int) -> bool:
    return abs(share - p) < 4 * math.sqrt(p * (1 - p) / count)


@pytest.mark.parametrize("p", [0.5, 0.1])
def test_shares(p):
    draws = drawn(translate=p, flip=p, erase=p)
    for happened in (draws.translate, draws.flip, draws.erase[:, 2] > 0):
        assert within_4_sigma(happened.double().mean().item(), p, 20_000)


def test_choices_are_independent():
    draws = drawn()
    erased = draws.erase[:, 2] > 0
    for a, b in ((draws.translate, draws.flip), (draws.flip, erased), (draws.translate, erased)):
        assert within_4_sigma((a & b).double().mean().item(), 0.25, 20_000)


def test_probabilities_0_and_1():
    never, always = drawn(translate=0, flip=0, erase=0), drawn(translate=1, flip=1, erase=1)
    assert not never.translate.any()
    assert not never.flip.any()
    assert not never.erase.any()
    assert always.translate.all()
    assert always.flip.all()
    assert (always.erase[:, 2:] > 0).all()


def test_crops_reach_every_place_as_the_published_rounding_has_it():
    top, left = drawn().offset.T
    assert (top.min(), top.max(), left.min(), left.max()) == (0, 16, 0, 8)
    for offset, room in ((top, 16), (left, 8)):  # round(uniform(0, room)): the ends get half
        shares = torch.bincount(offset) / len(offset)
        for place, share in enumerate(shares.tolist()):
            p = (0.5 if place in (0, room) else 1.0) / room
            assert within_4_sigma(share, p, len(offset))


def test_erased_area_and_aspect_are_within_their_ranges():
    top, left, height, width = drawn(erase=1).erase.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height).max() == SIZE[0]
    assert (left + width).max() == SIZE[1]
    assert (height < SIZE[0]).all()
    assert (width < SIZE[1]).all()
    # Sides are rounded to pixels: compare with the range of what may have been rounded.
    assert ((height + 0.5) * (width + 0.5) >= 0.02 * 128 * 64).all()
    assert ((height - 0.5) * (width - 0.5) <= 0.4 * 128 * 64).all()
    assert ((height + 0.5) / (width - 0.5) >= 0.3).all()
    assert ((height - 0.5) / (width + 0.5) <= 1 / 0.3).all()
    area = height * width / (128 * 64)
    assert area.min() < 0.03  # and the ranges are used
    assert area.max() > 0.38


def test_erasing_has_the_distribution_of_the_published_loop():
    """Mean area, aspect and position against the loop written out, both over 4,000 rectangles."""
    rng = np.random.default_rng(0)
    looped = []
    while len(looped) < 4000:
        area = rng.uniform(0.02, 0.4) * SIZE[0] * SIZE[1]
        aspect = rng.uniform(0.3, 1 / 0.3)
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height < SIZE[0] and width < SIZE[1]:
            top, left = rng.integers(SIZE[0] - height + 1), rng.integers(SIZE[1] - width + 1)
            looped.append((top, left, height, width, height * width))
    looped = np.array(looped, dtype=float)
    ours = drawn(4000, erase=1).erase.double().numpy()
    ours = np.concatenate([ours, ours[:, 2:3] * ours[:, 3:4]], axis=1)
    for moment in (1, 2):
        a, b = looped**moment, ours**moment
        sigma = np.sqrt((a.var(axis=0) + b.var(axis=0)) / 4000)
        assert (np.abs(a.mean(axis=0) - b.mean(axis=0)) < 4 * sigma).all()


def test_a_rectangle_that_never_fits_erases_nothing():
    draws = Augmentation(erase=1, erase_area=(1.0, 1.0), erase_aspect=(1.0, 1.0)).draw(
        50, SIZE, generator()
    )
    assert not draws.erase.any()


def test_plain_images_are_normalised_only():
    pixels = noise(3)
    images = NOTHING(pixels, generator())
    assert torch.equal(images, normalise(pixels))
    assert images.dtype == torch.float32
    assert images.shape == (3, 3, *SIZE)
    assert images.is_contiguous()
    mean, std = np.array(IMAGENET_MEAN), np.array(IMAGENET_STD)
    expected = (pixels.double().numpy() / 255 - mean) / std
    np.testing.assert_allclose(images.permute(0, 2, 3, 1), expected, atol=2e-6)


def test_pixels_against_pillow():
    """Enlarged by 1.125 and cropped, flipped, erased: image by image with Pillow."""
    pixels = noise(64)
    augmentation = Augmentation()
    draws = augmentation.draw(64, SIZE, generator())
    images = augmentation.apply(pixels, draws)
    assert 0 < draws.translate.sum() < 64
    for i in range(64):
        image = Image.fromarray(pixels[i].numpy())
        top, left = draws.offset[i].tolist()
        if draws.translate[i]:
            larger = image.resize((72, 144), Image.Resampling.BILINEAR)
            image = larger.crop((left, top, left + 64, top + 128))
        if draws.flip[i]:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        expected = normalise(torch.from_numpy(np.array(image))[None])[0]
        top, left, height, width = draws.erase[i].tolist()
        expected[:, top : top + height, left : left + width] = 0
        # Both round twice, once per axis, with weights of another precision.
        grey_level = 1 / (255 * min(IMAGENET_STD))
        assert (images[i] - expected).abs().max() < 2.01 * grey_level
        assert (images[i] - expected).abs().mean() < 0.1 * grey_level
        if height and width:
            assert (images[i, :, top : top + height, left : left + width] == 0).all()


@pytest.mark.parametrize("factors", [(0.8, 1, 1), (1, 0.7, 1), (1, 1, 1.3), (0.7, 0.8, 0.9)])
def test_jitter_against_pillow(factors):
    pixels = noise(1)[:, :16, :8] // 2 + 32  # a range in which nothing is clipped
    draws = NOTHING.draw(1, (16, 8), generator())
    draws = draws._replace(colour=torch.tensor([factors], dtype=torch.float64))
    image = Image.fromarray(pixels[0].numpy())
    brightness, contrast, saturation = factors
    image = ImageEnhance.Brightness(image).enhance(brightness)
    image = ImageEnhance.Color(image).enhance(saturation)
    image = ImageEnhance.Contrast(image).enhance(contrast)
    expected = normalise(torch.from_numpy(np.array(image))[None])
    grey_level = 1 / (255 * min(IMAGENET_STD))
    error = (NOTHING.apply(pixels, draws) - expected).abs()
    # Pillow truncates after every factor, half a grey level on average, and rounds the mean grey.
    steps = sum(factor != 1 for factor in factors)
    assert error.max() < (steps + 0.51) * grey_level
    assert error.mean() < 0.6 * steps * grey_level


def test_jitter_is_drawn_last_with_its_probability_and_range():
    with_, without = drawn(2000, jitter=0.5), drawn(2000)
    assert all(torch.equal(a, b) for a, b in zip(with_[:-1], without[:-1], strict=True))
    assert (without.colour == 1).all()
    changed = (with_.colour != 1).all(dim=1)
    assert within_4_sigma(changed.double().mean().item(), 0.5, 2000)
    assert (with_.colour[~changed] == 1).all()
    low, high = with_.colour.aminmax()
    assert 0.7 <= low < 0.71
    assert 1.29 < high <= 1.3


def test_input_is_left_alone():
    pixels = noise(32)
    before = pixels.clone()
    Augmentation(translate=1, flip=1, erase=1, jitter=1)(pixels, generator())
    assert torch.equal(pixels, before)


def test_torch_keeps_its_threads():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        Augmentation()(noise(2), generator())
        with pytest.raises(RuntimeError):  # draws of another size of image
            NOTHING.apply(noise(2, (4, 4)), drawn(2, translate=1))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


def test_generator_decides_everything():
    pixels = noise(32)
    torch.manual_seed(0)
    state = generator(5)
    first, second = Augmentation()(pixels, state), Augmentation()(pixels, state)
    torch.manual_seed(1)
    global_state = torch.get_rng_state()
    assert torch.equal(Augmentation()(pixels, generator(5)), first)
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), global_state)


def test_a_slice_of_the_draws_gives_a_slice_of_the_batch():
    pixels = noise(12)
    augmentation = Augmentation()
    draws = augmentation.draw(12, SIZE, generator())
    half = Draws(*(choice[4:9] for choice in draws))
    whole = augmentation.apply(pixels, draws)
    assert torch.equal(augmentation.apply(pixels[4:9], half), whole[4:9])


@pytest.mark.parametrize("size", [(7, 5), (1, 1), (33, 17)])
def test_odd_sizes_and_empty_batches(size):
    every = Augmentation(translate=1, flip=1, erase=1, jitter=1)
    assert every(noise(4, size), generator()).shape == (4, 3, *size)
    assert every(noise(0, size), generator()).shape == (0, 3, *size)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"flip": 1.5}, "flip must be a probability, got 1.5"),
        ({"erase": -0.1}, "erase must be a probability"),
        ({"enlarge": 0.9}, "enlarge must be at least 1, got 0.9"),
        ({"erase_area": (0.4, 0.02)}, r"erase_area must be \(low, high\)"),
        ({"erase_area": (0.1, 1.5)}, r"erase_area must be .* <= 1\.0, got \(0\.1, 1\.5\)"),
        ({"erase_aspect": (0, 1)}, "erase_aspect must be"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**fields)


@pytest.mark.parametrize(
    "pixels", [torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, 8, 8, 3)]
)
def test_bad_pixels(pixels):
    with pytest.raises(ValueError, match=r"pixels must be uint8 \(B, H, W, 3\), got torch"):
        Augmentation()(pixels, generator())
    with pytest.raises(ValueError, match="pixels must be uint8"):
        normalise(pixels)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_never_waits_for_the_device():
    pixels = torch.randint(0, 256, (8, 32, 16, 3), dtype=torch.uint8, device="cuda")
    augment = Augmentation(translate=1, flip=1, erase=1)
    augment(pixels, torch.Generator().manual_seed(0))
    torch.cuda.set_sync_debug_mode("error")
    try:
        augment(pixels, torch.Generator().manual_seed(1))
    finally:
        torch.cuda.set_sync_debug_mode("default")
