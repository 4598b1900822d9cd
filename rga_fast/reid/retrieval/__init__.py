"""Retrieval with a trained network: features, ranking, metrics."""
