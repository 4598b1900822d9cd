"""The backbone: a ResNet with a place for attention after each of its stages."""

from collections.abc import Callable

from torch import Tensor, nn


class Backbone(nn.Module):
    """A ResNet (He et al., 2016) without its head.

    (B, 3, *size) -> (B, channels, H', W'). The 3x3 convolution has the stride, as in torchvision.
    Convolutions have Kaiming's normal initialisation.
    `attention` makes the module after each of `stages` from channels and size of the maps there.
    """

    def __init__(
        self,
        arch: str,
        size: tuple[int, int],
        stages: tuple[int, ...],
        width: int,
        last_stride: int,
        attention: Callable[[int, tuple[int, int]], nn.Module],
    ) -> None:
        super().__init__()
        _check_options(arch, size, stages, width, last_stride)
        block, depths = ARCHITECTURES[arch]
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        layers, maps = [], []
        inputs, size = width, _strided(_strided(size, 2), 2)
        for stage, (depth, stride) in enumerate(zip(depths, (1, 2, 2, last_stride), strict=True)):
            inner = width * 2**stage
            blocks = [block(inputs, inner, stride)]
            inputs, size = inner * block.expansion, _strided(size, stride)
            blocks += [block(inputs, inner) for _ in range(depth - 1)]
            layers.append(nn.Sequential(*blocks))
            maps.append((inputs, size))
        self.channels = inputs
        for module in (self.conv1, *layers):
            module.apply(_initialise)

        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.stages = tuple(sorted(stages))
        self.rga_att1, self.rga_att2, self.rga_att3, self.rga_att4 = (
            attention(*maps[stage - 1]) if stage in stages else nn.Identity()
            for stage in (1, 2, 3, 4)
        )

    @property
    def attention(self) -> dict[int, nn.Module]:
        """The attention after each of `stages`, whichever it is: the names in the `state_dict` are
        those of the published network."""
        return {stage: getattr(self, f"rga_att{stage}") for stage in self.stages}

    @property
    def trunk(self) -> dict[str, nn.Module]:
        """The ResNet itself, which ImageNet's weights are for: its layers by name."""
        attention = set(self.attention.values())
        return {name: m for name, m in self.named_children() if m not in attention}

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.rga_att1(self.layer1(x))
        x = self.rga_att2(self.layer2(x))
        x = self.rga_att3(self.layer3(x))
        return self.rga_att4(self.layer4(x))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut: ResNet-18 and 34."""

    expansion = 1

    def __init__(self, inputs: int, inner: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inner, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, inner, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut: ResNet-50 and 101."""

    expansion = 4

    def __init__(self, inputs: int, inner: int, stride: int = 1) -> None:
        super().__init__()
        outputs = inner * self.expansion
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


ARCHITECTURES: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
}


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
    )


def _strided(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """The size after a convolution or pooling with kernel = 2 * padding + 1, as all here are."""
    return ((size[0] - 1) // stride + 1, (size[1] - 1) // stride + 1)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")


def _check_options(
    arch: str, size: tuple[int, int], stages: tuple[int, ...], width: int, last_stride: int
) -> None:
    if arch not in ARCHITECTURES:
        raise ValueError(f"ReidNet: arch must be one of {', '.join(ARCHITECTURES)}, got {arch!r}")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"ReidNet: size must be (H, W) in pixels, got {size}")
    if not set(stages) <= {1, 2, 3, 4} or len(set(stages)) != len(stages):
        raise ValueError(f"ReidNet: stages must be some of 1, 2, 3, 4, each once, got {stages}")
    if width < 1 or last_stride not in (1, 2):
        raise ValueError(
            "ReidNet: width must be at least 1 and last_stride 1 or 2, "
            f"got {width} and {last_stride}"
        )
