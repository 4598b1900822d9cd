"""What the page asks: who is on this image, and the pictures of the gallery."""

from __future__ import annotations

import base64
import io
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from rga_fast.reid.data.images import Size, read_image
from rga_fast.reid.retrieval.index import store
from rga_fast.reid.retrieval.index.record import check_same_model, open_network
from rga_fast.reid.retrieval.index.search import Filter, Index, Match
from rga_fast.reid.retrieval.index.tables import verdict
from rga_fast.reid.retrieval.model import ReidModel
from rga_fast.reid.retrieval.threshold import Threshold
from rga_fast.reid.serve.attention import attention_pictures
from rga_fast.reid.serve.upload import Refused

_SHOWN = 256, 128  # (height, width) of a picture of the gallery
MOST = 100  # matches of a search


class Searcher:
    """An index and its network, for several threads. When the index is replaced, the next search
    sees the new one.

    Args:
        folder: of the index.
        options: of `load`, for the network stored in the index.

    Raises:
        FileNotFoundError, ValueError: if it is no index, or a damaged one.
    """

    def __init__(self, folder: str | os.PathLike[str], **options: Any) -> None:
        self.folder = Path(folder)
        self._lock = threading.Lock()
        self._state = self._state_now()
        self._index = Index(self.folder)
        self._paths = {entry.path for entry in self._index.entries()}
        self._model: ReidModel = open_network(self.folder, self._index.manifest, **options)

    @property
    def index(self) -> Index:
        """The index as it is now."""
        with self._lock:
            state = self._state_now()
            if state != self._state:
                index = Index(self.folder)
                check_same_model(self.folder, index.manifest, self._model)
                self._paths = {entry.path for entry in index.entries()}
                self._index, self._state = index, state
            return self._index

    @property
    def size(self) -> Size:
        """(height, width) of the network's input."""
        return self._model.config.size

    def search(self, pixels: np.ndarray, k: int, cameras: Sequence[str]) -> dict[str, Any]:
        """What the page shows of the nearest images of `pixels`, uint8 (H, W, 3) of this `size`.
        `Refused` for a k outside 1..100 and for unknown cameras."""
        if not 1 <= k <= MOST:
            raise Refused(400, f"k must be from 1 to {MOST}, got {k}.")
        index = self.index
        unknown = sorted(set(cameras) - set(index.cameras()))
        if unknown:
            raise Refused(400, f"No image is of camera {', '.join(unknown)}.")
        with self._lock:  # one forward pass uses all cores
            features = self._model.features(pixels, channels="rgb")
            attention = attention_pictures(self._model.network, pixels)
        (matches,) = index.search(features, k, Filter(tuple(cameras)))
        sentence = verdict(matches, index.threshold)
        return {
            "query": _data_url(Image.fromarray(pixels)),
            "attention": [{"name": one.name, "image": _data_url(one.image)} for one in attention],
            "verdict": f"{sentence[0].upper()}{sentence[1:]}.",
            "matches": [_row(match, index.threshold) for match in matches],
        }

    def picture(self, path: str) -> bytes | None:
        """A JPEG of an image of the gallery; None if the index does not list it, or it cannot be
        read, or it leads to a file outside the gallery's folder."""
        root = self._index.images.resolve()
        file = (root / path).resolve()
        if path not in self._paths or not file.is_relative_to(root):
            return None
        try:
            pixels: np.ndarray = read_image(file, _SHOWN)
        except (OSError, ValueError):
            return None
        return _encoded(Image.fromarray(pixels), "JPEG")

    def _state_now(self) -> tuple[int, int]:
        found = os.stat(self.folder / store.MANIFEST)
        return found.st_ino, found.st_mtime_ns


def _row(match: Match, threshold: Threshold | None) -> dict[str, Any]:
    shown = match.path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return match._asdict() | {
        "path": shown,
        "image": f"/images/{quote(shown)}",
        "same": None if threshold is None else match.distance <= threshold.value,
    }


def _encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def _data_url(image: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(_encoded(image, "PNG")).decode()
