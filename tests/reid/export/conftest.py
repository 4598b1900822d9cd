import pytest
import torch

from rga_fast.reid.checkpoint import Checkpoint, make_network, save_checkpoint
from rga_fast.reid.config import RECIPES
from rga_fast.reid.data.augment import normalise
from rga_fast.reid.data.datasets import open_dataset
from rga_fast.reid.data.images import open_images


def untrained(market, **fields):
    """A configuration and its network, with the statistics of real images and affine layers that
    change something."""
    config = RECIPES["small"].replace(
        **{
            "data": str(market),
            "height": 32,
            "width": 16,
            "base_width": 8,
            "impl": "auto",
            **fields,
        }
    )
    torch.manual_seed(0)
    network = make_network(config, 12)
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # the plain mean
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.2)
    images = open_images(open_dataset(market).train, config.size)[range(24)]
    with torch.no_grad():
        network(normalise(images))
    return config, network.eval()


@pytest.fixture(scope="session")
def run_folder(market, tmp_path_factory):
    """The folder of a run, as far as its checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "checkpoints").mkdir()
    config, network = untrained(market, stages=(1, 4))
    state = Checkpoint(config, 12, 3, 0, network.state_dict(), {})
    save_checkpoint(folder / "checkpoints", state)
    return folder


@pytest.fixture(scope="session")
def make_untrained(market):
    return lambda **fields: untrained(market, **fields)
