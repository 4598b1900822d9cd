"""Weights that a run starts from, at another size of the images."""

import torch

from rga_fast.reid.checkpoint import Checkpoint, make_network, resized, save_checkpoint
from rga_fast.reid.config import RECIPES
from rga_fast.reid.training.initial import initialise


def test_a_run_starts_from_one_at_another_size(tmp_path, capsys):
    trained = RECIPES["small"].replace(height=32, width=16, base_width=8, stages=(1, 3))
    network = make_network(trained, 3)
    save_checkpoint(tmp_path, Checkpoint(trained, 3, 1, 0, network.state_dict(), {}))
    config = trained.replace(height=64, width=32, init=str(tmp_path / "last.pt"))
    model = make_network(config, 5)
    initialise(model, config)
    expected = resized(network.state_dict(), trained, config.size)
    for name, value in model.state_dict().items():
        if not name.startswith("cls."):
            assert torch.equal(value, expected[name]), name
    assert "trained at 32x16" in " ".join(capsys.readouterr().out.split())
