"""The command `rga-fast`, outside the package: so Ctrl-C prints a line while torch is imported."""

import os
import signal


def _interrupted(*_: object) -> None:
    os.write(2, b"rga-fast: interrupted\n")
    os._exit(130)  # an exception here would surface as one of a half-imported library


def main() -> int:
    """`rga_fast.cli.main`."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        from rga_fast.cli import main as run

        return run()
    signal.signal(signal.SIGINT, _interrupted)
    try:
        from rga_fast.cli import main as run
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return run()
