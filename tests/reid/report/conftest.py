import pytest
from small_runs import SMALL, run


@pytest.fixture(scope="session")
def trained(market, tmp_path_factory):
    """A run with RGA and one of the baseline, of two epochs, on the same data."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("rga-sc", "none"):
        options = ["--fused", "--attention", name, "--data", market, "--out", folder / name]
        assert not run("train", *SMALL, *options)
    return folder
