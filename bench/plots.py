"""Draws the rows of `bench_rga.py --plot`: time and memory against the number of nodes.

python bench/plots.py rows.json DIR
"""

import json
import sys
from pathlib import Path
from typing import Any

PASSES = {"eval": "evaluation", "train": "training step"}
# One look per implementation, the same in every picture: compiled forms are dashed.
COLOURS = {
    "reference": "#7f7f7f",
    "torch": "#1f77b4",
    "cpp": "#d62728",
    "triton": "#2ca02c",
    "cuda": "#9467bd",
}


def pyplot() -> Any:
    """matplotlib, drawing to files.

    Raises:
        ModuleNotFoundError: that says how to install it.
    """
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the plots need matplotlib: pip install 'rga-fast[plots]'"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def draw(rows: list[dict[str, Any]], folder: Path) -> list[Path]:
    """A picture per data type and layout in `folder`: time above memory, a column per pass."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for dtype, layout in dict.fromkeys((row["dtype"], row["layout"]) for row in rows):
        chosen = [row for row in rows if (row["dtype"], row["layout"]) == (dtype, layout)]
        path = folder / f"{chosen[0]['op']}-against-n-{dtype}-{layout}.png"
        _picture(chosen, path)
        paths.append(path)
    return paths


def _picture(rows: list[dict[str, Any]], path: Path) -> None:
    plt = pyplot()
    passes = [name for name in PASSES if any(row["pass"] == name for row in rows)]
    figure, axes = plt.subplots(
        2, len(passes), figsize=(5.2 * len(passes), 7.4), sharex=True, sharey="row", squeeze=False
    )
    for column, name in enumerate(passes):
        chosen = [row for row in rows if row["pass"] == name]
        for impl in dict.fromkeys(row["impl"] for row in chosen):
            _lines([row for row in chosen if row["impl"] == impl], impl, axes[:, column])
        axes[0, column].set_title(PASSES[name])
        _ticks(chosen, axes[1, column])
    axes[0, 0].set_ylabel("time (ms)")
    axes[1, 0].set_ylabel("peak memory beyond input and parameters (MB)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    first = rows[0]
    figure.suptitle(
        f"{first['op']}, C = {first['shape'][1]}, batch {first['batch']}, {first['dtype']}, "
        f"{first['layout'].replace('_', ' ')}\n{first['device']}, torch {first['torch']}",
        fontsize=10,
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _lines(rows: list[dict[str, Any]], impl: str, axes: Any) -> None:
    rows = sorted(rows, key=_nodes)
    n = [_nodes(row) for row in rows]
    if impl == "limit":
        axes[0].plot(n, [row["ms"] for row in rows], "k:", label=impl)
        return
    base = impl.removeprefix("compiled-")
    look = {"color": COLOURS.get(base), "linestyle": "-" if impl == base else "--", "marker": "."}
    axes[0].plot(n, [row["ms"] for row in rows], label=impl, **look)
    if len(rows) > 1:
        low, high = [row["ms_p20"] for row in rows], [row["ms_p80"] for row in rows]
        axes[0].fill_between(n, low, high, color=look["color"], alpha=0.2, linewidth=0)
    axes[1].plot(n, [row["peak_bytes"] / 1e6 for row in rows], **look)


def _ticks(rows: list[dict[str, Any]], axis: Any) -> None:
    """Logarithmic axes that name the sizes measured."""
    n = sorted({_nodes(row) for row in rows})
    axis.set_xscale("log")
    axis.set_xticks(n, [str(value) for value in n])
    axis.minorticks_off()
    axis.set_xlabel("nodes n = H W")
    for each in axis.figure.axes:
        each.set_yscale("log")
        each.grid(True, which="major", alpha=0.3)


def _nodes(row: dict[str, Any]) -> int:
    return row["shape"][2] * row["shape"][3]


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    for drawn in draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])):
        print(drawn)
