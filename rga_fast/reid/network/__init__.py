"""The network, its attention, and pretrained weights."""
