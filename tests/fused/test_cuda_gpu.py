"""The CUDA kernels on a GPU: parity, streams, graphs, devices, determinism. Small ones of these are
for compute-sanitizer, see docs/sanitizers.md."""

import copy
from itertools import product

import pytest
import torch
from operators import ROUNDED, check_rounding

import rga_fast
from rga_fast.fused import cuda
from rga_fast.testing import STAGES, check_results, make_map, make_rga, move_off_relu_kinks, run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not cuda.BACKEND.available(), reason=f"impl='cuda': {cuda.BACKEND.note()}"),
]
SMALL = (2, 64, 16, 8)


@pytest.mark.parametrize("name", ROUNDED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_operators(name, dtype):
    check_rounding("cuda", name, dtype)


def draws(shape, dtype, training, count):
    for seed in range(count):
        layout = ("contiguous", "channels_last")[seed % 2]
        pair = [make_map(shape, dtype=dtype, layout=layout, seed=10 * seed + k) for k in (1, 2)]
        x, dout = (tensor.cuda() for tensor in pair)
        module = make_rga(shape[1], shape[2:], seed=seed).cuda()
        module = move_off_relu_kinks(module, x).to(dtype).train(training)
        actual, baseline = run(module, x, dout, "cuda"), run(module, x, dout, "reference")
        yield actual, baseline, run(module.double(), x.double(), dout.double(), "reference")


@pytest.mark.parametrize(
    ("stage", "dtype"),
    [*product(STAGES, [torch.bfloat16]), (3, torch.float16), (3, torch.float32)],
    ids=str,
)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_real_stages(stage, training, dtype):
    check_results(list(draws((4, *STAGES[stage]), dtype, training, 3)))


@pytest.mark.parametrize("stage", STAGES)
def test_evaluation_without_gradients(stage):
    """What Hopper does in one launch."""
    x = make_map((4, *STAGES[stage]), dtype=torch.bfloat16).cuda()
    module = move_off_relu_kinks(make_rga(STAGES[stage][0], STAGES[stage][1:]).cuda(), x)
    outs = []
    with torch.inference_mode():
        for impl, dtype in [
            ("cuda", torch.bfloat16),
            ("reference", torch.bfloat16),
            ("reference", torch.float64),
        ]:
            tried = copy.deepcopy(module).to(dtype).eval()
            tried.impl = impl
            outs.append({"out": tried(x.to(dtype))})
    check_results([tuple(outs)])


@pytest.mark.skipif(
    cuda.BACKEND.available() and torch.cuda.get_device_capability()[0] != 9, reason="needs Hopper"
)
@pytest.mark.parametrize(
    ("variant", "stage"), [("s", 3), ("c", 3), ("cs", 3), *product(["sc"], STAGES)]
)
def test_evaluation_is_one_launch(variant, stage):
    """With parameters in float32, as under autocast: others torch converts first."""
    x = make_map((4, *STAGES[stage]), dtype=torch.bfloat16).cuda()
    module = make_rga(STAGES[stage][0], STAGES[stage][1:], variant, impl="cuda").cuda().eval()
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        module(x)
        with torch.profiler.profile() as profile:
            module(x)
            torch.cuda.synchronize()
    on_gpu = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    kernels = [name for name in on_gpu if "kernel" in name]
    assert ["branches_kernel" in name for name in kernels] == [True], kernels


def test_results_are_deterministic():
    module, x, dout = make_rga(SMALL[1], SMALL[2:]).cuda(), make_map(SMALL), make_map(SMALL, seed=1)
    first, second = (run(module, x.cuda(), dout.cuda(), "cuda") for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_another_stream():
    """Work waits for what its stream has queued before, here the map itself."""
    module = make_rga(SMALL[1], SMALL[2:], impl="cuda").cuda()
    x = make_map(SMALL).cuda()
    expected = module(x)
    stream = torch.cuda.Stream()
    late = torch.zeros_like(x)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        late.copy_(x)
        out = module(late)
    torch.cuda.synchronize()
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_cuda_graph(training):
    module = make_rga(SMALL[1], SMALL[2:], impl="cuda").cuda().train(training)
    x, dout = (make_map(SMALL, seed=seed).cuda() for seed in (1, 2))
    x.requires_grad_(training)

    def step():
        with torch.set_grad_enabled(training):
            out = module(x)
        if not training:
            return (out,)
        return (out, *torch.autograd.grad(out, [x, *module.parameters()], dout))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = step()
    with torch.no_grad():
        x.copy_(make_map(SMALL, seed=3))
    graph.replay()
    for actual, expected in zip(recorded, step(), strict=True):
        torch.testing.assert_close(actual, expected)


def test_another_device():
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    module, x = make_rga(SMALL[1], SMALL[2:]), make_map(SMALL)
    expected = run(module.cuda(), x.cuda(), x.cuda(), "cuda")
    actual = run(module.to("cuda:1"), x.to("cuda:1"), x.to("cuda:1"), "cuda")
    assert torch.cuda.current_device() == 0
    for name, value in expected.items():
        torch.testing.assert_close(actual[name].to(value.device), value)


def test_empty_batch():
    x = torch.zeros(0, *SMALL[1:], device="cuda")
    results = run(make_rga(SMALL[1], SMALL[2:]).cuda(), x, x, "cuda")
    assert results["out"].shape == x.shape
    assert not results["dtheta_spatial.0.weight"].any()


def test_auto_says_why():
    assert rga_fast.choose("auto", make_map(SMALL).cuda()).impl == "cuda"
