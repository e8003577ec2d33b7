"""One small data set, written in every format that the readers know, independently of them."""

import json
from csv import writer

import cv2
import numpy as np

# Two pictures with objects and one without; all pictures are 40 x 60. Each object is a class and
# an outline of whole numbers.
SIZE = (40, 60)
SHAPES = {
    "a.png": [
        ("cat", [(5, 6), (25, 6), (25, 20), (5, 20)]),
        ("dog", [(30, 5), (50, 15), (35, 30)]),
    ],
    "b.png": [("dog", [(0, 0), (60, 0), (60, 40), (0, 40)])],
    "c.png": [],
}


def extent(outline):
    """The box around an outline, x1, y1, x2, y2."""
    (x1, y1), (x2, y2) = np.min(outline, axis=0).tolist(), np.max(outline, axis=0).tolist()
    return x1, y1, x2, y2


def coco(root, write):
    images, rows = [], []
    for number, (name, objects) in enumerate(SHAPES.items(), start=1):
        write(root / "pictures" / name)
        images.append({"id": number, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
        for kind, outline in objects:
            x1, y1, x2, y2 = extent(outline)
            rows.append(
                {
                    "id": len(rows) + 1,
                    "image_id": number,
                    "category_id": {"cat": 2, "dog": 9}[kind],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "segmentation": [[v for point in outline for v in point]],
                    "area": 1,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": 2, "name": "cat"}, {"id": 9, "name": "dog"}]
    data = {"images": images, "annotations": rows, "categories": categories}
    (root / "all.json").write_text(json.dumps(data))


def voc(root, write, write_voc):
    for name, objects in SHAPES.items():
        write(root / "JPEGImages" / name)
        rows = []
        for kind, outline in objects:
            x1, y1, x2, y2 = extent(outline)
            rows.append((x1 + 1, y1 + 1, x2, y2, kind))
        write_voc(root / "Annotations" / f"{name[0]}.xml", rows)


def yolo(root, write, polygons):
    for name, objects in SHAPES.items():
        write(root / "images" / "train" / name)
        lines = []
        for kind, outline in objects:
            x1, y1, x2, y2 = extent(outline)
            box = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
            values = [v for point in outline for v in point] if polygons else box
            relative = [v / SIZE[1 - i % 2] for i, v in enumerate(values)]
            lines.append(
                " ".join([str(("cat", "dog").index(kind)), *(f"{v:.6f}" for v in relative)])
            )
        label = root / "labels" / "train" / f"{name[0]}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text("\n".join(lines))
    (root / "data.yaml").write_text("train: images/train\nnames: {0: cat, 1: dog}\n")


def via(root, write):
    data = {}
    for name, objects in SHAPES.items():
        write(root / name)
        regions = {}
        for number, (kind, outline) in enumerate(objects):
            xs, ys = ([p[axis] for p in outline] for axis in (0, 1))
            shape = {"name": "polygon", "all_points_x": xs, "all_points_y": ys}
            regions[str(number)] = {
                "shape_attributes": shape,
                "region_attributes": {"class": kind},
            }
        data[f"{name}123"] = {"filename": name, "size": 123, "regions": regions}
    (root / "via_region_data.json").write_text(json.dumps(data))


def masks(root, write):
    for name, objects in SHAPES.items():
        write(root / "images" / name)
        folder = root / "masks" / name[0]
        folder.mkdir(parents=True)
        for number, (kind, outline) in enumerate(objects):
            mask = np.zeros(SIZE, np.uint8)
            cv2.fillPoly(mask, [np.array(outline)], 255)
            cv2.imwrite(str(folder / f"{kind}_{number}.png"), mask)


def csv(root, write):
    with (root / "boxes.csv").open("w", newline="") as file:
        rows = writer(file)
        rows.writerow(["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"])
        for name, objects in SHAPES.items():
            write(root / "pictures" / name)
            size = (SIZE[1], SIZE[0])
            for kind, outline in objects:
                rows.writerow([name, *size, kind, *extent(outline)])
            if not objects:
                rows.writerow([name, *size, *[""] * 5])


FORMATS = ("coco", "voc", "yolo", "yolo polygons", "via", "masks", "csv")
