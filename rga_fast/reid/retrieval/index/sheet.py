"""Queries and their matches in one picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from rga_fast.reid.data.images import read_image
from rga_fast.reid.retrieval.index.search import Match
from rga_fast.reid.retrieval.threshold import Threshold

WIDTH, HEIGHT = 96, 192  # of an image
GAP, CAPTION = 10, 40
PAPER, INK, SAME, OTHER, MISSING = "white", "#444444", "#2e9e5b", "#bbbbbb", "#eeeeee"


def match_sheet(
    queries: Sequence[str | os.PathLike[str]],
    matches: Sequence[Sequence[Match]],
    images: Path,
    threshold: Threshold | None = None,
) -> Image.Image:
    """A row for each query: its image, then its matches with distance, identity and camera.

    With a threshold, matches within it have a green frame, the others a grey one. An image of the
    gallery in `images` that cannot be read is left grey.
    """
    columns = 1 + max((len(row) for row in matches), default=0)
    size = GAP + columns * (WIDTH + GAP) + GAP, len(queries) * (HEIGHT + CAPTION + GAP) + GAP
    sheet = Image.new("RGB", size, PAPER)
    for row, (query, found) in enumerate(zip(queries, matches, strict=True)):
        y = GAP + row * (HEIGHT + CAPTION + GAP)
        _paste(sheet, (GAP, y), Path(query), [Path(query).name], None)
        for column, match in enumerate(found, start=1):
            x = GAP + column * (WIDTH + GAP) + GAP
            colour = None
            if threshold is not None:
                colour = SAME if match.distance <= threshold.value else OTHER
            _paste(sheet, (x, y), images / match.path, _caption(match), colour)
    return sheet


def _caption(match: Match) -> list[str]:
    known = [match.identity, f"camera {match.camera}" if match.camera else ""]
    return [f"{match.distance:.3f}", ", ".join(filter(None, known)), match.time]


def _paste(
    sheet: Image.Image, place: tuple[int, int], path: Path, lines: list[str], frame: str | None
) -> None:
    draw = ImageDraw.Draw(sheet)
    x, y = place
    try:
        sheet.paste(Image.fromarray(read_image(path, (HEIGHT, WIDTH))), place)
    except (OSError, ValueError):
        draw.rectangle((x, y, x + WIDTH - 1, y + HEIGHT - 1), MISSING)
    if frame is not None:
        draw.rectangle((x - 3, y - 3, x + WIDTH + 2, y + HEIGHT + 2), outline=frame, width=3)
    for number, line in enumerate(lines):
        # The font that Pillow brings has few letters beyond ASCII.
        text = line.encode("ascii", "replace").decode()[:16]
        draw.text((x, y + HEIGHT + 4 + 12 * number), text, INK, ImageFont.load_default())
