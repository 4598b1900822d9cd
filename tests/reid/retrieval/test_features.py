"""Features of images."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from rga_fast.reid.data.datasets import open_dataset
from rga_fast.reid.retrieval.features import extract_features, open_eval_data


class Output(NamedTuple):
    before_neck: Tensor
    after_neck: Tensor


class LeftHalf(nn.Module):
    feature_dim = 3

    def forward(self, x: Tensor) -> Output:
        left = x[..., : x.shape[-1] // 2].mean(dim=(2, 3))
        return Output(left, -left)


def test_flip_averages_image_and_mirror_image(market):
    images = open_eval_data(open_dataset(market), (32, 16), cache="memory").query
    whole = extract_features(LeftHalf(), images, batch_size=5, flip=True)

    class Everything(LeftHalf):
        def forward(self, x: Tensor) -> Output:
            mean = x.mean(dim=(2, 3))
            return Output(mean, -mean)

    expected = extract_features(Everything(), images, batch_size=5)
    left = extract_features(LeftHalf(), images, batch_size=5)
    for got, want, half in zip(whole, expected, left, strict=True):
        torch.testing.assert_close(got, want)
        assert not torch.allclose(half, want)
