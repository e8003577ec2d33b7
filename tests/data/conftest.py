"""Writers of small data sets in the published formats, independent of the readers."""

import json

import cv2
import numpy as np
import pytest
import small_sets
from PIL import Image


@pytest.fixture
def write_picture(rng):
    """Writes noise of a size as a file, `write_picture(path, height, width)`."""

    def write(path, height=40, width=60):
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
        assert cv2.imwrite(str(path), pixels[..., ::-1])
        return pixels

    return write


@pytest.fixture
def write_turned():
    """Writes a black picture of 40 x 60 as a phone does that was held upright.

    `write_turned(path)`: what is shown has 60 x 40, and is white at [10:20, 5:15].
    """

    def write(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        shown = np.zeros((60, 40, 3), np.uint8)
        shown[10:20, 5:15] = 255
        picture = Image.fromarray(np.ascontiguousarray(np.rot90(shown)))
        exif = picture.getexif()
        exif[0x0112] = 6
        picture.save(path, exif=exif, quality=100)

    return write


@pytest.fixture
def write_coco():
    """Writes a COCO file, `write_coco(path, {name: [(x, y, w, h, category), ...]})`."""

    def write(path, objects, *, categories=((3, "cat"), (7, "dog")), size=(40, 60)):
        images, annotations = [], []
        for number, (name, rows) in enumerate(objects.items()):
            image = {"id": 100 + number, "file_name": name, "height": size[0], "width": size[1]}
            images.append(image)
            for x, y, w, h, category in rows:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": 100 + number,
                        "bbox": [x, y, w, h],
                        "category_id": category,
                        "area": w * h,
                        "iscrowd": 0,
                    }
                )
        data = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": key, "name": name} for key, name in categories],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data))
        return data

    return write


@pytest.fixture
def write_voc():
    """Writes a VOC file, `write_voc(path, [(xmin, ymin, xmax, ymax, name), ...])`."""

    def write(path, objects, *, size=(40, 60), difficult=()):
        rows = "".join(
            f"<object><name>{name}</name><difficult>{int(i in difficult)}</difficult><bndbox>"
            f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>"
            "</object>"
            for i, (x1, y1, x2, y2, name) in enumerate(objects)
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            f"<annotation><filename>{path.stem}.jpg</filename><size><width>{size[1]}</width>"
            f"<height>{size[0]}</height><depth>3</depth></size>{rows}</annotation>"
        )

    return write


@pytest.fixture
def write_set(write_picture, write_voc):
    """Writes `small_sets.SHAPES` with pictures, `write_set(root, format)`."""

    def write(root, kind):
        root.mkdir(parents=True, exist_ok=True)
        if kind == "voc":
            small_sets.voc(root, write_picture, write_voc)
        elif kind.startswith("yolo"):
            small_sets.yolo(root, write_picture, polygons=kind != "yolo")
        else:
            getattr(small_sets, kind)(root, write_picture)

    return write
