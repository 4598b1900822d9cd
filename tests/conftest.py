import os
import signal

import pytest
import torch

if not torch.cuda.is_available():  # before anything imports the kernels
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config) -> None:
    """The whole suite runs on all cores unless `-n` says otherwise; files and folders that are
    named run in this process, where a debugger and prints work."""
    option = config.option
    worker = "PYTEST_XDIST_WORKER" in os.environ  # which must not start workers of its own
    if worker or not config.pluginmanager.hasplugin("xdist"):
        return
    if option.numprocesses is None and config.args_source is config.ArgsSource.TESTPATHS:
        option.numprocesses = "auto"
    if option.numprocesses and option.dist == "no":
        option.dist = "worksteal"  # neighbours share fixtures


def pytest_collection_modifyitems(config, items) -> None:
    """Workers begin with what takes long and share the rest, so that they end together."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_configure() -> None:
    """Maps this small gain nothing from threads, and lose much where tests run side by side: here
    and in the processes that tests start."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts background jobs
        signal.signal(signal.SIGINT, signal.default_int_handler)


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
