"""No speed claim on a wrong result: implementations against the reference in float64."""

import copy
from typing import NamedTuple

import common  # noqa: F401  (puts the checkout on the path)
import torch
from torch import Tensor, nn

import rga_fast
from rga_fast import testing


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
) -> Problem:
    """Random weights, statistics and maps, on `device`; in training away from the kinks."""
    module = testing.make_rga(shape[1], shape[2:], variant).train(training).to(device)
    x, dout = (
        testing.make_map(shape, dtype=dtype, layout=layout, seed=seed).to(device)
        for seed in range(2)
    )
    if training:
        move_off_kinks(module, x)
    return Problem(module, x, dout)


def move_off_kinks(module: rga_fast.RGA, x: Tensor) -> None:
    """Shifts the biases of `module` so that no activation has an input near zero for `x`.

    Of the millions of inputs at these sizes a few lie within a rounding of zero. There the
    gradient jumps, so two correct float32 implementations may differ by whole entries of it. Each
    row's bias moves by less than a quarter of its deviation, into the widest gap.
    """
    trial = copy.deepcopy(module).double()
    trial.impl = "torch"

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
    with torch.no_grad():
        trial(x.double())
        biases = dict(trial.named_parameters())
        for name, parameter in module.named_parameters():
            parameter.copy_(biases[name])


def failures(
    actual: dict[str, Tensor], baseline: dict[str, Tensor], oracle: dict[str, Tensor]
) -> list[str]:
    """What exceeds the error budget of the tests, with the figures."""
    found = []
    actual, baseline, oracle = (_joined(results) for results in (actual, baseline, oracle))
    for name, expected in oracle.items():
        try:
            testing.check_budget(actual[name], baseline[name], expected, name)
        except AssertionError as error:
            found.append(str(error))
    return found


def _joined(results: dict[str, Tensor]) -> dict[str, Tensor]:
    """The small tensors of a branch as one vector each: those of its normalisations, those of its
    perceptron. The error of a few numbers is a matter of luck, in the baseline too."""
    joined: dict[str, list[Tensor]] = {}
    for name, value in results.items():
        joined.setdefault(_group(name), []).append(value.flatten())
    return {name: torch.cat(values) for name, values in joined.items()}


def _group(name: str) -> str:
    layer, _, rest = name.partition(".")
    owner, _, view = layer.partition("_")
    if not rest or rest.endswith("tracked"):
        return name
    kind = "statistics" if "running" in rest else "gradients"
    if owner.endswith("W"):
        return f"{kind} of the {view} perceptron"
    if kind == "statistics" or rest.startswith("1."):
        return f"{kind} of the {view} normalisations"
    return name
