"""A `Source` as COCO: the ground truth for the metrics, or files with their pictures."""

import json
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import cv2
import numpy as np

from jaxdet.data.coco_masks import write_segmentation
from jaxdet.data.pictures import parse_header
from jaxdet.data.records import Annotation, DataError, Source

MAGIC = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png"}


def to_coco(source: Source) -> dict[str, Any]:
    """The ground truth as a COCO dictionary, with the data set's own ids; without captions.

    Departures:
      Difficult objects are written as crowds. The COCO tools overwrite an `ignore` field, and
      `iscrowd` is the one way to say that a detection of the object counts neither way. A crowd
      may absorb several detections; that is the intended leniency for difficult objects too. A
      field `difficult`, which is not COCO's, tells them from crowds.
    """
    images, annotations = [], []
    for a in source.annotations:
        height, width = a.size
        images.append({"id": a.image_id, "file_name": a.name, "height": height, "width": width})
        sides = a.boxes[:, 2:] - a.boxes[:, :2]
        areas = a.areas if a.areas is not None else sides[:, 0] * sides[:, 1]
        for row, label in enumerate(a.labels):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": a.image_id,
                    "category_id": source.category_ids[label - 1],
                    "bbox": [float(v) for v in (*a.boxes[row, :2], *sides[row])],
                    "area": float(areas[row]),
                    "iscrowd": int(a.crowd[row] or a.difficult[row]),
                }
                | _more(a, row)
            )
    more = {"keypoints": list(source.keypoint_names), "skeleton": []}
    categories = [
        {"id": key, "name": name} | (more if source.keypoint_names else {})
        for key, name in zip(source.category_ids, source.classes, strict=True)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


def _more(annotation: Annotation, row: int) -> dict[str, Any]:
    """The fields that only some objects have."""
    more: dict[str, Any] = {"difficult": 1} if annotation.difficult[row] else {}
    segment = annotation.segments[row] if annotation.segments else None
    if segment is not None:
        more["segmentation"] = write_segmentation(segment, annotation.size)
    if annotation.keypoints is not None:
        points = annotation.keypoints[row]
        more["keypoints"] = [float(v) for v in points.reshape(-1)]
        more["num_keypoints"] = int((points[:, 2] > 0).sum())
    return more


def check_free(folder: pathlib.Path, parts: Iterable[str]) -> None:
    """Raises a FileExistsError where `write_coco` would write over something."""
    for name in ("annotations", *parts):
        if (folder / name).exists():
            raise FileExistsError(f"{folder / name}: is there already. Name another folder.")


def write_coco(sources: Mapping[str, Source], folder: pathlib.Path) -> None:
    """Writes the parts of a data set as COCO JSON, with copies of their pictures.

    Args:
      sources: By the parts' names: train, val, test.
      folder: Gets `annotations/instances_PART.json`, `captions_PART.json` where there are
        captions, and folders of pictures by the parts' names. None of them may be there yet.
    """
    check_free(folder, sources)
    (folder / "annotations").mkdir(parents=True)
    for part, source in sources.items():
        (folder / part).mkdir()
        data = to_coco(source)
        taken: set[str] = set()
        for index, image in enumerate(data["images"]):
            content, suffix = encoded_picture(source, index)
            name = safe_name(image["file_name"], suffix, index, taken)
            taken.add(name)
            image["file_name"] = name
            (folder / part / name).write_bytes(content)
        _write_json(folder / "annotations" / f"instances_{part}.json", data)
        captions = [(a.image_id, text) for a in source.annotations for text in a.captions]
        if captions:
            rows = [
                {"id": number, "image_id": image_id, "caption": text}
                for number, (image_id, text) in enumerate(captions, start=1)
            ]
            file = folder / "annotations" / f"captions_{part}.json"
            _write_json(file, {"images": data["images"], "annotations": rows})


def encoded_picture(source: Source, index: int) -> tuple[bytes, str]:
    """A picture as a JPEG or PNG file, as it is where it is one; and its suffix."""
    read: Any = source.read
    content = read.encoded(index) if hasattr(read, "encoded") else b""
    if getattr(read, "upright", False):
        turned = parse_header(content, read.where(index)).orientation > 1
        content = b"" if turned else content  # Who reads it there may not turn it.
    for magic, suffix in MAGIC.items():
        if content.startswith(magic):
            return content, suffix
    done, png = cv2.imencode(".png", cv2.cvtColor(read(index), cv2.COLOR_RGB2BGR))
    if not done:
        raise DataError(f"{source.annotations[index].name}: OpenCV cannot write it as PNG.")
    return np.asarray(png).tobytes(), ".png"


def safe_name(name: str, suffix: str, index: int, taken: set[str]) -> str:
    """A file name without folders or odd characters that is not taken yet."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", re.split(r"[/\\]", name)[-1].rpartition(".")[0] or name)
    stem = stem.strip("_")[:100] or "picture"
    return f"{stem}{suffix}" if f"{stem}{suffix}" not in taken else f"{stem}_{index}{suffix}"


def _write_json(path: pathlib.Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, allow_nan=False, separators=(",", ":")))
