"""Imports run one way: a room imports its own files and rooms of a lower rank."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import rga_fast

PACKAGE = Path(rga_fast.__file__).parent
ROOMS = [
    ["the attention"],  # rga_fast outside reid/
    ["files", "console", "field", "words"],
    ["distributed", "synth"],
    ["data", "network"],
    ["config"],
    ["checkpoint"],
    ["retrieval"],
    ["report", "export"],
    ["training", "hub", "serve"],
    ["ablation"],
    ["the command line"],
]
RANKS = {room: rank for rank, rooms in enumerate(ROOMS) for room in rooms}


def room_of(module: str) -> str:
    """`rga_fast.reid.data.images` -> `data`."""
    if module == "rga_fast.__main__" or module.startswith("rga_fast.cli"):
        return "the command line"
    if not module.startswith("rga_fast.reid."):
        return "the attention"
    return module.split(".")[2]


def is_module(name: str) -> bool:
    path = PACKAGE.joinpath(*name.split(".")[1:])
    return path.is_dir() or path.with_suffix(".py").is_file()


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and module of every import of this package, those inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if is_module(name) else node.module for name in inside]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "rga_fast":
                yield node.lineno, name


def violations(module: str, source: str, file: str) -> list[str]:
    room = room_of(module)
    return [
        f"{file}:{line}: {room} imports {name}, which is in {room_of(name)}"
        for line, name in imported(ast.parse(source))
        if room_of(name) != room and RANKS[room_of(name)] >= RANKS[room]
    ]


def test_imports_run_one_way():
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        module = ".".join(["rga_fast", *parts]).removesuffix(".__init__")
        if module == "rga_fast.reid":
            assert not list(imported(ast.parse(path.read_text()))), (
                "rga_fast.reid has the rank of all"
            )
            continue
        file = str(path.relative_to(PACKAGE.parent))
        found += violations(module, path.read_text(encoding="utf-8"), file)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("rga_fast.modules", "import rga_fast.reid.files"),
        ("rga_fast.modules", "from rga_fast.reid import files"),
        ("rga_fast.reid.data.images", "def f():\n    from rga_fast.reid.config import Config"),
        ("rga_fast.reid.data.images", "from rga_fast.reid.network.reidnet import ReidNet"),
        ("rga_fast.reid.retrieval.features", "from rga_fast.reid.training import run"),
        ("rga_fast.reid.report.curves", "from rga_fast.reid.training.run import train"),
        ("rga_fast.reid.training.run", "from rga_fast import cli"),
    ],
)
def test_a_violation_is_found(module, source):
    (sentence,) = violations(module, source, "a.py")
    assert sentence.startswith(f"a.py:{len(source.splitlines())}: ")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("rga_fast.reid.training.run", "from rga_fast.reid.report.curves import curves_note"),
        ("rga_fast.reid.data.images", "from rga_fast.reid.data import datasets"),
        ("rga_fast.reid.network.describe", "from rga_fast.modules import RGA\nimport torch"),
        ("rga_fast.cli", "from rga_fast.reid import checkpoint"),
    ],
)
def test_the_right_direction_is_free(module, source):
    assert violations(module, source, "a.py") == []
