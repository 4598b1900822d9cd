"""Inputs, error budget and oracle of the tests and benchmarks."""

from rga_fast.testing.budget import Results, check_budget, check_results, run
from rga_fast.testing.inputs import (
    ABLATIONS,
    ALL_VARIANTS,
    STAGES,
    make_map,
    make_rga,
    move_off_relu_kinks,
)

__all__ = [
    "ABLATIONS",
    "ALL_VARIANTS",
    "STAGES",
    "Results",
    "check_budget",
    "check_results",
    "make_map",
    "make_rga",
    "move_off_relu_kinks",
    "run",
]
