import torch


def pytest_configure() -> None:
    """Maps this small gain nothing from threads, and lose much where tests run side by side."""
    torch.set_num_threads(1)
