"""`rga-fast serve`: a web page that searches an index."""

from __future__ import annotations

import argparse
from pathlib import Path

from rga_fast import dispatch

HELP = "search an index on a web page, by default for this machine alone"


def add_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("index", type=Path, metavar="INDEX")
    verb.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="to listen on; any but the default lets others on the network see the gallery",
    )
    verb.add_argument("--port", type=int, default=8000, metavar="N")
    verb.add_argument("--impl", choices=dispatch.ARGUMENTS, default="auto")


def run(options: argparse.Namespace) -> None:
    from rga_fast.reid.console import console
    from rga_fast.reid.serve.app import LOOPBACK, make_app
    from rga_fast.reid.serve.searcher import Searcher

    local = options.host in (*LOOPBACK, "::1")
    app = make_app(Searcher(options.index, impl=options.impl), hosts=LOOPBACK if local else ["*"])
    import uvicorn

    if not local:
        console.print("everybody who reaches this address can see the gallery and search it")
    console.print(f"http://{options.host}:{options.port}, Ctrl-C ends it")
    uvicorn.run(app, host=options.host, port=options.port, log_level="warning")
