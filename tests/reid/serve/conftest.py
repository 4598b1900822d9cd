import shutil

import pytest
from PIL import Image

from rga_fast import reid
from rga_fast.reid.retrieval.index import store
from rga_fast.reid.retrieval.threshold import Interval, Threshold


@pytest.fixture(scope="session")
def served(small_run, market, tmp_path_factory):
    """An index of a gallery, one of whose images leads out of its folder."""
    root = tmp_path_factory.mktemp("served")
    shutil.copytree(market / "bounding_box_test", root / "people")
    secret = root / "secret.png"
    Image.new("RGB", (16, 32), "red").save(secret)
    (root / "people" / "0030_c4s1_000001_00.png").symlink_to(secret)
    net = reid.load(small_run, device="cpu")
    reid.build_index(net, root / "people", root / "people.index")
    manifest = store.read_manifest(root / "people.index")
    threshold = Threshold(0.5, 0.01, 0.9, Interval(0.4, 0.6), "market-like")
    store.write_manifest(root / "people.index", manifest._replace(threshold=threshold))
    return root / "people.index"


@pytest.fixture(scope="session")
def photo(market):
    return (market / "bounding_box_test" / "0020_c1s1_000017_00.jpg").read_bytes()
