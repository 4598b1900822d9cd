import os

import pytest
import torch

if not torch.cuda.is_available():  # before anything imports the kernels
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_configure() -> None:
    """Maps this small gain nothing from threads, and lose much where tests run side by side."""
    torch.set_num_threads(1)


@pytest.fixture
def _test_impls(monkeypatch):
    """impl="cuda_host", the CUDA kernels on the CPU, and "plain", the oracle of the operators, as
    any other implementation."""
    import operators

    from rga_fast import dispatch
    from rga_fast.fused import cpp

    for name in ("cuda_host", "plain"):

        def missing(name=name):
            operators.namespace(name)  # registers the operators

        backend = cpp.BACKEND._replace(
            name=name,
            missing=missing,
            import_error=lambda: None,
            passed_over="it is for tests",
        )
        monkeypatch.setitem(dispatch.FUSED, name, backend)
    monkeypatch.setattr(dispatch, "ARGUMENTS", (*dispatch.ARGUMENTS, "cuda_host", "plain"))


@pytest.fixture
def _poisoned():
    """`torch.empty` returns NaN, in the extension, too."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
