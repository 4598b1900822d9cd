"""Weights for maps of another size."""

import itertools

import pytest
import torch
import torch.nn.functional as F

import rga_fast
from rga_fast import resizing
from rga_fast.modules import EMBEDDINGS, VARIANTS

C = 32
SMALL, LARGE, OTHER = (8, 4), (16, 8), (12, 4)


def smooth_map(size, images=3):
    """Low frequencies, which every size here can show: (B, C, *size)."""
    torch.manual_seed(1)
    coarse = torch.randn(images, C, 2, 2, dtype=torch.float64)
    return F.interpolate(coarse, size=size, mode="bicubic", align_corners=False)


def trained(size, variant="sc", **options):
    """A module whose relations are smooth over the positions, as the neighbours' are, with
    statistics of the maps that it is tested on."""
    torch.manual_seed(0)
    module = rga_fast.RGA(C, size, variant, impl="torch", dtype=torch.float64, **options)
    for name, weight in module.named_parameters():
        if name.endswith("spatial.0.weight") and "gg" in name:
            coarse = torch.randn(len(weight), 2, 2, 2, dtype=torch.float64)
        elif name in ("theta_channel.0.weight", "phi_channel.0.weight", "gx_channel.0.weight"):
            coarse = torch.randn(len(weight), 1, 2, 2, dtype=torch.float64)
        else:
            continue
        grid = F.interpolate(coarse, size=size, mode="bicubic", align_corners=False)
        weight.data = grid.flatten(1)[..., None, None] / (size[0] * size[1]) ** 0.5
    for norm in module.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.momentum = None  # the plain mean
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
            torch.nn.init.normal_(norm.bias, std=0.2)
    with torch.no_grad():
        module(smooth_map(size, 32))
    return module.eval()


def resized_module(module, old, new, variant="sc", **options):
    other = rga_fast.RGA(C, new, variant, impl="torch", dtype=torch.float64, **options)
    ratios = {k: options[k] for k in ("spatial_ratio", "down_ratio") if k in options}
    other.load_state_dict(rga_fast.resize_relations(module.state_dict(), old, new, **ratios))
    return other.eval()


@pytest.mark.parametrize("variant", VARIANTS)
def test_equal_sizes_change_nothing(variant):
    state = trained(SMALL, variant).state_dict()
    same = rga_fast.resize_relations(state, SMALL, SMALL)
    assert same.keys() == state.keys()
    assert all(same[key] is state[key] for key in state)


def values_of_both(variant, old, new):
    """By branch: the attention values of the old size, resampled, and those of the new."""
    module = trained(old, variant)
    other = resized_module(module, old, new, variant)
    before = module.attention_values(smooth_map(old))
    after = other.attention_values(smooth_map(new))
    if "spatial" in before:
        before["spatial"] = F.interpolate(before["spatial"], new, mode="bilinear", antialias=True)
    return {view: (before[view], after[view]) for view in before}


@pytest.mark.parametrize("variant", ["s", "c", "sc"])
@pytest.mark.parametrize("new", [LARGE, OTHER])
def test_on_a_larger_map_the_attention_stays(variant, new):
    """What differs, interpolation and perturbed copies, is small beside the values' deviation."""
    for before, after in values_of_both(variant, SMALL, new).values():
        assert (after - before).square().mean().sqrt() < 0.25 * before.std()


@pytest.mark.parametrize("variant", ["s", "c"])
def test_on_a_smaller_map_it_stays_alike(variant):
    """A quarter of the units remains: values are like before, and on average as large."""
    for before, after in values_of_both(variant, LARGE, SMALL).values():
        both = torch.stack([before.flatten(), after.flatten()])
        assert torch.corrcoef(both)[0, 1] > 0.6
        assert (after.mean() - before.mean()).abs() < 0.25 * before.std()


def test_weights_see_the_map_at_the_old_size(monkeypatch):
    """W_new x = W_old (S x), in the embeddings of the channel branch, to rounding."""
    monkeypatch.setattr(resizing, "PERTURBATION", 0.0)
    module = trained(LARGE, "c")
    state = rga_fast.resize_relations(module.state_dict(), LARGE, OTHER)
    torch.manual_seed(2)
    x = torch.randn(5, 1, *OTHER, dtype=torch.float64)
    seen = F.interpolate(x, LARGE, mode="bilinear", antialias=True)
    key = "theta_channel.0.weight"
    actual = x.flatten(1) @ state[key].flatten(1).T
    expected = seen.flatten(1) @ module.state_dict()[key].flatten(1).T
    units = [
        next(i for i in range(16) if torch.allclose(column, expected[:, i])) for column in actual.T
    ]
    assert len(units) == 6
    assert units == sorted(set(units))


@pytest.mark.parametrize("variant", ["s", "c"])
def test_copies_share_what_one_gave(monkeypatch, variant):
    """More units than before, and nothing else changed: the same function, to rounding."""
    monkeypatch.setattr(resizing, "PERTURBATION", 0.0)
    old, new = (4, 8), (4, 16)
    monkeypatch.setattr(  # the second half of the positions is not looked at
        resizing, "_resampling", lambda a, b: torch.eye(a, b, dtype=torch.float64)
    )
    module = trained(old, variant)
    other = resized_module(module, old, new, variant)
    x = smooth_map(old)
    wide = torch.cat([x, torch.zeros_like(x)], dim=3)
    after = other.attention_values(wide)
    for view, values in module.attention_values(x).items():
        seen = after[view][..., :8] if view == "spatial" else after[view]
        torch.testing.assert_close(seen, values, rtol=1e-9, atol=1e-9)


def test_copies_part_in_training():
    module = trained(SMALL, "s")
    state = rga_fast.resize_relations(module.state_dict(), SMALL, LARGE)
    weight = state["gg_spatial.0.weight"].flatten(1)
    assert torch.cdist(weight, weight).fill_diagonal_(1).min() > 1e-4


@pytest.mark.parametrize(
    ("embedding", "relations", "appearance"),
    [
        options
        for options in itertools.product(EMBEDDINGS, (True, False), (True, False))
        if options[1] or options[2]
    ],
)
def test_every_ablation_loads(embedding, relations, appearance):
    options = {"embedding": embedding, "relations": relations, "appearance": appearance}
    module = trained(SMALL, "sc", **options)
    if embedding == "none" and not appearance:
        with pytest.raises(ValueError, match="do not show the size"):
            rga_fast.resize_relations(module.state_dict(), SMALL, LARGE)
        return
    for new in (LARGE, (4, 2)):
        resized_module(module, SMALL, new, "sc", **options)(smooth_map(new))


def test_a_network_is_resized_by_the_sizes_of_its_images():
    """Prefixes, strides of 4 to 16 rounded up, and other ratios; the rest is left alone."""
    options = {"spatial_ratio": 4, "down_ratio": 2}
    module = trained(SMALL, **options)  # of images of 30 x 13 to 32 x 16 with stride 4
    state = {f"module.att.{key}": value for key, value in module.state_dict().items()}
    state["module.conv.0.weight"] = torch.ones(3)
    new = rga_fast.resize_relations(state, (30, 13), (62, 30), **options)
    assert new["module.conv.0.weight"] is state["module.conv.0.weight"]
    other = rga_fast.RGA(C, LARGE, dtype=torch.float64, **options)
    other.load_state_dict({k.removeprefix("module.att."): v for k, v in new.items() if "att" in k})


@pytest.mark.parametrize(
    ("old", "new", "options", "message"),
    [
        ((8, 5), LARGE, {}, "32 positions, which are no maps of old_size 8x5"),
        ((8,), LARGE, {}, r"old_size must be \(H, W\)"),
        (SMALL, (0, 4), {}, "each side of new_size must be a positive integer"),
        (
            SMALL,
            LARGE,
            {"spatial_ratio": 4},
            "4 units for 32 inputs, expected 8 with spatial_ratio",
        ),
        (SMALL, LARGE, {"down_ratio": 2}, "1 units for 5 inputs, expected 2 with down_ratio"),
    ],
)
def test_what_does_not_fit_is_refused(old, new, options, message):
    with pytest.raises(ValueError, match=message):
        rga_fast.resize_relations(trained(SMALL).state_dict(), old, new, **options)
