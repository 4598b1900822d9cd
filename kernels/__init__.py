"""Triton kernels, one file per operator; `call` runs one of rga_fast/fused/ops.py by name."""

from typing import Any

import torch
from torch import Tensor

from rga_fast.fused import ops
from rga_fast.kernels import (
    checks,
    embed,
    evaluate,
    gate,
    perceptron,
    perceptron_bwd,
    relate,
    relate_bwd,
    training,
)

LAUNCHERS = {
    "attention": evaluate.attention,
    "attention_pair": evaluate.attention_pair,
    "training_fwd": training.training_fwd,
    "training_bwd": training.training_bwd,
    "training_pair_fwd": training.training_pair_fwd,
    "training_pair_bwd": training.training_pair_bwd,
    "embed_fwd": embed.embed_fwd,
    "relate_fwd": relate.relate_fwd,
    "hidden_fwd": perceptron.hidden_fwd,
    "logit_fwd": perceptron.logit_fwd,
    "gate_fwd": gate.gate_fwd,
    "gate_bwd": gate.gate_bwd,
    "logit_bwd": perceptron_bwd.logit_bwd,
    "hidden_bwd": perceptron_bwd.hidden_bwd,
    "relate_bwd": relate_bwd.relate_bwd,
    "embed_bwd": embed.embed_bwd,
}


def call(name: str, *args: Any) -> Any:
    """The operator `name` on the device of its first tensor.

    Raises:
        RuntimeError: for arguments that do not fit together.
    """
    checks.check(name, ops.named(name, args))
    x: Tensor = args[0]
    if x.shape[0] == 0 or x.shape[-1] == 0:  # no values: gradients of weights are sums of nothing
        results = ops.fake(name, *args, low_products=True)
        return torch.utils._pytree.tree_map(torch.zeros_like, results)
    with torch.cuda.device_of(x):
        return LAUNCHERS[name](*args)
