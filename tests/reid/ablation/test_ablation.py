"""Ablations: the runs that are planned, the table, and a small one from end to end."""

import csv
import json

import pytest
from helpers.small_runs import SMALL, run

from rga_fast.reid.ablation import table
from rga_fast.reid.ablation.plan import parse_system, plan
from rga_fast.reid.ablation.published import RESULTS
from rga_fast.reid.ablation.runs import check_folders
from rga_fast.reid.config import Config, load_recipe
from rga_fast.reid.network.attention import NAMES

BASE = load_recipe("small")


def test_every_system_with_every_seed_the_first_seed_first(tmp_path):
    runs = plan(BASE, ["none", "rga-s//c", "rga-sc@34"], [3, 1], tmp_path)
    assert [(run.config.seed, run.system) for run in runs] == [
        *((3, "none"), (3, "rga-s//c"), (3, "rga-sc@34")),
        *((1, "none"), (1, "rga-s//c"), (1, "rga-sc@34")),
    ]
    assert runs[2].config == BASE.replace(attention="rga-sc", stages=(3, 4), seed=3)
    assert len({run.folder for run in runs}) == 6
    assert all(run.folder.parent == tmp_path for run in runs)  # "//" is no folder


def test_stages_of_a_system():
    assert parse_system("se", (1, 4)) == ("se", (1, 4))
    assert parse_system("rga-s//c@23", (1, 4)) == ("rga-s//c", (2, 3))


@pytest.mark.parametrize(
    ("systems", "seeds", "message"),
    [
        (["none", "rga"], [0], "system must be one of .*got 'rga'"),
        (["rga-sc@5"], [0], "expected NAME or NAME@STAGES such as rga-sc@34, got 'rga-sc@5'"),
        (["se", "none", "se"], [0], "system se is given twice"),
        (["se"], [1, 1], "seed 1 is given twice"),
        (["se"], [], "expected at least one seed, got none"),
    ],
)
def test_bad_plans(tmp_path, systems, seeds, message):
    with pytest.raises(ValueError, match=message):
        plan(BASE, systems, seeds, tmp_path)


def test_published_numbers_are_of_systems_that_exist():
    assert {name for rows in RESULTS.values() for name in rows} <= set(NAMES)


def finish(planned, rank1, mAP, speed=100.0):
    """What a run leaves that reached these scores before the neck, and half of them after it."""
    planned.folder.mkdir(parents=True)
    scores = {
        "before_neck": {"rank1": rank1, "mAP": mAP},
        "after_neck": {"rank1": rank1 / 2, "mAP": mAP / 2},
    }
    summary = {"parameters": 1_500_000, "after": scores}
    (planned.folder / "summary.json").write_text(json.dumps(summary))
    step = {"step": 1, "epoch": 1, "loss": 1.0, "lr": 0.1, "images_per_s": speed}
    (planned.folder / "metrics.jsonl").write_text(json.dumps(step) + "\n")


def test_rows_have_mean_spread_gain_and_published_numbers(tmp_path):
    runs = plan(BASE, ["none", "rga-sc", "se"], [0, 1], tmp_path)
    memory = {"none": 10, "rga-sc": 20, "se": 30}
    for planned, mAP in zip(runs, [0.4, 0.5, 0.45, 0.42], strict=False):  # se has one seed
        finish(planned, 0.6, mAP)
    none, sc, se = table.read_rows(runs, "market1501", memory)
    assert (none.system, none.seeds, none.step_bytes, none.published) == (
        *("none", (0, 1), 10),
        (94.2, 83.7),
    )
    assert none.scores["before_neck_mAP"] == (pytest.approx(41), pytest.approx(2**0.5))
    assert none.scores["after_neck_mAP"][0] == pytest.approx(20.5)
    assert none.gain is None
    assert sc.seeds == (0,)
    assert sc.gain == (pytest.approx(10), None)  # of the seed that both have
    assert se.gain == (pytest.approx(5), None)
    assert table.read_rows(runs, "synthetic", memory)[1].published is None


def test_the_three_files_agree(tmp_path):
    runs = plan(BASE, ["none", "se"], [0], tmp_path)
    for planned, mAP in zip(runs, (0.4, 0.45), strict=True):
        finish(planned, 0.6, mAP)
    rows = table.read_rows(runs, "market1501", {"none": 10_000_000, "se": 20_000_000})
    table.write_tables(tmp_path, "market1501, test", BASE, rows)
    lines = list(csv.reader((tmp_path / "ablation.csv").open()))
    expected = "se,1,1.50,100,20,60.0,45.0,22.5,+5.0,95.2 / 86.0"
    assert lines[2] == expected.split(",")
    markdown = (tmp_path / "ablation.md").read_text().splitlines()
    assert markdown[-1] == f"| {' | '.join(lines[2])} |"
    content = json.loads((tmp_path / "ablation.json").read_text())
    assert content["rows"][1]["scores"]["before_neck_mAP"] == [pytest.approx(45), None]
    assert content["budget"]["epochs"] == BASE.epochs
    assert "data" not in content["budget"]


def test_a_folder_of_another_budget_is_refused(tmp_path):
    runs = plan(BASE, ["none"], [0], tmp_path)
    runs[0].folder.mkdir()
    Config.save(runs[0].config.replace(epochs=3), runs[0].folder / "config.yaml")
    with pytest.raises(ValueError, match="none-0 holds a run with other values of epochs"):
        check_folders(runs)


def test_what_differs_between_the_runs_is_no_field(tmp_path, capsys):
    assert run("ablate", tmp_path / "a", "seed=3") == 1
    assert "expected --seeds, got seed=..." in capsys.readouterr().err
    assert run("ablate", tmp_path / "a", "--seeds", "one") == 1
    assert "--seeds: expected numbers such as 0,1, got 'one'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_small_ablation_and_its_continuation(tmp_path, market, capsys):
    out = tmp_path / "a"
    arguments = ["--data", market, "--fused", *SMALL, "epochs=1"]
    assert run("ablate", out, "--systems", "none", "--seeds", "0", *arguments) == 0
    before = (out / "none-0" / "summary.json").read_bytes()
    # A second system joins. Its folder cannot be that of a run, which spoils nothing else.
    (out / "rga-s_c-0" / "config.yaml").mkdir(parents=True)
    command = ["ablate", out, "--systems", "none,rga-s//c", "--seeds", "0", *arguments]
    assert run(*command) == 1
    assert "rga-s_c-0  failed" in capsys.readouterr().out
    assert [row["system"] for row in rows_of(out)] == ["none"]
    (out / "rga-s_c-0" / "config.yaml").rmdir()
    assert run(*command) == 0
    none, rga = rows_of(out)
    assert (none["system"], rga["system"]) == ("none", "rga-s//c")
    assert none["step_bytes"] < rga["step_bytes"]
    assert (out / "none-0" / "summary.json").read_bytes() == before


def rows_of(out):
    return json.loads((out / "ablation.json").read_text())["rows"]
