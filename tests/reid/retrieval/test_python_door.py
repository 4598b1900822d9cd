"""The door for Python: a trained network in one line."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from small_runs import run

from rga_fast import reid
from rga_fast.reid.retrieval.distances import FeatureDistances

README = Path(__file__).parents[3] / "README.md"


@pytest.fixture(scope="module")
def net(small_run):
    return reid.load(small_run, device="cpu")


@pytest.fixture(scope="module")
def files(market):
    return sorted((market / "query").glob("*.jpg"))


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """An image that has to be resized, without losses of a JPEG."""
    pixels = np.random.default_rng(0).integers(0, 256, (90, 47, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("large") / "large.png"
    Image.fromarray(pixels).save(path)
    return path, pixels


def test_features_are_those_of_evaluate(net, small_run, market, files, tmp_path):
    out = tmp_path / "features.safetensors"
    checkpoint = small_run / "checkpoints" / "last.pt"
    assert run("evaluate", checkpoint, "--data", market, "--features", out, "--flip") == 0
    saved = load_file(out)
    for feature in ("before_neck", "after_neck"):
        net = reid.load(checkpoint, device="cpu", feature=feature, flip=True)
        assert torch.equal(net.features(files), saved[f"query_{feature}"])


def test_every_kind_of_image_gives_the_same_feature(net, large):
    path, pixels = large
    expected = net.features(path)
    assert expected.shape == (1, net.feature_dim)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    assert torch.equal(net.features(str(path)), expected)
    assert torch.equal(net.features([Image.open(path)]), expected)
    assert torch.equal(net.features(pixels, channels="rgb"), expected)
    assert torch.equal(net.features(pixels[..., ::-1], channels="bgr"), expected)
    assert torch.equal(net.features(tensor, channels="rgb"), expected)
    assert torch.equal(net.features(tensor.flip(0)[None], channels="bgr"), expected)
    mixed = net.features(iter([path, pixels]), channels="rgb", batch_size=1)
    assert torch.equal(mixed, expected.expand(2, -1))
    assert not torch.equal(net.features(pixels, channels="bgr"), expected)


def test_a_turned_photograph_is_turned_back_and_stays_as_it_was(net, large, tmp_path):
    photo = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(large[1]).save(photo, exif=exif)
    image = Image.open(photo)
    assert torch.equal(net.features(image), net.features(photo))
    assert image.size == (47, 90)


@pytest.mark.parametrize(
    ("images", "channels", "message"),
    [
        (np.zeros((8, 4, 3), np.uint8), None, r'channels="bgr" \(OpenCV\)'),
        ([torch.zeros(3, 8, 4, dtype=torch.uint8)], None, 'image 0 is a Tensor.*channels="rgb"'),
        (np.zeros((8, 4, 3), np.uint8), "RGB", r"\('rgb', 'bgr'\), got 'RGB'"),
        (np.zeros((8, 4, 3)), "rgb", r"got ndarray of float64 \(8, 4, 3\)"),
        (np.zeros((8, 4), np.uint8), "rgb", r"got ndarray of uint8 \(8, 4\)"),
        (torch.zeros(8, 4, 3, dtype=torch.uint8), "rgb", r"tensors \(3, H, W\).*\(8, 4, 3\)"),
        ([np.zeros((1, 8, 4, 3), np.uint8)], "rgb", r"got ndarray of uint8 \(1, 8, 4, 3\)"),
        (["a.jpg", 3], None, "image 1: expected paths.*got int"),
        (3, None, "got int"),
    ],
)
def test_unclear_images_are_refused(net, images, channels, message):
    with pytest.raises(ValueError, match=message):
        net.features(images, channels=channels)


def test_what_cannot_be_loaded_is_named(net, small_run, tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint in this folder"):
        reid.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"missing\.pt"):
        reid.load(tmp_path / "missing.pt")
    with pytest.raises(ValueError, match="feature"):
        reid.load(small_run, feature="neck")
    (tmp_path / "text.jpg").write_text("text")
    with pytest.raises(ValueError, match=r"text\.jpg: not a readable image"):
        net.features(tmp_path / "text.jpg")


def test_compare_takes_images_and_features(net, files):
    features = net.features(files[:5])
    distances = net.compare(files[:3], features)
    torch.testing.assert_close(distances, FeatureDistances(features[:3], features).rows(0, 3))
    assert distances.shape == (3, 5)
    assert distances[0, 0].abs() < 1e-6


def test_nothing_is_a_feature_matrix_without_rows(net):
    assert net.features([]).shape == (0, net.feature_dim)


def test_the_lines_of_the_readme_run(small_run, files, tmp_path, monkeypatch, capsys):
    (lines,) = re.findall(r"```python\n([^`]*reid\.load[^`]*)```", README.read_text("utf-8"))
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(small_run)
    for name, file in zip("abc", files, strict=False):
        (tmp_path / f"{name}.jpg").symlink_to(file)
    monkeypatch.chdir(tmp_path)
    reid.build_index(reid.load(small_run, device="cpu"), files[0].parent, "people.index")
    exec(compile(lines, "README.md", "exec"), {})
    first, nearest = capsys.readouterr().out.splitlines()[:2]
    assert first.startswith("tensor([[")
    assert nearest.startswith(files[0].name)
