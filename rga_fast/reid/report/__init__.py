"""Reports of finished runs: curves."""
