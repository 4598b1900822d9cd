"""What options and fields are called elsewhere, and what these are called here."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

# Other programs' words, without dashes. The first of the names that a verb has is the one meant.
WORDS = {
    "lr": ("learning_rate=",),
    "base_lr": ("learning_rate=",),
    "wd": ("weight_decay=",),
    "batch_size": ("identities_per_batch= and images_per_identity=", "eval_batch="),
    "batch": ("identities_per_batch= and images_per_identity=", "eval_batch="),
    "bs": ("identities_per_batch= and images_per_identity=", "eval_batch="),
    "test_batch": ("eval_batch=",),
    "num_instances": ("images_per_identity=",),
    "num_workers": ("workers=",),
    "j": ("workers=",),
    "gpu": ("--device", "device="),
    "gpus": ("--device", "device="),
    "gpu_devices": ("--device", "device="),
    "cuda": ("--device", "device="),
    "cpu": ("--device", "device="),
    "device": ("--device", "device="),
    "fuse": ("--fused", "--impl"),
    "fast": ("--fused", "--impl"),
    "model": ("arch=",),
    "backbone": ("arch=",),
    "network": ("arch=",),
    "weights": ("--pretrained",),
    "checkpoint": ("--resume",),
    "output": ("--out", "--json"),
    "output_dir": ("--out",),
    "save_dir": ("--out",),
    "logs_dir": ("--out",),
    "root": ("--data",),
    "dataset": ("--data",),
    "data_dir": ("--data",),
    "dataroot": ("--data",),
    "max_epoch": ("--epochs",),
    "config": ("--recipe",),
    "config_file": ("--recipe",),
    "fp16": ("--amp",),
    "bf16": ("--amp",),
    "re_ranking": ("--rerank",),
    "reranking": ("--rerank",),
}


def meant(word: str, options: Sequence[str] = (), fields: Sequence[str] = ()) -> str | None:
    """The option (`--fused`) or field (`learning_rate=`) that somebody may mean, or None.

    Args:
        word: as written, with or without dashes.
        options: those there are, such as "--fused". fields: the names of the fields.
    """
    name = word.lstrip("-").replace("-", "_").lower()
    there = {*options, *(f"{field}=" for field in fields)}
    for text in WORDS.get(name, ()):
        if all(part in there for part in text.split(" and ")):
            return text
    names = {option.lstrip("-").replace("-", "_"): option for option in options}
    names |= {field: f"{field}=" for field in fields if field not in names}
    nearest = difflib.get_close_matches(name, names, n=1)
    longer = [known for known in names if known.startswith(name)] if len(name) > 2 else []
    found = nearest or longer[:1]
    return names[found[0]] if found else None


def unknown_option(text: str, options: Sequence[str], fields: Sequence[str] = ()) -> str:
    """The message about an option that a verb does not have."""
    name = text.partition("=")[0]
    found = meant(name, options, fields)
    hint = f"; did you mean {found}?" if found else "; --help lists the options"
    return f"there is no option {name}{hint}"
