"""Indexes in databases: the rows, and the matches that `Index.search` finds."""

import os
import shutil
import subprocess
import tempfile
from datetime import datetime, timezone
from pathlib import Path

import pytest
import torch

from rga_fast import reid
from rga_fast.reid.retrieval.index import store, stores
from rga_fast.reid.retrieval.index.gallery import Entry

TIME = datetime(2026, 1, 31, 14, 25, 30, tzinfo=timezone.utc)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Two shards of random features, of 20 and 10 images; the first image has all labels."""
    folder = tmp_path_factory.mktemp("index")
    (folder / "shards").mkdir()
    manifest = store.Manifest({"hash": ""}, "after_neck", False, 16, ".")
    features = torch.randn(30, 16, generator=torch.Generator().manual_seed(0))
    entries = [Entry(f"{row}.jpg", "", str(row % 3), "", 1, 1) for row in range(30)]
    entries[0] = Entry("0.jpg", "Zoë", "0", "2026-01-31T14:25:30", 1, 1)
    shards = [
        store.write_shard(folder, manifest, features[part], entries[part])
        for part in (slice(20), slice(20, 30))
    ]
    store.write_manifest(folder, manifest._replace(shards=tuple(shards)))
    return reid.Index(folder)


@pytest.fixture
def query(index):
    return next(index.shards())[:1] + 0.1


def unit(query):
    return torch.nn.functional.normalize(query)[0].numpy()


@pytest.mark.slow
def test_lancedb_finds_the_same(index, query, tmp_path):
    lancedb = pytest.importorskip("lancedb")
    for _ in range(2):  # the second in place of the first
        assert reid.to_lancedb(index, str(tmp_path)) == 30
    table = lancedb.connect(str(tmp_path)).open_table("gallery")
    search = table.search(unit(query)).distance_type("cosine")
    for where, filters in (("true", None), ("camera = '2'", reid.Filter(("2",)))):
        rows = search.where(where).limit(5).to_list()
        (want,) = index.search(query, 5, filters)
        assert [row["path"] for row in rows] == [match.path for match in want]
        got = torch.tensor([row["_distance"] for row in rows])
        torch.testing.assert_close(got, torch.tensor([match.distance for match in want]))
    first = table.search().where("path = '0.jpg'").to_list()[0]
    assert (first["identity"], first["camera"], first["time"]) == ("Zoë", "0", TIME)
    assert table.search().where("identity is null").limit(99).to_arrow().num_rows == 29


@pytest.fixture(scope="module")
def database():
    """The address of a PostgreSQL of its own; `RGA_FAST_POSTGRES` is the folder of its programs."""
    pytest.importorskip("psycopg")
    pytest.importorskip("pgvector")
    found = shutil.which("initdb")
    programs = os.environ.get("RGA_FAST_POSTGRES") or (found and Path(found).resolve().parent)
    if programs is None:
        pytest.skip("PostgreSQL is not installed")
    # Not in pytest's folders: it refuses to run as root, and nobody else may enter those.
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        account = {"user": "nobody"} if os.geteuid() == 0 else {}
        if account:
            shutil.chown(folder, "nobody")

        def call(program, *arguments):
            command = [Path(programs) / program, *arguments]
            subprocess.run(command, check=True, capture_output=True, cwd=folder, **account)

        data, log = f"{folder}/data", f"{folder}/log"
        call("initdb", "-D", data, "-A", "trust", "-U", "tester", "--no-sync")
        call("pg_ctl", "-D", data, "-w", "-l", log, "-o", f"-k {folder} -h ''", "start")
        yield f"host={folder} user=tester dbname=postgres"
        call("pg_ctl", "-D", data, "-m", "immediate", "stop")


@pytest.mark.slow
def test_postgres_finds_the_same(index, query, database):
    import psycopg
    from pgvector import HalfVector
    from pgvector.psycopg import register_vector

    try:
        assert reid.to_postgres(index, database) == 30
    except RuntimeError as error:
        if "extension" not in str(error):
            raise
        pytest.skip(f"without pgvector's extension: {error}")
    assert reid.to_postgres(index, database) == 30, "the second in place of the first"
    with psycopg.connect(database) as connection:
        register_vector(connection)
        nearest = (
            "SELECT path, feature <=> %s AS distance FROM gallery WHERE camera = ANY(%s) "
            "ORDER BY distance LIMIT 5"
        )
        for cameras in (["0", "1", "2"], ["2"]):
            rows = connection.execute(nearest, (HalfVector(unit(query)), cameras)).fetchall()
            (want,) = index.search(query, 5, reid.Filter(tuple(cameras)))
            assert [row[0] for row in rows] == [match.path for match in want]
            got = torch.tensor([row[1] for row in rows])
            want = torch.tensor([match.distance for match in want])
            torch.testing.assert_close(got, want, atol=1e-3, rtol=0, check_dtype=False)
        labels = "SELECT identity, camera, time FROM gallery WHERE path = '0.jpg'"
        assert connection.execute(labels).fetchone() == ("Zoë", "0", TIME)
        indexes = connection.execute("SELECT indexdef FROM pg_indexes").fetchall()
        assert any("hnsw" in row[0] and "halfvec_cosine_ops" in row[0] for row in indexes)


@pytest.mark.slow
def test_postgres_without_the_extension_changes_nothing(index, database, monkeypatch):
    """What the server says is passed on, and the transaction leaves no table."""
    import psycopg

    broken = [*stores._definition("other", 16), "SELECT 1 FROM no_such_table"]
    monkeypatch.setattr(stores, "_definition", lambda *_: broken)
    with pytest.raises(RuntimeError, match=r"PostgreSQL: .*(extension|no_such_table)"):
        reid.to_postgres(index, database, "other")
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT to_regclass('other_new')").fetchone() == (None,)


def test_a_wide_feature_has_no_graph_and_names_are_checked(index):
    assert any("hnsw" in text for text in stores._publication("gallery", 2048))
    assert not any("hnsw" in text for text in stores._publication("gallery", 4001))
    for write in (reid.to_lancedb, reid.to_postgres):
        with pytest.raises(ValueError, match="lower-case name"):
            write(index, "nowhere", "gallery; DROP TABLE people")
