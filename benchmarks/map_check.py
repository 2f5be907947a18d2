"""mAP of an uncut detector by splitsearch's path and by ultralytics' own validator, on the same images.

    python benchmarks/map_check.py                    # the network of studies/yolov10n_bccd.yaml, trained if need be

splitsearch scales images with pillow and numpy, as a device does, runs the network, and compares boxes in the square
input. ultralytics reads the files itself, scales them with OpenCV, fuses layers, and by default keeps images as
rectangles. Results go to benchmarks/results/map-check.md.
"""

import copy
import tempfile
from pathlib import Path

import torch

from evaluators.split_evaluator import SplitEvaluator
from evaluators.training.uncut_detector import yolo_layout
from search.spec import load_spec
from search.wiring import build_evaluator

STUDY = "yolov10n_bccd"
RESULT = Path(__file__).parent / "results" / "map-check.md"
_KEYS = ("metrics/mAP50(B)", "metrics/mAP50-95(B)")


def main() -> None:
    """Score both splits in every way, print and keep the table."""
    spec = load_spec(STUDY)
    with tempfile.TemporaryDirectory() as scratch:
        evaluator = build_evaluator(spec, Path(scratch))
        assert isinstance(evaluator, SplitEvaluator)
        evaluator.prepare(None, print)
        network, dataset, task = evaluator._network, evaluator._dataset, evaluator._task
        lines = [f"# {spec.model.name} on {spec.name}, {spec.data.image_size} px: mAP by whom", ""]
        lines += ["| images | path | mAP50 | mAP50-95 |", "| --- | --- | ---: | ---: |"]
        for role, images in (("search-validation", dataset.validation()), ("test", dataset.test())):
            with torch.no_grad():
                parts = range(0, len(images), 16)
                found = [network(images.inputs(dataset.picture, start, start + 16))[0] for start in parts]
            verdict = task.judge(torch.cat(found), images)
            rows = {"splitsearch": (verdict.metrics["mAP50"], verdict.accuracy)}
            file = yolo_layout(images, dataset.classes, Path(scratch) / role)
            for what, options in {
                "ultralytics, one-to-one head, square": {"nms": False, "rect": False},
                "ultralytics, one-to-one head, rectangles": {"nms": False, "rect": True},
                "ultralytics, one-to-many head and suppression": {"rect": False},
            }.items():
                rows[what] = by_ultralytics(network, file, dataset, options)
            lines += [f"| {role}, {len(images)} | {what} | {a:.2%} | {b:.2%} |" for what, (a, b) in rows.items()]
    text = "\n".join(lines) + "\n"
    RESULT.write_text(text)
    print(text)


def by_ultralytics(network, file: Path, dataset, options: dict) -> tuple[float, float]:
    """mAP50 and mAP50-95 from its validator."""
    from ultralytics.models.yolo.detect import DetectionValidator

    model = copy.deepcopy(network)  # it fuses layers
    model.names, model.pt_path = dict(enumerate(dataset.classes)), None
    arguments = {"data": str(file), "imgsz": dataset.picture.size, "plots": False, "device": "cpu", "batch": 16}
    arguments |= {"project": str(file.parent), "name": "validation", "exist_ok": True, "verbose": False, **options}
    found = DetectionValidator(args=arguments)(model=model)
    return tuple(found[key] for key in _KEYS)


if __name__ == "__main__":
    main()
