"""The operators of csrc/cpu/ranking.cpp: schemas, fakes, and whether they can run.

`product(a, b)`: a b^T (M, N) of float32 rows (M, D) and (N, D). An element depends on its two rows
alone, not on the shape of the product.

`pairs(a, b, rows, columns)`: (H,) the elements of this product at `rows` and `columns`, int64 (H,).

`count_before` adds to `counts[s]` how many images of a block of the gallery stand before hit s of
their query. The hits of query i are `begin[i]` to `begin[i + 1]`, ascending by (distance, index);
an image's distance is `scale * product + offset`. Images of the query's identity or camera, and of
an identity below 0, do not count. `first` is the index of the block's first image.
"""

import torch
from torch import Tensor

from rga_fast.fused import cpp

_LIBRARY = torch.library.Library("rga_fast_ranking", "DEF")
_LIBRARY.define("product(Tensor a, Tensor b) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
_LIBRARY.define(
    "pairs(Tensor a, Tensor b, Tensor rows, Tensor columns) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_LIBRARY.define(
    "count_before(Tensor query, Tensor query_ids, Tensor query_cams, Tensor gallery, "
    "Tensor gallery_ids, Tensor gallery_cams, Tensor offset, float scale, int first, Tensor begin, "
    "Tensor distances, Tensor indices, Tensor(a!) counts) -> ()",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.register_fake("rga_fast_ranking::product", lib=_LIBRARY)
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(len(a), len(b))


@torch.library.register_fake("rga_fast_ranking::pairs", lib=_LIBRARY)
def _(a: Tensor, b: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return a.new_empty(len(rows))


@torch.library.register_fake("rga_fast_ranking::count_before", lib=_LIBRARY)
def _(*operands: Tensor | float) -> None:
    return None


def fused(device: torch.device) -> bool:
    """Whether the operators run on a device; elsewhere plain PyTorch has to do."""
    return (
        device.type == "cpu"
        and cpp.missing() is None
        and cpp.extension().build_info().get("ranking") == "fused"
    )
