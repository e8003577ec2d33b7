"""A `Source` as a TFDS data set of array_record files, which needs no TensorFlow to read.

Pictures are JPEG or PNG files, masks COCO segmentations (JSON), boxes xyxy pixels, labels 1..k;
`metadata.json` beside the records says what the labels and keypoints are called.
"""

import functools
import io
import json
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxdet.data.coco_masks import write_segmentation
from jaxdet.data.coco_write import encoded_picture
from jaxdet.data.records import Annotation, Source


class Converted(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes sources as array_record files."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos = None  # Nothing is downloaded.

    def __init__(self, sources: Mapping[str, Source], **options: Any) -> None:
        """Keeps what to write.

        Args:
          sources: By the names of the splits.
          **options: TFDS's own.
        """
        self._sources = sources
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        first = next(iter(self._sources.values()))
        numbers = functools.partial(tfds.features.Tensor, dtype=np.float32)
        flags = tfds.features.Tensor(shape=(None,), dtype=np.bool_)
        features = {
            "id": tfds.features.Scalar(np.int64),
            "name": tfds.features.Text(),
            "image": tfds.features.Image(encoding_format="png"),
            "boxes": numbers(shape=(None, 4)),
            "labels": tfds.features.Tensor(shape=(None,), dtype=np.int32),
            "crowd": flags,
            "difficult": flags,
            "areas": numbers(shape=(None,)),  # Of the masks where there are any.
            "segments": tfds.features.Text(),  # JSON: a COCO segmentation or null an object.
            "keypoints": numbers(shape=(None, max(1, len(first.keypoint_names)), 3)),
            "captions": tfds.features.Sequence(tfds.features.Text()),
        }
        metadata = {
            "classes": first.classes,
            "category_ids": first.category_ids,
            "keypoint_names": first.keypoint_names,
            "keypoint_pairs": first.keypoint_pairs,
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(metadata),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        return {name: self._generate_examples(source) for name, source in self._sources.items()}

    def _generate_examples(self, source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, annotation in enumerate(source.annotations):
            content, _ = encoded_picture(source, index)
            yield index, {"image": io.BytesIO(content)} | _row(annotation)


def check_free(folder: pathlib.Path) -> None:
    """Raises a FileExistsError where `write_arrays` would write over something."""
    if (folder / Converted.name).exists():
        raise FileExistsError(f"{folder / Converted.name}: is there already. Name another folder.")


def write_arrays(sources: Mapping[str, Source], folder: pathlib.Path) -> pathlib.Path:
    """Writes the parts of a data set as array_record files.

    Args:
      sources: By the parts' names; classes and keypoints are those of the first.
      folder: Where to write; a folder `converted` in it must not be there yet.

    Returns:
      The folder of the files.
    """
    check_free(folder)
    builder = Converted(sources, data_dir=str(folder), file_format="array_record")
    with tempfile.TemporaryDirectory() as unused:  # TFDS makes folders for downloads.
        builder.download_and_prepare(download_dir=unused)
    return pathlib.Path(builder.data_dir)


def _row(a: Annotation) -> dict[str, Any]:
    sides = a.boxes[:, 2:] - a.boxes[:, :2]
    segments = [s and write_segmentation(s, a.size) for s in a.segments or ()]
    nothing = np.zeros((len(a.labels), 1, 3), np.float32)
    return {
        "id": a.image_id,
        "name": a.name,
        "boxes": a.boxes,
        "labels": a.labels,
        "crowd": a.crowd,
        "difficult": a.difficult,
        "areas": sides[:, 0] * sides[:, 1] if a.areas is None else a.areas,
        "segments": json.dumps(segments) if segments else "",
        "keypoints": nothing if a.keypoints is None else a.keypoints,
        "captions": list(a.captions),
    }
