"""From a trained network to ranks: features, metrics."""
