"""docs/results.md shows the paper's numbers as the ablation table does."""

from pathlib import Path

import pytest

from rga_fast.reid.ablation.published import RESULTS
from rga_fast.reid.network.attention import TABLE_3

PAGE = Path(__file__).parents[3] / "docs" / "results.md"


@pytest.mark.skipif(not PAGE.is_file(), reason="the documents are not part of the distribution")
def test_the_page_has_the_published_numbers():
    lines = [line.split("|") for line in PAGE.read_text(encoding="utf-8").splitlines()]
    cells = {line[1].strip().strip("`"): line for line in lines if len(line) == 7}
    for column, data in ((3, "cuhk03-labeled"), (4, "market1501")):
        for system, (rank1, mAP) in RESULTS[data].items():
            assert cells[system][column].strip() == f"{rank1} / {mAP}", system
    for system, millions in TABLE_3.items():
        assert cells[system][2].strip() == str(millions)
