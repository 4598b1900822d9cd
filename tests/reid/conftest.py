import numpy as np
import pytest
from PIL import Image
from small_runs import SMALL, run


@pytest.fixture(scope="session")
def market(tmp_path_factory):
    """Twelve training and four test identities in their own colours, under three cameras."""
    root = tmp_path_factory.mktemp("market")
    rng = np.random.default_rng(0)
    folders = {"bounding_box_train": range(1, 13), "query": range(20, 24)}
    folders["bounding_box_test"] = folders["query"]
    for folder, identities in folders.items():
        (root / folder).mkdir()
        for identity in identities:
            colour = np.random.default_rng(identity).integers(0, 256, (1, 1, 3))
            for camera in (1, 2, 3):
                pixels = (colour + rng.normal(0, 30, (32, 16, 3))).clip(0, 255).astype("uint8")
                Image.fromarray(pixels).save(
                    root / folder / f"{identity:04}_c{camera}s1_{len(folder):06}_00.jpg"
                )
    return root


@pytest.fixture(scope="session")
def small_run(market, tmp_path_factory):
    """The folder of a run of two epochs on `market`."""
    out = tmp_path_factory.mktemp("runs") / "small"
    assert run("train", "--fused", "--data", market, "--out", out, *SMALL) == 0
    return out
