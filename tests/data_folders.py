"""Data sets of made-up pictures in folders: TinyImageNet's layout, folders of classes, Pascal VOC's."""

import numpy as np
from PIL import Image

from evaluators.settings import DataSettings
from evaluators.tasks.datasets import open_dataset

ANNOTATION = """<annotation><object><name>dog</name><difficult>{difficult}</difficult>
<bndbox><xmin>1</xmin><ymin>11</ymin><xmax>{right}</xmax><ymax>30</ymax></bndbox></object></annotation>"""


def tiny_imagenet(root):
    """TinyImageNet's layout with two classes."""
    rng = np.random.default_rng(0)
    (root / "val" / "images").mkdir(parents=True)
    rows = []
    for name in ("n1", "n2"):
        (root / "train" / name / "images").mkdir(parents=True)
        for i in range(6):
            Image.fromarray(rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)).save(
                root / "train" / name / "images" / f"{name}_{i}.JPEG"
            )
        for i in range(4):
            picture = rng.integers(0, 256, (64, 64)).astype(np.uint8)
            Image.fromarray(picture).save(root / "val" / "images" / f"{name}{i}.JPEG")
            rows.append(f"{name}{i}.JPEG\t{name}\t0\t0\t1\t1")
    (root / "wnids.txt").write_text("n1\nn2\n")
    (root / "val" / "val_annotations.txt").write_text("\n".join(rows) + "\n")
    return root


def open_tiny(root):
    return open_dataset(DataSettings(name="tinyimagenet", image_size=64, root=root))


def save_pictures(folder, classes, count, seed=0):
    rng = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(rng.integers(0, 256, (20, 30, 3)).astype(np.uint8)).save(folder / name / f"{number}.png")


def open_folder(root):
    return open_dataset(DataSettings(name="imagefolder", image_size=16, root=root))


def voc_folder(root, name, lists):
    """A VOCdevkit of blank images with one dog each; ``lists`` are images by list."""
    folder = root / "VOCdevkit" / name
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    for role, images in lists.items():
        (folder / "ImageSets" / "Main" / f"{role}.txt").write_text("\n".join(images) + "\n")
        for picture in images:
            Image.fromarray(np.zeros((30, 60, 3), np.uint8)).save(folder / "JPEGImages" / f"{picture}.jpg")
            (folder / "Annotations" / f"{picture}.xml").write_text(ANNOTATION.format(right=20, difficult=0))


def as_bytes(images):
    return {pixels.tobytes() for pixels in images.pixels}
