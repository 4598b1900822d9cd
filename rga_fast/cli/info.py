"""`rga-fast info`: what is installed, and what would run on it."""

from __future__ import annotations

import argparse

import rga_fast
from rga_fast import dispatch

HELP = "build, devices, and which implementation would run, and why"


def add_options(verb: argparse.ArgumentParser) -> None:
    """None."""


def run(options: argparse.Namespace) -> None:
    import torch

    from rga_fast.reid.network import attention

    print(f"rga_fast {rga_fast.__version__}, torch {torch.__version__}")
    print(f"threads: {torch.get_num_threads()}")
    devices = [torch.device("cpu")]
    for index in range(torch.cuda.device_count()):
        devices.append(torch.device("cuda", index))
        print(f"cuda:{index}: {torch.cuda.get_device_name(index)}")
    print("implementations:")
    for name, available, note in dispatch.implementations():
        print(f"  {name:<10} {'yes' if available else 'no':<4} {note}")
    print('what impl="auto" takes:')
    for device in devices:
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.empty(1, 256, 64, 32, device=device, dtype=dtype)
            impl, reason = dispatch.choose("auto", x)
            print(f"  {device!s:<8} {str(dtype).removeprefix('torch.'):<9} {impl} ({reason})")
    print('attention of the re-id network (train --attention NAME; "none" is the baseline):')
    for family, names in attention.listed():
        print(f"  {family:<10} {names}")
