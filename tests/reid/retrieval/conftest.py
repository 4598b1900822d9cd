"""The two ways to rank: by the operators and in plain PyTorch."""

import pytest
import torch

from rga_fast.reid.retrieval import operators, ranking


@pytest.fixture(params=["fused", "plain"])
def way(request, monkeypatch):
    if request.param == "plain":
        monkeypatch.setattr(ranking, "fused", lambda device: False)
    elif not operators.fused(torch.device("cpu")):
        pytest.skip("the extension is not built, or has no ranking for this processor")
    return request.param
