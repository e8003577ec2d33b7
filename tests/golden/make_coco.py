"""Writes coco.json: a small data set, results and what pycocotools says of them.

Run       python tests/golden/make_coco.py   (pip install pycocotools==2.0.11)
"""

import contextlib
import copy
import io
import json
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def box(rng):
    """[x, y, w, h] of small, medium or large area."""
    side = rng.choice([20, 60, 150]) * rng.uniform(0.7, 1.3, 2)
    return [round(float(v), 2) for v in [*rng.uniform(0, 250, 2), *side]]


def scene(rng, n_images=12):
    images = [{"id": 10 + i, "height": 480, "width": 480} for i in range(n_images)]
    categories = [{"id": id_, "name": name} for id_, name in ((2, "cat"), (5, "dog"), (9, "fox"))]
    annotations, results = [], []
    for image in images:
        for _ in range(rng.integers(0, 7)):
            x, y, w, h = box(rng)
            at = {"image_id": image["id"], "category_id": int(rng.choice([2, 5]))}
            crowd = int(rng.uniform() < 0.15)
            row = {"id": len(annotations) + 1, "bbox": [x, y, w, h], "area": w * h}
            annotations.append(at | row | {"iscrowd": crowd})
            for _ in range(rng.integers(0, 3)):
                moved = np.array([x, y, w, h]) + rng.normal(0, 0.06, 4) * np.array([w, h, w, h])
                score = round(float(rng.uniform(0.3, 1)), 3)
                results.append(at | {"bbox": [round(float(v), 2) for v in moved], "score": score})
        at = {"image_id": image["id"], "category_id": int(rng.choice([2, 5]))}
        results.append(at | {"bbox": box(rng), "score": round(float(rng.uniform(0, 0.7)), 3)})
    return {"images": images, "categories": categories, "annotations": annotations}, results


def numbers(truth, results):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, 2]  # IoU, recall, class
    return evaluation.stats.tolist(), precision.mean(axis=(0, 1)).tolist()


if __name__ == "__main__":
    truth, results = scene(np.random.default_rng(0))
    stats, class_ap = numbers(truth, results)
    golden = {"truth": truth, "results": results, "stats": stats, "class_ap": class_ap}
    Path(__file__).with_name("coco.json").write_text(json.dumps(golden) + "\n")
