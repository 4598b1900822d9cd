"""rga_fast: relation-aware global attention without the n x n affinity matrix."""
