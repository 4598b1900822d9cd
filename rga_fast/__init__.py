"""rga_fast: relation-aware global attention without the n x n affinity matrix.

    att = rga_fast.RGA(256, (64, 32))     # a module: (B, 256, 64, 32) -> the same
    model = rga_fast.fuse(model)          # turns every published module into an RGA, in place

Zhang et al., Relation-Aware Global Attention for Person Re-identification, CVPR 2020.
"""

from rga_fast.dispatch import Choice, choose, implementations
from rga_fast.functional import affinity, attention, relation_embedding
from rga_fast.fusing import fuse, unfuse
from rga_fast.inserting import insert_rga, map_sizes
from rga_fast.modules import RGA
from rga_fast.reference import Branch
from rga_fast.resizing import resize_relations

__all__ = [
    "RGA",
    "Branch",
    "Choice",
    "affinity",
    "attention",
    "choose",
    "fuse",
    "implementations",
    "insert_rga",
    "map_sizes",
    "relation_embedding",
    "resize_relations",
    "unfuse",
]
__version__ = "0.1.0"
