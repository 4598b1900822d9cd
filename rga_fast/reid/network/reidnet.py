"""The network: a ResNet with attention after its stages, and a neck of batch normalisation."""

from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from rga_fast.reid.network.attention import NONE, make_attention
from rga_fast.reid.network.resnet import Backbone
from rga_fast.reid.network.timm_backbone import PREFIX, TimmBackbone


class ReidOutput(NamedTuple):
    """(B, D), (B, D), (B, num_classes). Both features can be used for retrieval; the triplet loss
    takes the one before the neck, the classifier the one after it."""

    before_neck: Tensor
    after_neck: Tensor
    logits: Tensor


class ReidNet(nn.Module):
    """ResNet, attention, global average pooling, `BatchNorm1d` with a frozen bias, classifier.

    (B, 3, H, W) -> `ReidOutput`. The `state_dict` has the keys of the published RGA network, with
    torchvision's names in `backbone`, so that ImageNet weights load (`load_pretrained`).

    Args:
        arch: one of `resnet.ARCHITECTURES`, or timm:NAME for a network of timm; `width` and
            `last_stride` are of the former only.
        num_classes: identities of the training set.
        size: (H, W) of the images, in pixels.
        stages: the stages, of 1 to 4, that attention follows.
        attention: its name, see `make_attention`; "none" for the baseline.
        width: channels of the stem; 64 in the published ResNets.
        last_stride: stride of stage 4: 1 for re-identification, 2 in the original ResNet.
        options: of the attention, such as `impl` and `spatial_ratio` of `RGA`.

    Raises:
        ValueError: for an option that does not exist or an input of another shape.
    """

    def __init__(
        self,
        arch: str = "resnet50",
        num_classes: int = 751,
        size: tuple[int, int] = (256, 128),
        stages: tuple[int, ...] = (1, 2, 3, 4),
        attention: str = "rga-sc",
        width: int = 64,
        last_stride: int = 1,
        **options: Any,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"ReidNet: num_classes must be at least 1, got {num_classes}")
        self.arch, self.width, self.attention_name = arch, width, attention
        self.size = (size[0], size[1])
        places = () if attention == NONE else stages
        make = partial(make_attention, attention, **options)
        self.backbone: Backbone | TimmBackbone
        if arch.startswith(PREFIX):
            self.backbone = TimmBackbone(arch.removeprefix(PREFIX), self.size, places, make)
        else:
            self.backbone = Backbone(arch, self.size, places, width, last_stride, make)
        self.feature_dim = self.backbone.channels
        self.feat_bn = nn.BatchNorm1d(self.feature_dim)
        self.feat_bn.bias.requires_grad_(False)
        self.cls = nn.Linear(self.feature_dim, num_classes, bias=False)
        nn.init.normal_(self.cls.weight, std=0.001)

    @property
    def attention(self) -> dict[int, nn.Module]:
        """The attention after each stage that has one, by the stage's number, 1 to 4."""
        return self.backbone.attention

    def forward(self, images: Tensor) -> ReidOutput:
        if images.ndim != 4 or images.shape[1:] != (3, *self.size):
            raise ValueError(
                f"ReidNet: images must be (B, 3, {self.size[0]}, {self.size[1]}), "
                f"got {tuple(images.shape)}"
            )
        before = self.backbone(images).mean(dim=(2, 3))
        after = self.feat_bn(before)
        return ReidOutput(before, after, self.cls(after))
