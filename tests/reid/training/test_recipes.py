"""The recipes, files of one's own, and what a dry run tells."""

import pytest
import torch
import yaml
from torch import nn

from rga_fast import cli
from rga_fast.reid.checkpoint import make_network
from rga_fast.reid.config import RECIPES, Config, load_recipe
from rga_fast.reid.training.epoch import learning_rate
from rga_fast.reid.training.step import Training

PAPER = {
    "height": 256,
    "width": 128,
    "identities_per_batch": 16,
    "images_per_identity": 4,
    "arch": "resnet50",
    "base_width": 64,
    "last_stride": 1,
    "attention": "rga-sc",  # with relations and appearance, asymmetric embedding
    "stages": (1, 2, 3, 4),
    "spatial_ratio": 8,
    "channel_ratio": 8,
    "down_ratio": 8,
    "label_smoothing": 0.1,
    "margin": 0.3,
    "learning_rate": 8e-4,
    "weight_decay": 5e-4,
    "schedule": "step",
    "warmup_epochs": 20,
    "warmup_start": 8e-6,
    "milestones": (80, 120, 160, 200, 240, 280, 320, 360),
    "epochs": 600,
    "translate": 0.5,
    "flip": 0.5,
    "erase": 0.5,
    # What the paper does not have.
    "freeze_epochs": 0,
    "clip_norm": None,
    "ema": None,
    "accumulate": 1,
    "amp": "off",
    "sync_bn": False,  # two GPUs, statistics over 32,
    "mine_across_ranks": True,  # triplets from all 64
}


@pytest.mark.parametrize("field", PAPER)
def test_paper_to_the_letter(field):
    assert getattr(RECIPES["paper"], field) == PAPER[field]


def test_learning_rate_of_every_epoch_of_paper():
    rate = 8e-4
    for epoch in range(600):
        if epoch in (80, 120, 160, 200, 240, 280, 320, 360):
            rate /= 2
        expected = 8e-6 + (8e-4 - 8e-6) * epoch / 20 if epoch < 20 else rate
        for fraction in (0.0, 0.5):  # it changes between epochs alone
            assert learning_rate(RECIPES["paper"], epoch, fraction) == pytest.approx(
                expected, rel=1e-12
            )


def test_network_and_optimiser_of_paper():
    paper = RECIPES["paper"]
    model = make_network(paper, 751)
    assert [(a.channels, a.size) for a in model.attention.values()] == [
        (256, (64, 32)),
        (512, (32, 16)),
        (1024, (16, 8)),
        (2048, (16, 8)),
    ]
    assert not [m for m in model.modules() if isinstance(m, nn.Dropout)]
    assert (model.feat_bn.num_features, model.feat_bn.bias.requires_grad) == (2048, False)
    assert model.cls.bias is None
    assert model.cls.weight.std().item() == pytest.approx(0.001, rel=0.01)
    training = Training(model, paper, torch.device("cpu"))
    (group,) = training.optimizer.param_groups
    assert type(training.optimizer) is torch.optim.Adam
    assert (group["weight_decay"], group["decoupled_weight_decay"]) == (5e-4, False)
    assert len(group["params"]) == len([p for p in model.parameters() if p.requires_grad])


@pytest.mark.parametrize("name", ["fast", "small"])
def test_short_recipes_end_at_zero(name):
    recipe = RECIPES[name]
    rates = [learning_rate(recipe, epoch) for epoch in range(recipe.epochs)]
    assert max(rates) == pytest.approx(recipe.learning_rate)
    assert learning_rate(recipe, recipe.epochs - 1, 1.0) == pytest.approx(0, abs=1e-12)


def test_a_file_is_a_recipe(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("epochs: 7\nstages: [1, 2]\nlearning_rate: 1e-3\nattention: none\n")
    expected = Config(epochs=7, stages=(1, 2), learning_rate=1e-3, attention="none")
    assert load_recipe(str(file)) == expected
    expected.save(file)  # as does config.yaml of a run
    assert load_recipe(str(file)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epohcs: 3", "mine.yaml: config: unknown field 'epohcs'; did you mean 'epochs'?"),
        ("epochs: many", "mine.yaml: config: epochs must be int, got 'many'"),
        ("- 3", "mine.yaml: expected `field: value` lines, got list"),
        ("", "mine.yaml: expected `field: value` lines, got NoneType"),
        ("a: [", "mine.yaml: not a YAML file: "),
        ("ema: 1.5", "mine.yaml: config: ema must be a decay between 0 and 1, got 1.5"),
        ("clip_norm: 0", "mine.yaml: config: clip_norm must be positive, got 0.0"),
        ("accumulate: 0", "mine.yaml: config: accumulate must be a positive integer, got 0"),
        ("freeze_epochs: -1", "mine.yaml: config: freeze_epochs must be at least 0, got -1"),
        ("amp: tf32", "mine.yaml: config: amp must be one of 'off', 'bf16', 'fp16', got 'tf32'"),
    ],
)
def test_files_that_are_none(text, message, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(text)
    assert cli.main(["train", "--recipe", str(tmp_path / "mine.yaml")]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("papier", "unknown recipe 'papier'; did you mean 'paper'?"),
        ("zzz", "unknown recipe 'zzz'; there are paper, fast, small"),
        ("missing.yaml", "missing.yaml: No such file or directory"),
    ],
)
def test_recipes_that_are_not_there(name, message, capsys):
    assert cli.main(["train", "--recipe", name]) == 1
    assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Six identities to train on."""
    from rga_fast.reid.synth import write_dataset

    root = tmp_path_factory.mktemp("dry") / "people"
    write_dataset(root, 9, size=(32, 16), workers=1)
    return root


@pytest.mark.slow
def test_a_dry_run_tells_what_would_run_and_writes_nothing(people, monkeypatch, capsys):
    monkeypatch.chdir(people.parent)
    before = sorted(people.parent.rglob("*"))
    arguments = ["train", "--dry-run", "--fused", "--data", str(people), "--recipe=small"]
    fields = ["identities_per_batch=4", "epochs=3", "--ema", "0.9", "accumulate=2", "height=64"]
    assert cli.main([*arguments, *fields]) == 0
    text = capsys.readouterr().out
    assert sorted(people.parent.rglob("*")) == before
    resolved = yaml.safe_load(text[: text.index("synthetic")])
    assert set(resolved) == set(vars(Config()))
    assert (resolved["ema"], resolved["accumulate"], resolved["impl"]) == (0.9, 2, "auto")
    for expected in (
        "batch: 16 images, 4 identities x 4; 8 at a time (ranks: 1, slices on each: 2)",
        "steps: 1 an epoch, 3 in 3 epochs",
        "M parameters",
        "memory of a step: ",
        "decoded images, in memory: ",
    ):
        assert expected in text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["identities_per_batch=16"], "takes 16 identities, but the training images show only 6"),
        (["identities_per_batch=6", "accumulate=4"], "divisible by accumulate x ranks = 4 x 1"),
        (["identities_per_batch=6", "accumulate=6"], "leave 1 identity to mine triplets from"),
    ],
)
def test_a_dry_run_finds_what_cannot_run(fields, message, people, capsys):
    data = ["--data", str(people)]
    assert cli.main(["train", "--dry-run", *data, "--recipe=small", *fields]) == 1
    assert message in capsys.readouterr().err
