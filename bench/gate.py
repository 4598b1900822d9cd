"""No speed claim on a wrong result: implementations against the reference in float64."""

import copy
from typing import NamedTuple

import common  # noqa: F401  (puts the checkout on the path)
import torch
from torch import Tensor, nn

import rga_fast
from rga_fast import eager, testing
from rga_fast.modules import VARIANTS


class Problem(NamedTuple):
    """One module, map and gradient of the output, the same for every implementation."""

    module: rga_fast.RGA  # float32
    x: Tensor
    dout: Tensor


def make_problem(
    shape: tuple[int, int, int, int],
    variant: str,
    training: bool,
    dtype: torch.dtype,
    layout: str,
    device: torch.device,
    draw: int = 0,
) -> Problem:
    """Random weights, statistics and maps, on `device`; in training away from the kinks."""
    module = testing.make_rga(shape[1], shape[2:], variant, seed=draw).train(training).to(device)
    x, dout = (
        testing.make_map(shape, dtype=dtype, layout=layout, seed=2 * draw + k).to(device)
        for k in range(2)
    )
    if training and dtype == torch.float32:
        move_off_kinks(module, x)
    elif training:  # rounding that coarse crosses any gap
        module = testing.move_off_relu_kinks(module, x).float()
    return Problem(module, x, dout)


def move_off_kinks(module: rga_fast.RGA, x: Tensor) -> None:
    """Shifts the biases of `module` so that no activation has an input near zero for `x`.

    Of the millions of inputs at these sizes a few lie within a rounding of zero. There the
    gradient jumps, so two correct float32 implementations may differ by whole entries of it. Each
    row's bias moves by less than a quarter of its deviation, into the widest gap.
    """
    trial = copy.deepcopy(module).double()

    def into_gap(norm: nn.BatchNorm2d, _: object, out: Tensor) -> Tensor:
        values = out.transpose(0, 1).flatten(1).sort(dim=1).values  # (rows, B * n)
        middles, gaps = (values[:, 1:] + values[:, :-1]) / 2, values.diff(dim=1)
        far = middles.abs() > values.std(dim=1, keepdim=True) / 4
        widest = gaps.masked_fill(far, -1).argmax(dim=1, keepdim=True)
        shift = -middles.gather(1, widest).squeeze(1)
        norm.bias.data += shift
        return out + shift.view(-1, 1, 1)

    for layer in trial.modules():
        if isinstance(layer, nn.Sequential):  # convolution, normalisation, activation
            layer[1].register_forward_hook(into_gap)
    turn = x.double()
    with torch.no_grad():
        for view in VARIANTS[module.variant]:  # eager, since it runs the hooks without forming R
            turn = eager.attention(turn, trial.branch(view))
        biases = dict(trial.named_parameters())
        for name, parameter in module.named_parameters():
            parameter.copy_(biases[name])
