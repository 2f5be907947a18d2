"""Partition points over families of networks: names unique, and head-then-tail exact at every point.

The quick ones run always, at up to eight points. All of them at all points carry the marker ``architectures``:
``make test-all`` and ``.ci/run`` run them.
"""

import pytest
from exactness import assert_exact_everywhere, assert_onnx_agrees

from evaluators.models.cut import SplitModel
from evaluators.models.load import build
from evaluators.settings import BaselineSettings, DataSettings, FinetuneSettings, ModelSettings
from evaluators.tasks.classification import Classification
from evaluators.tasks.datasets import open_dataset
from evaluators.training import rehearsal

# Model, picture size, options, and names that a person would look for.
QUICK = [
    ("torchvision/alexnet", 64, {}, ["features.4", "avgpool"]),
    ("torchvision/squeezenet1_1", 64, {}, ["features.3", "features.12"]),
    ("torchvision/resnet50", 64, {}, ["stem", "layer1.2", "layer3.5", "avgpool"]),
    ("torchvision/densenet121", 64, {}, ["features.denseblock1", "features.transition1"]),
    ("torchvision/googlenet", 64, {}, ["inception3a", "inception5b"]),
    ("torchvision/mobilenet_v2", 64, {}, ["features.0", "features.17"]),
    ("torchvision/mobilenet_v3_small", 64, {}, ["features.4"]),
    ("torchvision/mnasnet0_5", 64, {}, ["layers.8.0"]),
    ("torchvision/shufflenet_v2_x0_5", 64, {}, ["stem", "stage2.0", "conv5"]),
    ("torchvision/regnet_y_400mf", 64, {}, ["stem", "trunk_output.block1"]),
    ("torchvision/efficientnet_b0", 64, {}, ["features.0", "features.4.1"]),
    ("torchvision/convnext_tiny", 64, {}, ["features.0", "features.1.0"]),
    ("torchvision/swin_t", 64, {}, ["features.0", "features.1.1"]),
    ("torchvision/vit_b_32", 64, {"image_size": 64}, ["conv_proj", "encoder.layers.encoder_layer_3"]),
    ("ultralytics/yolov10n", 96, {}, ["model.4", "model.9", "model.22"]),
    ("timm/resnet26", 64, {}, ["stem", "layer2.1"]),
]
REST = [
    ("torchvision/vgg11_bn", 64, {}, ["features.3"]),
    ("torchvision/resnet18", 64, {}, ["stem"]),
    ("torchvision/resnet152", 64, {}, ["layer3.35"]),
    ("torchvision/resnext50_32x4d", 64, {}, ["layer4.2"]),
    ("torchvision/wide_resnet50_2", 64, {}, ["layer1.0"]),
    ("torchvision/densenet169", 64, {}, ["features.pool0"]),
    ("torchvision/inception_v3", 96, {}, ["Mixed_5b", "Mixed_7c"]),
    ("torchvision/mobilenet_v3_large", 64, {}, ["features.1"]),
    ("torchvision/shufflenet_v2_x1_5", 64, {}, ["stage4.3"]),
    ("torchvision/regnet_x_400mf", 64, {}, ["stem"]),
    ("torchvision/efficientnet_v2_s", 64, {}, ["features.0", "features.4.5", "features.6.14"]),
    ("torchvision/efficientnet_b3", 64, {}, ["features.8"]),
    ("torchvision/convnext_small", 64, {}, ["features.5.26"]),
    ("torchvision/swin_v2_t", 64, {}, ["features.3.1"]),
    ("torchvision/maxvit_t", 224, {}, ["blocks.1"]),
    ("ultralytics/yolov5n", 96, {}, ["model.9"]),
    ("ultralytics/yolov8n", 96, {}, ["model.9", "model.21"]),
    ("ultralytics/yolov9t", 96, {}, ["model.9"]),
    ("ultralytics/yolo11n", 96, {}, ["model.10"]),
    ("ultralytics/yolo12n", 96, {}, ["model.8"]),
    ("timm/convnext_atto", 64, {}, ["stem"]),
    ("timm/vit_tiny_patch16_224", 64, {"img_size": 64}, ["patch_embed", "blocks.5"]),
    ("timm/mobilenetv4_conv_small", 64, {}, ["blocks.1.0"]),
    ("timm/efficientformerv2_s0", 224, {}, ["stem"]),
]


def check_family(name, image_size, options, expected, sampled=30):
    library = {"timm": "timm", "ultralytics": "ultralytics"}.get(name.partition("/")[0])
    if library:
        pytest.importorskip(library)
    model = build(ModelSettings(name=name, num_classes=10, options=options)).network
    names = [point.name for point in assert_exact_everywhere(model, image_size, sampled)]
    assert set(expected) <= set(names), names


@pytest.mark.parametrize(("name", "image_size", "options", "expected"), QUICK, ids=[row[0] for row in QUICK])
def test_every_family_is_cut_exactly(name, image_size, options, expected):
    check_family(name, image_size, options, expected, sampled=8)


@pytest.mark.architectures
@pytest.mark.parametrize(
    ("name", "image_size", "options", "expected"), QUICK + REST, ids=[row[0] for row in QUICK + REST]
)
def test_every_family_is_cut_exactly_everywhere(name, image_size, options, expected):
    check_family(name, image_size, options, expected)


CLASSIFIERS = [row[:3] for row in QUICK + REST if not row[0].startswith("ultralytics")]


@pytest.mark.architectures
@pytest.mark.parametrize(("name", "image_size", "options"), CLASSIFIERS, ids=[row[0] for row in CLASSIFIERS])
def test_every_family_can_be_trained(name, image_size, options, monkeypatch):
    if name.startswith("timm"):
        pytest.importorskip("timm")
    monkeypatch.setattr(rehearsal, "_export", lambda *_: None)
    model = build(ModelSettings(name=name, num_classes=10, options=options)).network
    data = open_dataset(DataSettings(name="digits", image_size=image_size))
    split, recipe = SplitModel(model, image_size), BaselineSettings(batch_size=2)
    rehearsal.rehearse(model, split, data, Classification(), FinetuneSettings(), recipe, trained=False)


def test_yolov10n_sends_its_pyramid():
    pytest.importorskip("ultralytics")
    model = build(ModelSettings(name="ultralytics/yolov10n", num_classes=20)).network
    points = {point.name: point for point in SplitModel(model, 640).points}
    assert points["model.9"].shapes == ((64, 80, 80), (128, 40, 40), (256, 20, 20))
    assert points["model.22"].shapes == ((64, 80, 80), (128, 40, 40), (256, 20, 20))
    assert len(points["model.4"].shapes) == 1


@pytest.mark.parametrize(("name", "image_size"), [("torchvision/efficientnet_v2_s", 64), ("ultralytics/yolov10n", 320)])
def test_enumerating_does_not_run_the_network_once_a_point(name, image_size, monkeypatch):
    if name.startswith("ultralytics"):
        pytest.importorskip("ultralytics")
    model = build(ModelSettings(name=name, num_classes=10)).network
    runs = []
    first = next(module for module in model.modules() if type(module).__name__ == "Conv2d")
    first.register_forward_hook(lambda *_: runs.append(1))
    points = SplitModel(model, image_size).points
    assert len(points) > 15 and len(runs) <= 7


@pytest.mark.architectures
@pytest.mark.parametrize(
    ("name", "image_size"),
    [("torchvision/resnet50", 64), ("torchvision/efficientnet_v2_s", 64), ("ultralytics/yolov10n", 96)],
)
def test_the_papers_networks_as_onnx(name, image_size, tmp_path):
    if name.startswith("ultralytics"):
        pytest.importorskip("ultralytics")
    network = build(ModelSettings(name=name, num_classes=10)).network
    if name.startswith("ultralytics"):
        # All that it says, unsorted: untrained, it has many equal scores, and which of them come first is anybody's.
        network.end2end = False
    assert_onnx_agrees(network, image_size, tmp_path)
