"""A step of training under every option, and what its state holds."""

import functools
import math

import pytest
import torch
from torch.testing import assert_close

from rga_fast.reid.checkpoint import Checkpoint, make_network
from rga_fast.reid.config import RECIPES, Config
from rga_fast.reid.training.epoch import seed_step
from rga_fast.reid.training.losses import reid_losses
from rga_fast.reid.training.memory import step_memory
from rga_fast.reid.training.step import Training

CPU = torch.device("cpu")
TINY = RECIPES["small"].replace(
    height=32, width=16, base_width=4, identities_per_batch=4, images_per_identity=2
)


def training_of(
    config: Config = TINY, dtype: torch.dtype = torch.float64, device: torch.device = CPU
) -> Training:
    torch.manual_seed(0)
    training = Training(make_network(config, 6).to(dtype), config, device)
    training.start_epoch(0)
    return training


def batch(step: int = 0, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randn(8, 3, 32, 16, generator=torch.Generator().manual_seed(step))
    return images.to(dtype), torch.arange(4).repeat_interleave(2)


def scaled(training: Training, scale: float) -> Training:
    """With another scale of fp16 gradients; the one it begins with overflows here at first."""
    if training.scaler.is_enabled():
        training.scaler.load_state_dict(training.scaler.state_dict() | {"scale": scale})
    return training


def parameters(training: Training) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in training.model.named_parameters()}


def test_a_step_tells_the_losses_of_its_batch():
    training, (images, labels) = training_of(), batch()
    output = training_of().model(images)
    expected = reid_losses(output.before_neck, output.logits, labels)
    result = training.step(images, labels, 1e-3).read()
    assert (result.loss, result.identity, result.triplet) == pytest.approx(
        tuple(loss.item() for loss in expected), rel=1e-12
    )
    assert result.correct == (output.logits.argmax(1) == labels).sum()
    assert result.grad_norm is None
    assert training.optimizer.param_groups[0]["lr"] == 1e-3


def test_copies_are_waited_for_where_there_is_no_event(monkeypatch):
    """On a CPU, as on every device but CUDA's: a copy that nobody waits for may hold anything."""
    to, asynchronous = torch.Tensor.to, []

    def recorded(tensor, *arguments, **options):
        if "cpu" in map(str, arguments) and options.get("non_blocking"):
            asynchronous.append(tensor)
        return to(tensor, *arguments, **options)

    training = training_of()
    monkeypatch.setattr(torch.Tensor, "to", recorded)
    training.step(*batch(), 1e-3)
    assert not asynchronous


def test_accumulation_is_the_mean_of_the_slices():
    """Losses and gradients of two slices, each with its own statistics and its own triplets."""
    training, (images, labels) = training_of(TINY.replace(accumulate=2)), batch()
    told = training.forward_backward(images, labels)
    by_hand = training_of().model
    losses, correct = [], 0
    for part in (slice(0, 4), slice(4, 8)):
        output = by_hand(images[part])
        losses.append(reid_losses(output.before_neck, output.logits, labels[part]))
        correct += (output.logits.argmax(1) == labels[part]).sum().item()
        (losses[-1].total / 2).backward()
    expected = [(a + b).item() / 2 for a, b in zip(*losses, strict=True)]
    assert_close(told, torch.tensor([*expected, correct], dtype=torch.float64))
    for own, other in zip(training.model.parameters(), by_hand.parameters(), strict=True):
        assert_close(own.grad, other.grad)


def test_clipping_shortens_the_gradient_and_tells_its_length():
    free, clipped = training_of(), training_of(TINY.replace(clip_norm=0.01))
    free.step(*batch(), 1e-3)
    result = clipped.step(*batch(), 1e-3).read()
    gradients = [
        torch.cat([p.grad.flatten() for p in t.model.parameters() if p.grad is not None])
        for t in (free, clipped)
    ]
    assert result.grad_norm == pytest.approx(gradients[0].norm().item(), rel=1e-12)
    assert result.grad_norm > 0.01
    assert gradients[1].norm().item() == pytest.approx(0.01, rel=1e-3)  # 1e-6 is added to the norm
    assert torch.cosine_similarity(*gradients, dim=0).item() == pytest.approx(1, abs=1e-12)


def test_the_average_follows_the_weights():
    training = training_of(TINY.replace(ema=0.75))
    average = None
    for step in range(3):
        training.step(*batch(step), 1e-2)
        state = {k: v for k, v in training.model.state_dict().items() if v.is_floating_point()}
        average = average or {k: v.clone() for k, v in state.items()}
        for name, value in state.items():
            average[name] = 0.75 * average[name] + 0.25 * value
    assert training.evaluated() is not training.model
    found = training.evaluated().state_dict()
    assert_close({name: found[name] for name in average}, average)
    assert not torch.equal(found["cls.weight"], training.model.state_dict()["cls.weight"])


def test_frozen_layers_keep_weights_and_statistics():
    training = training_of(TINY.replace(freeze_epochs=1))
    new = ("backbone.rga_att", "feat_bn", "cls")
    for epoch in (0, 1):
        training.start_epoch(epoch)
        before = {k: v.clone() for k, v in training.model.state_dict().items()}
        training.step(*batch(epoch), 1e-2)
        training.step(*batch(epoch), 1e-2)  # layers before frozen ones learn with the second
        for name, value in training.model.state_dict().items():
            fixed = name == "feat_bn.bias" or (epoch == 0 and not name.startswith(new))
            assert torch.equal(value, before[name]) == fixed, name


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision(amp):
    training = scaled(training_of(TINY.replace(amp=amp), torch.float32), 64.0)
    seen = []
    training.model.backbone.layer3.register_forward_hook(lambda *a: seen.append(a[2].dtype))
    result = training.step(*batch(dtype=torch.float32), 1e-3).read()
    assert seen == [{"bf16": torch.bfloat16, "fp16": torch.float16}[amp]]
    assert math.isfinite(result.loss)
    assert {p.dtype for p in training.model.parameters()} == {torch.float32}
    assert training.scaler.is_enabled() == (amp == "fp16")
    before = parameters(training_of(dtype=torch.float32))
    assert not torch.equal(training.model.cls.weight, before["cls.weight"])


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_a_step_reads_nothing_back(amp, monkeypatch):
    """A GPU would be waited for at each value that Python asks for."""
    config = TINY.replace(amp=amp, accumulate=2, ema=0.5, clip_norm=1.0, impl="torch")
    training, (images, labels) = training_of(config, torch.float32), batch(dtype=torch.float32)
    training.step(images, labels, 1e-3)
    with monkeypatch.context() as patch:
        for name in ("item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__"):
            patch.setattr(torch.Tensor, name, lambda *_: pytest.fail("a value was read"))
        pending = training.step(images, labels, 1e-3)
    assert math.isfinite(pending.read().loss)


def test_gradients_that_overflow_in_fp16_are_left_out():
    training = training_of(TINY.replace(amp="fp16", clip_norm=1.0), torch.float32)
    scaled(training, 2.0**127)
    before = parameters(training)
    training.step(*batch(dtype=torch.float32), 1e-2)
    assert all(torch.equal(before[n], p) for n, p in training.model.named_parameters())
    assert training.scaler.get_scale() == 2.0**126
    state = training.state()
    assert state["scaler"]["scale"] == 2.0**126


def test_state_is_taken_over_whole():
    """Three steps equal one step, saved and loaded into a new object, and two more."""
    config = TINY.replace(amp="fp16", ema=0.5, clip_norm=1.0)
    whole, first, rest = (scaled(training_of(config, torch.float32), 64.0) for _ in range(3))
    initial = parameters(whole)
    for step in range(3):
        whole.step(*batch(step, torch.float32), 1e-2)
    first.step(*batch(0, torch.float32), 1e-2)
    rest.load(Checkpoint(config, 6, 0, 1, **first.state()), "a checkpoint")
    for step in (1, 2):
        rest.step(*batch(step, torch.float32), 1e-2)
    for name in ("model", "ema", "scaler"):
        assert_close(rest.state()[name], whole.state()[name], rtol=0, atol=0)
    assert not torch.equal(whole.model.cls.weight, initial["cls.weight"])


def test_channels_last_changes_the_layout_alone():
    plain, other = training_of(), training_of(TINY.replace(channels_last=True))
    weight = other.model.backbone.layer1[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    for step in range(2):
        expected, result = (t.step(*batch(step), 1e-3).read() for t in (plain, other))
        assert result[:4] == pytest.approx(expected[:4], rel=1e-7)


@pytest.mark.slow
def test_compiled_steps(monkeypatch):
    """The code of the step, captured whole; the compiler's own code generation is not tested."""
    capture = functools.partial(torch.compile, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", capture)
    plain, other = training_of(), training_of(TINY.replace(compile=True))
    for step in range(2):
        expected, result = (t.step(*batch(step), 1e-3).read() for t in (plain, other))
        assert result[:4] == pytest.approx(expected[:4], rel=1e-7)


def test_cuda_graphs_need_cuda():
    with pytest.raises(ValueError, match="cuda_graph needs a CUDA device, got cpu"):
        training_of(TINY.replace(cuda_graph=True))


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
@pytest.mark.parametrize("options", [{}, {"compile": True}, {"cuda_graph": True}])
def test_on_a_gpu(amp, options):
    """Every way to run a step, in slices, starts at the loss of the plain one in its precision."""
    config = TINY.replace(amp=amp, accumulate=2, ema=0.5, clip_norm=1.0, impl="torch")
    device = torch.device("cuda", 0)
    plain = training_of(config, torch.float32, device)
    other = training_of(config.replace(channels_last=True, **options), torch.float32, device)
    eps = {"off": 2**-10, "bf16": 2**-7, "fp16": 2**-10}[amp]  # TF32 has 10 bits
    for step in range(4):
        images, labels = (t.to(device) for t in batch(step, torch.float32))
        expected, result = (t.step(images, labels, 1e-3).read() for t in (plain, other))
        assert math.isfinite(result.loss)
        if step == 0:
            assert result.loss == pytest.approx(expected.loss, rel=8 * eps)


def test_what_a_step_draws_depends_on_its_place():
    def draws(*place):
        seed_step(*place)
        return torch.rand(3).tolist()

    assert draws(1, 2, 3, 0) == draws(1, 2, 3, 0)
    others = [(0, 2, 3, 0), (1, 0, 3, 0), (1, 2, 0, 0), (1, 2, 3, 1)]
    assert len({tuple(draws(*place)) for place in [(1, 2, 3, 0), *others]}) == 5


@pytest.mark.slow
def test_memory_of_a_step():
    """Weights exactly; the peak as torch's profiler sees it in a real step."""
    config = TINY.replace(height=64, width=32, base_width=16, impl="torch", ema=0.9)
    estimate = step_memory(config, 6, 8, CPU)
    model = make_network(config, 6)
    own = sum(t.nbytes for t in model.state_dict().values())
    assert estimate.weights == 2 * own
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    assert estimate.gradients == trained
    assert 2 * trained <= estimate.optimizer < 2 * trained + 4096  # and a counter for each
    training = Training(model, config, CPU)
    training.start_epoch(0)
    images, labels = torch.randn(8, 3, 64, 32), torch.arange(4).repeat_interleave(2)
    training.step(images, labels, 1e-3)
    training.optimizer.zero_grad(set_to_none=True)
    with torch.profiler.profile(profile_memory=True) as profile:
        training.step(images, labels, 1e-3)
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    peak += estimate.weights + estimate.optimizer + images.nbytes
    assert estimate.peak == pytest.approx(peak, rel=0.05)  # convolutions allocate a little within
    in_slices = step_memory(config.replace(accumulate=2), 6, 8, CPU)
    assert in_slices.peak < estimate.peak
    assert in_slices.weights == estimate.weights
