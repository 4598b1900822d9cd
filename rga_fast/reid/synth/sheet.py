"""A contact sheet: lookalikes side by side, camera by camera."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from rga_fast.reid.synth.cameras import CAMERAS
from rga_fast.reid.synth.wardrobe import group_of

MARGIN, HEADER, GAP = 34, 18, 10
PAPER, INK, UNSEEN = (255, 255, 255), (70, 70, 70), (238, 238, 238)


def contact_sheet(root: Path | str, blocks: int = 2, rows: int = 4) -> Image.Image:
    """A picture of a data set that `write_dataset` wrote to `root`.

    Side by side `blocks` groups of identities that share the colours of their clothes, one
    identity per row (at most `rows`), one camera per column; the groups seen most often are
    chosen. Raises FileNotFoundError if `root` holds no such data set.
    """
    seen = _pictures(Path(root))
    groups: dict[int, list[int]] = defaultdict(list)
    for identity in sorted(seen):
        groups[group_of(identity)].append(identity)
    by_views = sorted(groups, key=lambda g: (-sum(len(seen[i]) for i in groups[g][:rows]), g))
    chosen = [groups[g][:rows] for g in sorted(by_views[:blocks])]

    first = next(iter(seen.values()))
    with Image.open(next(iter(first.values()))) as image:
        width, height = image.size
    block = MARGIN + len(CAMERAS) * width
    across = len(chosen) * block + (len(chosen) - 1) * GAP
    down = HEADER + max(map(len, chosen)) * height
    sheet = Image.new("RGB", (across, down), PAPER)
    for i, members in enumerate(chosen):
        _paste_block(sheet, i * (block + GAP), members, seen, (width, height))
    return sheet


def _paste_block(
    sheet: Image.Image,
    left: int,
    members: list[int],
    seen: dict[int, dict[int, Path]],
    size: tuple[int, int],
) -> None:
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for camera in range(1, len(CAMERAS) + 1):
        x = left + MARGIN + (camera - 1) * size[0]
        draw.text((x + 4, 3), f"camera {camera}", INK, font)
        for row, identity in enumerate(members):
            y = HEADER + row * size[1]
            if camera in seen[identity]:
                with Image.open(seen[identity][camera]) as image:
                    sheet.paste(image, (x, y))
            else:
                draw.rectangle((x, y, x + size[0] - 1, y + size[1] - 1), UNSEEN)
    for row, identity in enumerate(members):
        draw.text((left + 3, HEADER + (row + 0.45) * size[1]), f"{identity:04d}", INK, font)


def _pictures(root: Path) -> dict[int, dict[int, Path]]:
    """The first picture of each identity from each camera: {identity: {camera: path}}."""
    seen: dict[int, dict[int, Path]] = defaultdict(dict)
    for path in sorted(root.glob("*/*_c?s*.jpg")):
        identity, camera = path.name.split("_")[:2]
        if int(identity) > 0:
            seen[int(identity)].setdefault(int(camera[1]), path)
    if not seen:
        raise FileNotFoundError(
            f"contact_sheet: no data set in {root}: expected JPEG files such as "
            "bounding_box_train/0001_c1s1_000001_01.jpg"
        )
    return dict(seen)
