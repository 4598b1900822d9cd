"""Charts of a report: vector graphics, in colours that the colour-blind can tell apart."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rga_fast.reid.report.curves import Curve
from rga_fast.reid.report.histograms import Histograms
from rga_fast.reid.retrieval import verification
from rga_fast.reid.retrieval.breakdown import CameraPairScores
from rga_fast.reid.retrieval.verified import thinned

WANTED = "reports and pictures need jinja2 and matplotlib: pip install 'rga-fast[report]'"
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#767676"
RUNS = (BLUE, ORANGE)  # Okabe and Ito's colours, also differing in lightness
DASHES = ("-", "--")
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "rga_fast",  # the same chart is the same file
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
}


def require() -> None:
    """ImportError names the extra where a library is missing."""
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{WANTED} ({error})") from error


def curve_chart(runs: Mapping[str, Curve], unit: float = 1) -> str:
    """Values over epochs, one line a run. `unit` multiplies the values: 100 for percent."""
    with _Chart("", "epoch") as chart:
        for index, (name, curve) in enumerate(runs.items()):
            marker = "o" if len(curve.x) < 30 else None
            values = [unit * value for value in curve.y]
            chart.axis.plot(curve.x, values, label=name, marker=marker, **_line(index))
        chart.axis.xaxis.get_major_locator().set_params(integer=True)
        chart.legend(len(runs))
    return chart.uri


def cmc_chart(runs: Mapping[str, Tensor]) -> str:
    """Cumulative matching characteristics, (length,) in [0, 1] each."""
    with _Chart("", "rank") as chart:
        for index, (name, curve) in enumerate(runs.items()):
            ranks = range(1, len(curve) + 1)
            chart.axis.plot(ranks, 100 * curve.numpy(), label=name, **_line(index))
        chart.axis.set_ylim(None, 101)
        chart.axis.xaxis.get_major_locator().set_params(integer=True)
        chart.legend(len(runs))
    return chart.uri


def roc_chart(runs: Mapping[str, verification.Curve]) -> str:
    """Receiver operating characteristics; the share of different people on a logarithmic axis."""
    with _Chart("", "different people accepted, %") as chart:
        for index, (name, curve) in enumerate(runs.items()):
            _, x, y = (100 * values.cpu().numpy() for values in thinned(curve))
            chart.axis.plot(x, y, label=name, drawstyle="steps-post", **_line(index))
        chart.axis.set_xscale("log")
        chart.axis.xaxis.set_major_formatter("{x:g}")
        chart.axis.set_ylim(0, 101)
        chart.legend(len(runs))
    return chart.uri


def histogram_chart(histograms: Histograms) -> str:
    """Both densities, over the part of the axis that holds pairs."""
    with _Chart("density", "cosine distance") as chart:
        edges = histograms.edges.numpy()
        width = float(edges[1] - edges[0])
        for counts, colour, label, dash in (
            (histograms.same, BLUE, "same person, another camera", "-"),
            (histograms.different, ORANGE, "different people", "--"),
        ):
            density = counts.numpy() / max(1, int(counts.sum())) / width
            chart.axis.stairs(
                density, edges, fill=True, alpha=0.35, color=colour, label=label, linestyle=dash
            )
            chart.axis.stairs(density, edges, color=colour, linestyle=dash, linewidth=1.5)
        used = (histograms.same + histograms.different).nonzero().flatten()
        chart.axis.set_xlim(float(edges[used[0]]), float(edges[used[-1] + 1]))
        chart.legend(2)
    return chart.uri


def camera_chart(pairs: CameraPairScores, values: Tensor) -> str:
    """`values` (Cq, Cg) in [0, 1] of each pair of cameras, written into its cell in percent."""
    rows, columns = values.shape
    size = (max(3.6, 1.4 + 0.5 * columns), max(2.4, 1.2 + 0.38 * rows))
    with _Chart("query camera", "gallery camera", size) as chart:
        shown = torch.where(pairs.queries > 0, 100 * values, torch.nan).cpu()
        chart.axis.imshow(shown.numpy(), cmap="viridis", vmin=0, vmax=100, aspect="auto")
        for row, column in (pairs.queries > 0).nonzero().tolist():
            value = float(shown[row, column])
            colour = "black" if value > 60 else "white"
            text = {"ha": "center", "va": "center", "color": colour, "fontsize": 9}
            chart.axis.text(column, row, f"{value:.0f}", **text)
        chart.axis.set_xticks(range(columns), [str(c) for c in pairs.gallery_cameras.tolist()])
        chart.axis.set_yticks(range(rows), [str(c) for c in pairs.query_cameras.tolist()])
        chart.axis.grid(False)
    return chart.uri


class _Chart:
    """A figure with one pair of axes; `uri` is the picture once the block has ended."""

    def __init__(self, ylabel: str, xlabel: str, size: tuple[float, float] = (4.8, 3.0)) -> None:
        self.labels, self.size = (xlabel, ylabel), size
        self.uri = ""

    def __enter__(self) -> Any:
        require()
        import matplotlib
        from matplotlib.figure import Figure

        self._style = matplotlib.rc_context(STYLE)
        self._style.__enter__()
        self.figure = Figure(figsize=self.size)
        self.axis = self.figure.subplots()
        width, height = self.size  # margins in inches: a layout engine would draw everything twice
        self.figure.subplots_adjust(0.6 / width, 0.5 / height, 1 - 0.1 / width, 1 - 0.1 / height)
        self.axis.set_xlabel(self.labels[0])
        self.axis.set_ylabel(self.labels[1])
        return self

    def legend(self, entries: int) -> None:
        if entries > 1:
            self.axis.legend(frameon=False, fontsize=9)

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            buffer = io.BytesIO()
            self.figure.savefig(buffer, format="svg", metadata={"Date": None})
            self.uri = data_uri(buffer.getvalue(), "image/svg+xml")
        self._style.__exit__(*error)


def data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _line(index: int) -> dict[str, Any]:
    style = {"color": RUNS[index], "linestyle": DASHES[index]}
    return {**style, "markersize": 3, "linewidth": 1.8}
