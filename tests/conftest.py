import os

import torch

if not torch.cuda.is_available():  # before anything imports the kernels
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_configure() -> None:
    """Maps this small gain nothing from threads, and lose much where tests run side by side."""
    torch.set_num_threads(1)
