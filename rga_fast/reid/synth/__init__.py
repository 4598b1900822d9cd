"""A procedural pedestrian data set: walking figures, six cameras, the layout of Market-1501."""

from rga_fast.reid.synth.dataset import write_dataset
from rga_fast.reid.synth.sheet import contact_sheet

__all__ = ["contact_sheet", "write_dataset"]
