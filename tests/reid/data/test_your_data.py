"""The messages in docs/your-data.md are those that the product prints."""

from pathlib import Path

import pytest

from rga_fast import cli
from rga_fast.reid.data.datasets import open_dataset
from rga_fast.reid.data.sampler import IdentitySampler

PAGE = Path(__file__).parents[3] / "docs" / "your-data.md"
PEOPLE = ("anna", "bob", "carl", "dora", "emil", "fay", "gus", "hana")


def touch(*files):
    for file in map(Path, files):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def words(text):
    return " ".join(text.split())


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_names_that_say_nothing(capsys):
    touch(*(f"photos/{i:04d}00{c}.png" for i in range(1, 21) for c in (1, 2)))
    assert cli.main(["data", "photos"]) == 1
    assert words(capsys.readouterr().err) in words(PAGE.read_text())
    for line in PAGE.read_text().splitlines():
        if "--pattern '(" in line and "0001002" in line:
            pattern = line.split("'")[1]
    assert len(open_dataset("photos", pattern=pattern).train) == 30


def test_one_camera(capsys):
    touch(*(f"shop/{person}/{n}.jpg" for person in PEOPLE for n in (1, 2, 3)))
    assert cli.main(["data", "shop"]) == 1
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "wrong" in line)
    assert words(line) in words(PAGE.read_text())


def test_few_people():
    touch(*(f"office/{person}/cam{c}_1.jpg" for person in PEOPLE for c in (1, 2)))
    with pytest.raises(ValueError, match="a batch takes 16 identities") as error:
        IdentitySampler(open_dataset("office").train.labels, 16)
    assert words(f"rga-fast: error: {error.value}") in words(PAGE.read_text())


def test_the_csv_of_the_page():
    text = PAGE.read_text()
    table = [line.strip() for line in text[text.index("    path,identity") :].splitlines()[:4]]
    Path("list.csv").write_text("\n".join([*table, table[1].replace("anna", "dora")]))
    touch(*(line.split(",")[0] for line in table[1:]))
    data = open_dataset("list.csv")
    assert (len(data.train), len(data.query), len(data.gallery)) == (2, 1, 1)
    assert data.valid_queries().all()
