"""The networks that others timed on a Raspberry Pi 4, built here as the very architectures that were timed.

For fit_raspberry_pi.py. Where a library's network differs from the one that was timed, it is changed here. What ncnn
times stands in the ``.param`` files of its benchmark folder, older commits of which were read (YOLOv4-tiny's was not to
be had: here it is Darknet's); what Keras has, in keras-applications.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import timm
import torch
import torchvision
from torch import nn
from torchvision.models.mobilenetv3 import InvertedResidual, InvertedResidualConfig, MobileNetV3
from torchvision.ops.misc import Conv2dNormActivation as Layer

from evaluators.models.load import build
from evaluators.settings import ModelSettings


@dataclass(frozen=True)
class Network:
    """A network that was timed somewhere, as it can be built here."""

    make: Callable[[], nn.Module]
    side: int
    family: str


def of_torchvision(name: str, **options: object) -> nn.Module:
    """A torchvision network of 1000 classes, untrained."""
    # These two initialise themselves in a slow way of their own, and warn about it.
    own = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, weights=None, **own, **options)


def of_timm(name: str) -> nn.Module:
    """A timm network of 1000 classes, untrained."""
    return timm.create_model(name, pretrained=False)


def of_ultralytics(name: str, num_classes: int = 80) -> nn.Module:
    """An ultralytics detector."""
    return build(ModelSettings(name=f"ultralytics/{name}", num_classes=num_classes)).network


def padded_squeezenet() -> nn.Module:
    """SqueezeNet 1.1 as ncnn times it: its last convolution is padded."""
    model = of_torchvision("squeezenet1_1")
    model.classifier[1].padding = (1, 1)
    return model


def caffe_mobilenet_v2() -> nn.Module:
    """MobileNetV2 of the Caffe port: its first block has a convolution that expands by one."""
    model = of_torchvision("mobilenet_v2")
    model.features[1].conv.insert(0, Layer(32, 32, 1))
    return model


def early_mobilenet_v3() -> nn.Module:
    """MobileNetV3-Large as ncnn times it, which halves the picture for the last time one block later."""
    rows = (
        *((16, 3, 16, 16, False, "RE", 1), (16, 3, 64, 24, False, "RE", 2), (24, 3, 72, 24, False, "RE", 1)),
        *((24, 5, 72, 40, True, "RE", 2), (40, 5, 120, 40, True, "RE", 1), (40, 5, 120, 40, True, "RE", 1)),
        *((40, 3, 240, 80, False, "HS", 2), (80, 3, 200, 80, False, "HS", 1), (80, 3, 184, 80, False, "HS", 1)),
        *((80, 3, 184, 80, False, "HS", 1), (80, 3, 480, 112, True, "HS", 1), (112, 3, 672, 112, True, "HS", 1)),
        *((112, 5, 672, 160, True, "HS", 1), (160, 5, 672, 160, True, "HS", 2), (160, 5, 960, 160, True, "HS", 1)),
    )
    return MobileNetV3([InvertedResidualConfig(*row, dilation=1, width_mult=1.0) for row in rows], last_channel=1280)


def proxyless_mobile() -> nn.Module:
    """ProxylessNAS as ncnn times it: (in, kernel, expanded, out, stride) of each block."""
    rows = (
        *((32, 5, 48, 32, 2), (32, 3, 96, 32, 1), (32, 7, 96, 40, 2), (40, 3, 120, 40, 1), (40, 5, 120, 40, 1)),
        *((40, 5, 120, 40, 1), (40, 7, 240, 80, 2), (80, 5, 240, 80, 1), (80, 5, 240, 80, 1), (80, 5, 240, 80, 1)),
        *((80, 5, 480, 96, 1), (96, 5, 288, 96, 1), (96, 5, 288, 96, 1), (96, 5, 288, 96, 1), (96, 7, 576, 192, 2)),
        *((192, 7, 1152, 192, 1), (192, 7, 576, 192, 1), (192, 7, 576, 192, 1), (192, 7, 1152, 320, 1)),
    )
    configs = [InvertedResidualConfig(i, k, e, o, False, "RE", s, 1, 1.0) for i, k, e, o, s in rows]
    stem = (Layer(3, 32, 3, 2), Layer(32, 32, 3, groups=32), Layer(32, 32, 1, activation_layer=None))
    end = (Layer(320, 1280, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000))
    return nn.Sequential(*stem, *(InvertedResidual(each, nn.BatchNorm2d) for each in configs), *end)


def bvlc_googlenet() -> nn.Module:
    """GoogLeNet of Caffe: 5x5 convolutions where torchvision has 3x3, and local response normalisation."""
    model = of_torchvision("googlenet")
    for block in model.modules():
        if type(block).__name__ == "Inception":
            old = block.branch3[1].conv
            block.branch3[1].conv = nn.Conv2d(old.in_channels, old.out_channels, 5, padding=2, bias=False)
    model.maxpool1 = nn.Sequential(model.maxpool1, nn.LocalResponseNorm(5))
    model.maxpool2 = nn.Sequential(nn.LocalResponseNorm(5), model.maxpool2)
    return model


def projected_resnet18() -> nn.Module:
    """ResNet-18 of Caffe: the first block has a projection on its skip too."""
    model = of_torchvision("resnet18")
    model.layer1[0].downsample = Layer(64, 64, 1, activation_layer=None)
    return model


def early_stride_resnet(name: str) -> nn.Module:
    """ResNet of Caffe and of Keras: the first 1x1 convolution of a block has its stride, not the 3x3."""
    model = of_torchvision(name)
    for block in model.modules():
        if isinstance(block, torchvision.models.resnet.Bottleneck):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    return model


def caffe_alexnet() -> nn.Module:
    """The original AlexNet, with groups, which is not torchvision's."""
    relu, norm, pool = nn.ReLU(), nn.LocalResponseNorm(5), nn.MaxPool2d(3, 2)
    return nn.Sequential(
        *(nn.Conv2d(3, 96, 11, 4), relu, norm, pool),
        *(nn.Conv2d(96, 256, 5, padding=2, groups=2), relu, norm, pool),
        *(nn.Conv2d(256, 384, 3, padding=1), relu),
        *(nn.Conv2d(384, 384, 3, padding=1, groups=2), relu),
        *(nn.Conv2d(384, 256, 3, padding=1, groups=2), relu, pool, nn.Flatten()),
        *(nn.Linear(9216, 4096), relu, nn.Linear(4096, 4096), relu, nn.Linear(4096, 1000)),
    )


class MobileNetSsd(nn.Module):
    """MobileNetV1-SSD of 21 classes, without the last step, which sorts boxes."""

    def __init__(self) -> None:
        super().__init__()
        base = ((32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2))
        body = nn.Sequential(Layer(3, 32, 3, 2), *(_separable(*row) for row in base))
        body.extend(_separable(512, 512, 1) for _ in range(5))
        last = nn.Sequential(_separable(512, 1024, 2), _separable(1024, 1024, 1))
        extras = ((1024, 256, 512), (512, 128, 256), (256, 128, 256), (256, 64, 128))
        smaller = (nn.Sequential(Layer(i, m, 1), Layer(m, o, 3, 2)) for i, m, o in extras)
        self.stages = nn.ModuleList([body, last, *smaller])
        shapes = ((512, 3), (1024, 6), (512, 6), (256, 6), (256, 6), (128, 6))
        self.boxes = nn.ModuleList(nn.Conv2d(channels, 4 * anchors, 1) for channels, anchors in shapes)
        self.classes = nn.ModuleList(nn.Conv2d(channels, 21 * anchors, 1) for channels, anchors in shapes)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Boxes and class scores of all anchors."""
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        boxes = [head(each).permute(0, 2, 3, 1).flatten(1) for head, each in zip(self.boxes, features)]
        classes = [head(each).permute(0, 2, 3, 1).flatten(1) for head, each in zip(self.classes, features)]
        return torch.cat(boxes, 1), torch.cat(classes, 1).unflatten(1, (-1, 21)).softmax(-1)


def _separable(inputs: int, outputs: int, stride: int) -> nn.Module:
    return nn.Sequential(Layer(inputs, inputs, 3, stride, groups=inputs), Layer(inputs, outputs, 1))


_Leaky = partial(Layer, activation_layer=partial(nn.LeakyReLU, 0.1))


class _CrossStage(nn.Module):
    """A block of YOLOv4-tiny: half the channels go through two more convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.first, self.second, self.third = (
            _Leaky(channels, channels, 3),
            _Leaky(half, half, 3),
            _Leaky(half, half, 3),
        )
        self.last = _Leaky(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.first(x)
        y = self.second(x.chunk(2, 1)[1].contiguous())
        z = self.last(torch.cat([self.third(y), y], 1))
        return torch.cat([x, z], 1), z


class Yolo4Tiny(nn.Module):
    """YOLOv4-tiny of 80 classes, without the decoding of boxes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_Leaky(3, 32, 3, 2), _Leaky(32, 64, 3, 2))
        self.blocks = nn.ModuleList(_CrossStage(channels) for channels in (64, 128, 256))
        self.pool = nn.MaxPool2d(2, 2)
        self.neck = nn.Sequential(_Leaky(512, 512, 3), _Leaky(512, 256, 1))
        self.coarse = nn.Sequential(_Leaky(256, 512, 3), nn.Conv2d(512, 255, 1))
        self.up = nn.Sequential(_Leaky(256, 128, 1), nn.Upsample(scale_factor=2))
        self.fine = nn.Sequential(_Leaky(384, 256, 3), nn.Conv2d(256, 255, 1))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The two maps of predictions."""
        x = self.stem(x)
        for block in self.blocks:
            x, branch = block(x)
            x = self.pool(x)
        x = self.neck(x)
        return self.coarse(x), self.fine(torch.cat([self.up(x), branch], 1))


class _BlazeBlock(nn.Module):
    """Depthwise and pointwise convolution beside a skip that is padded to more channels."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.more, self.stride = outputs - inputs, stride
        self.depthwise = nn.Conv2d(inputs, inputs, 3, stride, padding=2 - stride, groups=inputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = x if self.stride == 1 else nn.functional.max_pool2d(x, 2)
        skip = nn.functional.pad(skip, (0, 0, 0, 0, 0, self.more)) if self.more else skip
        x = x if self.stride == 1 else nn.functional.pad(x, (0, 2, 0, 2))
        return torch.relu(self.pointwise(self.depthwise(x)) + skip)


def blazeface() -> nn.Module:
    """BlazeFace as ncnn times it: the body, without the predictions."""
    rows = (
        *((24, 24), (24, 28), (28, 32, 2), (32, 36), (36, 42), (42, 48, 2), (48, 56), (56, 64), (64, 72), (72, 80)),
        *((80, 88), (88, 96, 2), (96, 96), (96, 96), (96, 96), (96, 96)),
    )
    stem = (nn.ZeroPad2d((1, 2, 1, 2)), nn.Conv2d(3, 24, 5, 2), nn.ReLU())
    return nn.Sequential(*stem, *(_BlazeBlock(*row) for row in rows))


class _PreActivation(nn.Module):
    """A block of Keras' ResNet V2: BatchNorm first, and the stride in the last block of a stage."""

    def __init__(self, inputs: int, width: int, stride: int, projected: bool) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
        self.projected = projected
        pooled = nn.MaxPool2d(1, stride) if stride > 1 else nn.Identity()
        self.skip = nn.Conv2d(inputs, 4 * width, 1, stride) if projected else pooled
        first, second = Layer(inputs, width, 1), Layer(width, width, 3, stride)
        self.body = nn.Sequential(first, second, nn.Conv2d(width, 4 * width, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.before(x)
        return self.skip(y if self.projected else x) + self.body(y)


def keras_resnet_v2(*blocks: int) -> nn.Module:
    """ResNet V2 as Keras has it."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for width, count, stride in zip((64, 128, 256, 512), blocks, (2, 2, 2, 1)):
        for index in range(count):
            layers.append(_PreActivation(channels, width, stride if index == count - 1 else 1, index == 0))
            channels = 4 * width
    end = (nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))
    return nn.Sequential(*layers, *end)


NCNN = {
    "squeezenet": Network(padded_squeezenet, 227, "squeezenet"),
    "mobilenet": Network(partial(of_timm, "mobilenetv1_100"), 224, "mobilenet v1"),
    "mobilenet_ssd": Network(MobileNetSsd, 300, "mobilenet v1"),
    "mobilenet_v2": Network(caffe_mobilenet_v2, 224, "inverted residuals"),
    "mobilenet_v3": Network(early_mobilenet_v3, 224, "inverted residuals"),
    "mnasnet": Network(partial(of_torchvision, "mnasnet1_0"), 224, "inverted residuals"),
    "proxylessnasnet": Network(proxyless_mobile, 224, "inverted residuals"),
    "efficientnet_b0": Network(partial(of_torchvision, "efficientnet_b0"), 224, "efficientnet"),
    "efficientnetv2_b0": Network(partial(of_timm, "tf_efficientnetv2_b0"), 224, "efficientnet"),
    "shufflenet_v2": Network(partial(of_torchvision, "shufflenet_v2_x1_0"), 224, "shufflenet"),
    "regnety_400m": Network(partial(of_torchvision, "regnet_y_400mf"), 224, "regnet"),
    "blazeface": Network(blazeface, 128, "blazeface"),
    "googlenet": Network(bvlc_googlenet, 224, "inception"),
    "resnet18": Network(projected_resnet18, 224, "resnet"),
    "resnet50": Network(partial(early_stride_resnet, "resnet50"), 224, "resnet"),
    "alexnet": Network(caffe_alexnet, 227, "alexnet"),
    "vgg16": Network(partial(of_torchvision, "vgg16"), 224, "vgg"),
    "yolov4-tiny": Network(Yolo4Tiny, 416, "yolo"),
}
KERAS = {
    "vgg16": Network(partial(of_torchvision, "vgg16"), 224, "vgg"),
    "vgg19": Network(partial(of_torchvision, "vgg19"), 224, "vgg"),
    "xception": Network(partial(of_timm, "legacy_xception"), 299, "xception"),
    **{
        name: Network(partial(early_stride_resnet, name), 224, "resnet")
        for name in ("resnet50", "resnet101", "resnet152")
    },
    "resnet50v2": Network(partial(keras_resnet_v2, 3, 4, 6, 3), 224, "resnet"),
    "resnet101v2": Network(partial(keras_resnet_v2, 3, 4, 23, 3), 224, "resnet"),
    "resnet152v2": Network(partial(keras_resnet_v2, 3, 8, 36, 3), 224, "resnet"),
    "inception_v3": Network(partial(of_torchvision, "inception_v3"), 299, "inception"),
    "inceptionresnet_v2": Network(partial(of_timm, "inception_resnet_v2"), 299, "inception"),
    "mobilenet": Network(partial(of_timm, "mobilenetv1_100"), 224, "mobilenet"),
    "mobilenetv2": Network(partial(of_torchvision, "mobilenet_v2"), 224, "mobilenet"),
    **{
        name: Network(partial(of_torchvision, name), 224, "densenet")
        for name in ("densenet121", "densenet169", "densenet201")
    },
    "nasnetlarge": Network(partial(of_timm, "nasnetalarge"), 331, "nasnet"),
}
QNNPACK = {
    name: Network(partial(of_torchvision, name), 224, family)
    for name, family in {
        "mobilenet_v2": "mobilenet",
        "mobilenet_v3_large": "mobilenet",
        "resnet18": "resnet",
        "resnet50": "resnet",
        "resnext101_32x8d": "resnet",
        "inception_v3": "inception",
        "googlenet": "inception",
        **{f"shufflenet_v2_x{width}": "shufflenet" for width in ("0_5", "1_0", "1_5", "2_0")},
    }.items()
}
