"""The table of an index in a database: LanceDB (extra `lancedb`) and PostgreSQL with pgvector
(extra `postgres`).

Columns: path; identity, camera and time, null where unknown; feature, of length 1, so that the
cosine distance of the database is the distance of `Index.search`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import numpy as np
from torch.nn.functional import normalize

from rga_fast.reid.retrieval.index.gallery import parse_time
from rga_fast.reid.retrieval.index.search import Index

_NAME = re.compile(r"[a-z_][a-z0-9_]{0,40}")
_GRAPH_WIDTH = 4000  # the widest halfvec that pgvector's HNSW takes


def to_lancedb(index: Index, address: str, table: str = "gallery") -> int:
    """Writes the table to the LanceDB at `address` (a folder, or s3://...), in place of a former
    one; readers see the former one until the end. Returns the number of rows.

    Raises:
        ImportError: without the extra `lancedb`. ValueError: for a name that is none.
    """
    _check_name(table)
    try:
        import lancedb
        import pyarrow
    except ImportError as error:
        raise ImportError(f"LanceDB needs: pip install 'rga-fast[lancedb]' ({error})") from error
    schema = pyarrow.schema(
        [
            pyarrow.field("path", pyarrow.string(), nullable=False),
            ("identity", pyarrow.string()),
            ("camera", pyarrow.string()),
            ("time", pyarrow.timestamp("us", tz="UTC")),
            ("feature", pyarrow.list_(pyarrow.float32(), index.manifest.width)),
        ]
    )

    def batches() -> Iterator[Any]:
        for columns, features in _columns(index):
            flat = pyarrow.array(features.ravel(), pyarrow.float32())
            vectors = pyarrow.FixedSizeListArray.from_arrays(flat, features.shape[1])
            arrays = [pyarrow.array(c, f.type) for c, f in zip(columns, schema, strict=False)]
            yield pyarrow.RecordBatch.from_arrays([*arrays, vectors], schema=schema)

    database = lancedb.connect(address)
    return database.create_table(table, batches(), schema=schema, mode="overwrite").count_rows()


def to_postgres(index: Index, address: str, table: str = "gallery") -> int:
    """Writes the table, with an HNSW index of the cosine distance, to the PostgreSQL at `address`
    (postgresql://user@host/database), in place of a former one, in one transaction. Returns the
    number of rows.

    Features are stored as `halfvec`: 16 bits a number, up to 4,000 numbers in the index (`vector`:
    2,000). Wider ones are stored without the HNSW index.

    Raises:
        ImportError: without the extra `postgres`. ValueError: for a name that is none.
        RuntimeError: what the database refuses, such as an extension that is not installed.
    """
    _check_name(table)
    try:
        import psycopg
        from pgvector import HalfVector
        from pgvector.psycopg import register_vector
    except ImportError as error:
        raise ImportError(f"pgvector needs: pip install 'rga-fast[postgres]' ({error})") from error
    width = index.manifest.width
    try:
        with psycopg.connect(address) as connection:
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            register_vector(connection)  # for cursors that are made later
            for statement in _definition(table, width):
                connection.execute(statement)
            with connection.cursor().copy(f"COPY {table}_new FROM STDIN") as copy:
                for columns, features in _columns(index):
                    for *row, feature in zip(*columns, features, strict=True):
                        copy.write_row([*row, HalfVector(feature)])
            for statement in _publication(table, width):
                connection.execute(statement)
    except psycopg.Error as error:
        raise RuntimeError(f"PostgreSQL: {error}".strip()) from error
    return len(index)


def _definition(table: str, width: int) -> list[str]:
    """Empty, under a name that nobody reads."""
    return [
        f"DROP TABLE IF EXISTS {table}_new",
        f"CREATE TABLE {table}_new (path text NOT NULL, identity text, camera text, "
        f"time timestamptz, feature halfvec({width}) NOT NULL)",
    ]


def _publication(table: str, width: int) -> list[str]:
    """Keys and indexes, once the rows are there, and the name that is read."""
    graph = f"CREATE INDEX ON {table}_new USING hnsw (feature halfvec_cosine_ops)"
    return [
        f"DROP TABLE IF EXISTS {table}",
        f"ALTER TABLE {table}_new ADD PRIMARY KEY (path)",
        f"CREATE INDEX ON {table}_new (camera, time)",
        *([graph] if width <= _GRAPH_WIDTH else []),
        f"ALTER TABLE {table}_new RENAME TO {table}",
    ]


def _columns(index: Index) -> Iterator[tuple[list[list[Any]], np.ndarray]]:
    """Path, identity, camera and time of each shard, None where unknown; unit vectors (n, D)."""
    entries = iter(index.entries())
    for features in index.shards():
        rows = [next(entries) for _ in range(len(features))]
        columns: list[list[Any]] = [[row.path for row in rows]]
        columns += [[row.identity or None for row in rows], [row.camera or None for row in rows]]
        columns.append([_moment(row.time) if row.time else None for row in rows])
        yield columns, normalize(features).numpy()


def _moment(text: str) -> datetime:
    return datetime.fromtimestamp(parse_time(text), tz=timezone.utc)


def _check_name(table: str) -> None:
    if not _NAME.fullmatch(table):
        raise ValueError(f"table must be a lower-case name of letters, digits and _, got {table!r}")
