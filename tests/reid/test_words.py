"""Unknown options and fields name what was meant, in other programs' words, too."""

import pytest
from small_runs import run


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ("train --fuse", "no option --fuse; did you mean --fused?"),
        ("train --lr 0.1", "no option --lr; did you mean learning_rate=?"),
        ("train --batch-size=64", "identities_per_batch= and images_per_identity=?"),
        ("train --epoch 3", "did you mean --epochs?"),
        ("train --dry", "did you mean --dry-run?"),
        ("train --learning-rate 1", "did you mean learning_rate=?"),
        ("train --gpu 0", "did you mean --device?"),
        ("evaluate x --batch-size 64", "did you mean eval_batch=?"),
        ("evaluate x --dat y", "did you mean --data?"),
        ("evaluate x --re-ranking", "did you mean --rerank?"),
        ("data x --decod", "did you mean --decode?"),
        ("ablate out --lr 1 --fused", "did you mean learning_rate=?"),
        ("synth x --zzz", "--help lists the options"),
    ],
)
def test_options(arguments, hint, capsys):
    with pytest.raises(SystemExit) as ended:
        run(*arguments.split())
    assert ended.value.code == 2
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("lr=1e-3", "unknown field 'lr'; did you mean 'learning_rate'?"),
        ("batch_size=64", "'identities_per_batch and images_per_identity'"),
        ("num_workers=2", "did you mean 'workers'?"),
        ("s16", "expected field=value, got 's16'; a data set is named by --data"),
    ],
)
def test_fields(text, hint, tmp_path, capsys):
    assert run("train", "--out", tmp_path / "out", text) == 1
    assert hint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
