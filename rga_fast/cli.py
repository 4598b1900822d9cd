"""The command line: thin, one function per verb."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import rga_fast
from rga_fast import dispatch


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a verb; 0, or 1 after an error that was told in a line, 130 after an interrupt. `data`
    also returns 1 for data in which something is wrong."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(options, "fields") or any(text.startswith("-") for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # argparse takes them in one place only, people write them between the options
        options.fields += rest
    try:
        return options.run(options) or 0
    except KeyboardInterrupt:
        print("rga-fast: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError, ArithmeticError, ImportError) as error:
        rank = f"rank {os.environ['RANK']}: " if "RANK" in os.environ else ""
        print(f"rga-fast: {rank}error: {_told(error)}", file=sys.stderr)
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
    fields = parse_assignments(options.fields)
    for name in _FIELD_OPTIONS:
        if getattr(options, name) is not None:
            fields[name] = getattr(options, name)
    if options.stages is not None:
        fields |= parse_assignments([f"stages={options.stages}"])
    config = config.replace(**fields)
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

    from rga_fast.reid import console
    from rga_fast.reid.checkpoint import load_checkpoint, load_weights, make_network
    from rga_fast.reid.distributed import pick_device
    from rga_fast.reid.prepare import cache_note, open_training_data
    from rga_fast.reid.retrieval.features import (
        extract_features,
        open_eval_data,
        save_features,
        score,
    )

    saved = load_checkpoint(options.checkpoint)
    config = saved.config.replace(impl=options.impl)
    if options.data is not None:
        config = config.replace(data=options.data)
    data = open_training_data(config)
    model = make_network(config, saved.num_classes)
    load_weights(model, saved.weights, str(options.checkpoint))
    device = pick_device(config.device)
    model.to(device)
    if config.cache == "memory":
        console.console.print(cache_note(config, (data.query, data.gallery)))
    with console.progress("decoding images") as bar:
        images = open_eval_data(
            data, config.size, cache=config.cache, folder=config.cache_folder, progress=bar
        )
    query, gallery = (
        extract_features(
            model, split, batch_size=config.eval_batch, device=device, workers=config.readers
        )
        for split in (images.query, images.gallery)
    )
    scores = score(data, query, gallery)
    title = f"{data.name}, {console.skipped_note(scores)}"
    console.console.print(console.metrics_table(title, {f"epoch {saved.epoch}": scores}))
    if options.json is not None:
        rows = {name: metrics._asdict() for name, metrics in scores.items()}
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    if options.features is not None:
        save_features(options.features, data, query, gallery)


def data(options: argparse.Namespace) -> int:
    from rga_fast.reid.console import console, dataset_table, progress
    from rga_fast.reid.data.check import check_dataset
    from rga_fast.reid.data.datasets import join_training

    datasets, wrong = [], False
    for path in options.paths:
        with progress(f"decoding {path}") as bar:
            dataset, right = check_dataset(
                path,
                boxes=options.boxes,
                val_trains=not options.without_val,
                decode=options.decode,
                progress=bar,
            )
        datasets.append(dataset)
        wrong |= not right
    if len(datasets) > 1:
        console.print(dataset_table(join_training(datasets)))
    return int(wrong)


def synth(options: argparse.Namespace) -> None:
    from rga_fast.reid.console import console, dataset_table, progress
    from rga_fast.reid.data.datasets import open_dataset
    from rga_fast.reid.synth import contact_sheet, write_dataset

    with progress("drawing") as bar:
        write_dataset(options.out, options.identities, seed=options.seed, progress=bar)
    sheet = options.out / "contact_sheet.jpg"
    contact_sheet(options.out).save(sheet, quality=90)
    console.print(dataset_table(open_dataset(options.out)))
    console.print(f"some of these people: {sheet}")


def info(options: argparse.Namespace) -> None:
    import torch

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


# Options of `train` that are fields of the configuration.
_FIELD_OPTIONS = (
    *("data", "epochs", "seed", "pretrained", "impl", "amp", "channels_last", "compile"),
    *("cuda_graph", "sync_bn", "accumulate", "clip_norm", "ema", "freeze_epochs"),
    *("tensorboard", "profile"),
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rga-fast",
        description="Person re-identification with relation-aware global attention.",
    )
    parser.add_argument("--version", action="version", version=f"rga_fast {rga_fast.__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    verb = _verb(verbs, "train", train, "train a network and evaluate it before and after")
    verb.add_argument(
        "--data",
        metavar="PATH",
        action="append",
        help="a data set; several train together, the first is evaluated; none: a synthetic one",
    )
    verb.add_argument("--out", type=Path, metavar="DIR", help="folder of the run, runs/... if none")
    verb.add_argument(
        "--recipe",
        metavar="NAME",
        help="paper, fast, small or a FILE.yaml with some of the fields; small without --data, "
        "else paper",
    )
    verb.add_argument("--epochs", type=int, metavar="N")
    verb.add_argument("--seed", type=int, metavar="S")
    verb.add_argument("--stages", metavar="1,2,3,4", help="attention follows these stages")
    verb.add_argument("--pretrained", metavar="FILE", help="ImageNet weights of the backbone")
    verb.add_argument("--amp", choices=("off", "bf16", "fp16"), help="mixed precision")
    for flag, text in (
        ("channels-last", "maps in channels-last layout"),
        ("compile", "torch.compile the network"),
        ("cuda-graph", "and replay its steps from CUDA graphs"),
        ("sync-bn", "batch statistics of all ranks"),
        ("tensorboard", "scalars, a batch and embeddings for TensorBoard"),
        ("profile", "record a few steps, name the slowest operators"),
    ):
        verb.add_argument(f"--{flag}", action="store_true", default=None, help=text)
    verb.add_argument("--accumulate", type=int, metavar="N", help="cut a batch into N slices")
    verb.add_argument("--clip-norm", type=float, metavar="X", help="clip the gradient's norm")
    verb.add_argument(
        "--ema", type=float, metavar="DECAY", help="average the weights and evaluate the average"
    )
    verb.add_argument(
        "--freeze-epochs", type=int, metavar="N", help="first train the new layers alone"
    )
    verb.add_argument(
        "--dry-run", action="store_true", help="tell what would run and what it needs, and end"
    )
    implementation = verb.add_mutually_exclusive_group()
    implementation.add_argument(
        "--fused",
        dest="impl",
        action="store_const",
        const="auto",
        help="the fastest implementation; without it the reference runs",
    )
    implementation.add_argument("--impl", choices=dispatch.ARGUMENTS)
    verb.add_argument(
        "--resume",
        metavar="PATH",
        help="a checkpoint, or auto: the newest in --out, if there is one",
    )
    verb.add_argument("fields", nargs="*", metavar="field=value", help="of the configuration")

    verb = _verb(verbs, "evaluate", evaluate, "rank-k, mAP and mINP of a checkpoint")
    verb.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    verb.add_argument("--data", metavar="PATH", help="a data set; without it: that of the training")
    verb.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here")
    verb.add_argument(
        "--features", type=Path, metavar="FILE", help="write what was ranked (.safetensors)"
    )
    verb.add_argument("--impl", choices=dispatch.ARGUMENTS, default="auto")

    verb = _verb(verbs, "data", data, "recognise a data set, count it, and tell what is wrong")
    verb.epilog = (
        "The status is 1 where the data cannot be used or compared: it cannot be read, a count is "
        "not the published one, no query is valid, an image is damaged (--decode). Remarks leave "
        "it 0."
    )
    verb.add_argument("paths", nargs="+", metavar="PATH", help="several are also shown joined")
    verb.add_argument("--boxes", choices=("labeled", "detected"), help="of CUHK03")
    verb.add_argument(
        "--without-val",
        action="store_true",
        help="MSMT17's validation images do not train; by default they do",
    )
    verb.add_argument("--decode", action="store_true", help="open every image, too")

    verb = _verb(verbs, "synth", synth, "write a synthetic data set in the Market-1501 layout")
    verb.add_argument("out", type=Path, metavar="OUT")
    verb.add_argument("--identities", type=int, default=240, metavar="N")
    verb.add_argument("--seed", type=int, default=0, metavar="S")

    _verb(verbs, "info", info, "build, devices, and which implementation would run, and why")
    return parser


def _verb(verbs, name: str, run, text: str) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(run=run)
    return parser


def _resume_path(options: argparse.Namespace) -> Path | None:
    if options.resume != "auto":
        return None if options.resume is None else Path(options.resume)
    if options.out is None:
        raise ValueError("--resume auto continues the run in --out DIR, and no --out was given")
    from rga_fast.reid.checkpoint import latest_checkpoint

    return latest_checkpoint(options.out / "checkpoints")


def _told(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)
