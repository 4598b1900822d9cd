"""The data set of a run: a path, several, or the synthetic one."""

import pytest

from rga_fast.reid.data.source import open_source
from rga_fast.reid.synth import write_dataset


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    root = tmp_path_factory.mktemp("source") / "people"
    write_dataset(root, 6, size=(32, 16), workers=1)
    return root


def test_without_a_path_the_synthetic_one(people, monkeypatch):
    monkeypatch.setattr("rga_fast.reid.data.source.cached_dataset", lambda progress: people)
    assert open_source(None).train.root == people


def test_one_or_several_paths(people, tmp_path):
    assert open_source(people).name == open_source([str(people)]).name == "synthetic"
    other = tmp_path / "other"
    write_dataset(other, 3, seed=1, size=(32, 16), workers=1)
    both = open_source((str(people), str(other)))
    assert len(both.train) == len(open_source(people).train) + len(open_source(other).train)
    assert both.query.root == people
