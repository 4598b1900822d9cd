"""Trained networks as files for other programs, checked against the network that they come from."""
