"""The command line: thin, one function per verb."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import rga_fast
from rga_fast import dispatch


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a verb. Returns 0; 1 after an error that is reported in a line, 130 after an interrupt.
    `data` also returns 1 if something is wrong with the data."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = _parser(arguments)
    options, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(options, "fields") or any(text.startswith("-") for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # argparse takes field=value in one place only, people write it between the options
        options.fields += rest
    try:
        return options.run(options) or 0
    except KeyboardInterrupt:
        print("rga-fast: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError, ArithmeticError, ImportError) as error:
        rank = f"rank {os.environ['RANK']}: " if "RANK" in os.environ else ""
        print(f"rga-fast: {rank}error: {_message(error)}", file=sys.stderr)
        return 1


def train(options: argparse.Namespace) -> None:
    from rga_fast.reid.checkpoint import load_checkpoint
    from rga_fast.reid.config import load_recipe, parse_assignments
    from rga_fast.reid.training.run import Terminated, train

    resume = _resume_path(options)
    if resume is not None:
        config, out = load_checkpoint(resume).config, options.out or resume.parent.parent
    else:
        recipe = options.recipe or ("small" if options.data is None else "paper")
        config = load_recipe(recipe)
        out = options.out or Path("runs") / time.strftime(f"%Y%m%d-%H%M%S-{Path(recipe).stem}")
    given = {name: getattr(options, name) for name in options.names}
    given = {name: value for name, value in given.items() if value is not None}
    config = config.replace(**parse_assignments(options.fields) | given)
    if options.dry_run:
        from rga_fast.reid.training.dry_run import describe_run

        describe_run(config)
        return
    try:
        train(config, out, resume, restart=options.resume == "auto")
    except Terminated as stopped:
        print(f"rga-fast: {stopped}", file=sys.stderr)
        raise SystemExit(128 + signal.SIGTERM) from None


def evaluate(options: argparse.Namespace) -> None:
    import json

    from rga_fast.reid.checkpoint import open_trained
    from rga_fast.reid.console import console, progress
    from rga_fast.reid.data.images import cache_note
    from rga_fast.reid.data.source import open_source
    from rga_fast.reid.files import write_file
    from rga_fast.reid.retrieval import features
    from rga_fast.reid.retrieval.rerank import Reranking
    from rga_fast.reid.retrieval.tables import metrics_table, skipped_note

    rerank = None if options.rerank is None else Reranking.parse(options.rerank)
    network, config, epoch = open_trained(options.checkpoint, impl=options.impl)
    paths = config.data if options.data is None else options.data
    data = open_source(paths, boxes=config.boxes, train_on_val=config.train_on_val)
    if config.cache == "memory":
        console.print(cache_note(config.cache, (data.query, data.gallery), config.size))
    with progress("decoding images") as bar:
        images = features.open_eval_data(
            data, config.size, cache=config.cache, folder=config.cache_folder, progress=bar
        )
    query, gallery = features.extract_query_gallery(
        network,
        images,
        batch_size=config.eval_batch,
        device=next(network.parameters()).device,
        workers=config.readers,
        flip=options.flip,
    )
    scores = features.score(data, query, gallery)
    moments = {f"epoch {epoch}": scores}
    if rerank is not None:
        moments["re-ranked"] = features.score(data, query, gallery, rerank)
    console.print(metrics_table(f"{data.name}, {skipped_note(scores)}", moments))
    if options.json is not None:
        rows: dict[str, Any] = {name: metrics._asdict() for name, metrics in scores.items()}
        if rerank is not None:
            again = moments["re-ranked"].items()
            rows["reranked"] = {name: metrics._asdict() for name, metrics in again}
        write_file(options.json, json.dumps(rows, indent=2) + "\n")
    if options.features is not None:
        features.save_features(options.features, data, query, gallery)


def data(options: argparse.Namespace) -> int:
    from rga_fast.reid.console import console, progress
    from rga_fast.reid.data.check import check_dataset
    from rga_fast.reid.data.datasets import join_training
    from rga_fast.reid.data.tables import dataset_table

    datasets, wrong = [], False
    for path in options.paths:
        with progress(f"decoding {path}") as bar:
            dataset, right = check_dataset(
                path,
                boxes=options.boxes,
                train_on_val=not options.without_val,
                decode=options.decode,
                progress=bar,
            )
        datasets.append(dataset)
        wrong |= not right
    if len(datasets) > 1:
        console.print(dataset_table(join_training(datasets)))
    return int(wrong)


def synth(options: argparse.Namespace) -> None:
    from rga_fast.reid.console import console, progress
    from rga_fast.reid.data.datasets import open_dataset
    from rga_fast.reid.data.tables import dataset_table
    from rga_fast.reid.synth import contact_sheet, write_dataset

    with progress("drawing") as bar:
        write_dataset(options.out, options.identities, seed=options.seed, progress=bar)
    sheet = options.out / "contact_sheet.jpg"
    contact_sheet(options.out).save(sheet, quality=90)
    console.print(dataset_table(open_dataset(options.out)))
    console.print(f"some of these people: {sheet}")


def info(options: argparse.Namespace) -> None:
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


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rga-fast",
        description="Person re-identification with relation-aware global attention.",
    )
    parser.add_argument("--version", action="version", version=f"rga_fast {rga_fast.__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    # Options that come from the configuration import the image libraries: not for other verbs.
    chosen = next((text for text in arguments if not text.startswith("-")), None)
    for name, (run, text, add_options) in VERBS.items():
        verb = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        verb.set_defaults(run=run)
        if add_options is not None and name == chosen:
            add_options(verb)
    return parser


def _train_options(verb: argparse.ArgumentParser) -> None:
    from rga_fast.reid.config import Config
    from rga_fast.reid.field import fields_of

    verb.add_argument("--out", type=Path, metavar="DIR", help="folder of the run, runs/... if none")
    verb.add_argument(
        "--recipe",
        metavar="NAME",
        help="paper, fast, small or a FILE.yaml with some of the fields; small without --data, "
        "else paper",
    )
    implementation = verb.add_mutually_exclusive_group()
    implementation.add_argument(
        "--fused",
        dest="impl",
        action="store_const",
        const="auto",
        help="the fastest implementation; without it the reference runs",
    )
    fields = {name: field for name, field in fields_of(Config).items() if field.option}
    for name, field in fields.items():
        field.add_option(implementation if name == "impl" else verb)
    verb.add_argument(
        "--dry-run", action="store_true", help="print what would run and what it needs, and end"
    )
    verb.add_argument(
        "--resume",
        metavar="PATH",
        help="a checkpoint, or auto: the newest in --out, if there is one",
    )
    verb.add_argument(
        "fields", nargs="*", metavar="field=value", help="see below; overrides a recipe"
    )
    verb.set_defaults(names=tuple(fields))
    verb.formatter_class = argparse.RawDescriptionHelpFormatter
    lines = [f"  {field.name:<20} {field.describe()}" for field in fields_of(Config).values()]
    verb.epilog = "\n".join(["fields:", *lines, "", "--dry-run prints the value of each."])


def _evaluate_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    verb.add_argument("--data", metavar="PATH", help="a data set; without it: that of the training")
    verb.add_argument(
        "--flip", action="store_true", help="average the features of image and mirror image"
    )
    verb.add_argument(
        "--rerank",
        action="store_const",
        const="20,6,0.3",
        help="also after k-reciprocal re-ranking with k1 20, k2 6 and lambda 0.3",
    )
    verb.add_argument(
        "--rerank-with", dest="rerank", metavar="K1,K2,LAMBDA", help="the same with other numbers"
    )
    verb.add_argument("--json", type=Path, metavar="FILE", help="write the scores to a file")
    verb.add_argument(
        "--features",
        type=Path,
        metavar="FILE",
        help="write features and labels to a file (.safetensors)",
    )
    verb.add_argument("--impl", choices=dispatch.ARGUMENTS, default="auto")


def _data_options(verb: argparse.ArgumentParser) -> None:
    from rga_fast.reid.data.datasets.cuhk03 import BOXES

    verb.epilog = (
        "The status is 1 if the data cannot be used or compared: it cannot be read, a count is "
        "not the published one, no query is valid, an image is damaged (--decode). Remarks leave "
        "it 0."
    )
    verb.add_argument("paths", nargs="+", metavar="PATH", help="several are also shown joined")
    verb.add_argument("--boxes", choices=BOXES, help="of CUHK03")
    verb.add_argument(
        "--without-val",
        action="store_true",
        help="do not train on MSMT17's validation images; by default they are training images",
    )
    verb.add_argument("--decode", action="store_true", help="open every image, too")


def _synth_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("out", type=Path, metavar="OUT")
    verb.add_argument("--identities", type=int, default=240, metavar="N")
    verb.add_argument("--seed", type=int, default=0, metavar="S")


Run = Callable[[argparse.Namespace], int | None]
AddOptions = Callable[[argparse.ArgumentParser], None]

VERBS: dict[str, tuple[Run, str, AddOptions | None]] = {
    "train": (train, "train a network and evaluate it before and after", _train_options),
    "evaluate": (evaluate, "rank-k, mAP and mINP of a checkpoint", _evaluate_options),
    "data": (data, "recognise a data set, count it, and report what is wrong", _data_options),
    "synth": (synth, "write a synthetic data set in the Market-1501 layout", _synth_options),
    "info": (info, "build, devices, and which implementation would run, and why", None),
}


def _resume_path(options: argparse.Namespace) -> Path | None:
    if options.resume != "auto":
        return None if options.resume is None else Path(options.resume)
    if options.out is None:
        raise ValueError("--resume auto continues the run in --out DIR, and no --out was given")
    from rga_fast.reid.checkpoint import latest_checkpoint

    return latest_checkpoint(options.out / "checkpoints")


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)
