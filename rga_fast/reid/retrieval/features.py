"""Features of a data set's query and gallery images, and how well they retrieve."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from rga_fast.reid.console import progress
from rga_fast.reid.data.datasets import ReidData, Split
from rga_fast.reid.data.given import GivenImages
from rga_fast.reid.data.images import Images, open_images
from rga_fast.reid.data.loader import EvalBatches
from rga_fast.reid.distributed import Ranks
from rga_fast.reid.files import write_file
from rga_fast.reid.network.reidnet import ReidNet
from rga_fast.reid.retrieval.distances import FeatureDistances
from rga_fast.reid.retrieval.metrics import RankMetrics, query_scores, summary
from rga_fast.reid.retrieval.ranking import Labels, Ranking, Rule, make_labels, rank_hits
from rga_fast.reid.retrieval.rerank import RerankedDistances, Reranking

FEATURES = ("before_neck", "after_neck")


class Features(NamedTuple):
    """(N, D) float32: both features of N images; of a split they are on the CPU."""

    before_neck: Tensor
    after_neck: Tensor


class EvalData(NamedTuple):
    """A data set with its query and gallery images at the network's size."""

    data: ReidData
    query: Images
    gallery: Images


def open_eval_data(data: ReidData, size: tuple[int, int], **options: Any) -> EvalData:
    """Query and gallery of `data`; the options are those of `open_images`."""
    query, gallery = (open_images(split, size, **options) for split in (data.query, data.gallery))
    return EvalData(data, query, gallery)


@torch.inference_mode()
def extract_features(
    model: ReidNet,
    images: Images | GivenImages,
    *,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    workers: int = 0,
    ranks: Ranks | None = None,
    flip: bool = False,
    advance: Callable[[int], None] | None = None,
) -> Features:
    """Features of all images, in their order, in evaluation mode; the model's mode is restored.

    With `flip`, they are the mean of the features of each image and of its mirror image.
    `advance` is called with the number of images after each batch. With several `ranks`, each
    takes a share of the batches, and all of them get all features.
    """
    ranks = ranks or Ranks()
    training = model.training
    model.eval()
    features = Features(*torch.zeros(2, len(images), model.feature_dim))
    try:
        for batch, indices in EvalBatches(
            images, batch_size, device=device, workers=workers, share=ranks
        ):
            for extracted, whole in zip(batch_features(model, batch, flip), features, strict=True):
                whole[indices] = extracted.cpu()
            if advance is not None:
                advance(len(batch) * ranks.world)
    finally:
        model.train(training)
    return Features(*map(ranks.sum, features))


def batch_features(model: ReidNet, batch: Tensor, flip: bool = False) -> Features:
    """Both features of a batch (B, 3, H, W), float32 on its device; with `flip` the means of those
    of the images and of their mirror images."""
    outputs = [model(batch), model(batch.flip(3))] if flip else [model(batch)]
    means = []
    for name in FEATURES:
        views = [getattr(output, name).float() for output in outputs]
        means.append(sum(views[1:], start=views[0]) / len(views))
    return Features(*means)


def extract_query_gallery(
    model: ReidNet, images: EvalData, **options: Any
) -> tuple[Features, Features]:
    """Features of query and gallery, with one progress bar; options as `extract_features`."""
    done = 0
    with progress("evaluating", len(images.query) + len(images.gallery)) as bar:

        def advance(count: int) -> None:
            nonlocal done
            done += count
            bar(done)

        query, gallery = (
            extract_features(model, part, **options, advance=advance)
            for part in (images.query, images.gallery)
        )
    return query, gallery


class Ranked(NamedTuple):
    """The cosine distances of a feature, the labels, and the ranking that follows from them."""

    distances: FeatureDistances
    labels: Labels
    ranking: Ranking


def rank_feature(
    data: ReidData,
    query: Tensor,
    gallery: Tensor,
    rerank: Reranking | None = None,
    rule: Rule = Rule(),  # noqa: B008 (immutable)
) -> Ranked:
    """Ranks the gallery of `data` for its queries by one feature (N, D), re-ranked if asked for."""
    features = FeatureDistances(query, gallery, caller="score")
    labels = make_labels(
        data.query.identities,
        data.gallery.identities,
        data.query.cameras,
        data.gallery.cameras,
        features,
    )
    distances = features if rerank is None else RerankedDistances(features, *rerank)
    return Ranked(features, labels, rank_hits(distances, labels, rule))


def score(
    data: ReidData,
    query: Features,
    gallery: Features,
    rerank: Reranking | None = None,
    rule: Rule = Rule(),  # noqa: B008 (immutable)
) -> dict[str, RankMetrics]:
    """The metrics of both features: cosine distance, re-ranked if asked for, by default the rules
    of Market-1501."""
    return {
        name: summary(query_scores(rank_feature(data, own, others, rerank, rule).ranking))
        for name, own, others in zip(FEATURES, query, gallery, strict=True)
    }


def save_features(
    path: str | os.PathLike[str], data: ReidData, query: Features, gallery: Features
) -> None:
    """Writes features and labels of query and gallery to a .safetensors file.

    Tensors `{query,gallery}_{before_neck,after_neck}` (N, D), `_identities` and `_cameras` (N,);
    the metadata `query_paths` and `gallery_paths` are JSON lists, relative to the data set.
    """
    tensors: dict[str, Tensor] = {}
    paths = {}
    split: Split
    for name, split, features in (
        ("query", data.query, query),
        ("gallery", data.gallery, gallery),
    ):
        tensors |= {f"{name}_{feature}": getattr(features, feature) for feature in FEATURES}
        for label in ("identities", "cameras"):
            tensors[f"{name}_{label}"] = torch.from_numpy(np.array(getattr(split, label)))
        paths[f"{name}_paths"] = json.dumps(split.paths)
    write_file(path, lambda partial: save_file(tensors, partial, metadata=paths))
