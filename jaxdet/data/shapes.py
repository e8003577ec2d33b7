"""`shapes`: scenes drawn from a seed, as a TFDS data set without download or TensorFlow.

A scene is a pure function of (seed, split, index), and index i of a split is record i of its
files. Pictures are JPEG, masks PNG of the whole picture, objects are in painting order.
"""

import dataclasses
import functools
import io
import pathlib
from collections.abc import Iterator
from typing import Any, Literal

import cv2
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float32, UInt8

from jaxdet.data import pictures, scenes
from jaxdet.data.records import Annotation, Source, StoredBitmap

SIZE = 128  # Side of a picture, pixels.
SPLITS = ("train", "validation", "test")
KEYPOINT_NAMES = ("centre", "top", "right", "bottom", "left")
KEYPOINT_PAIRS = ((2, 4),)


# Full colour resolution: halved, fine textures would smear over the outlines.
_JPEG = (
    *(cv2.IMWRITE_JPEG_QUALITY, 92),
    *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
)


@dataclasses.dataclass(eq=False)
class ShapesConfig(tfds.core.BuilderConfig):
    """One drawing of the data set; its name is a folder, so another drawing needs another name."""

    seed: int = 0
    train: int = 4000
    """Scenes in the split; likewise the next two."""
    validation: int = 256
    test: int = 512
    fewest: int = 1
    """This and the rest are options of `scenes.draw_scene`."""
    most: int = 8
    empty: float = 0.02
    group: float = 0.06
    radii: tuple[float, float] = (0.085, 0.25)


FULL = ShapesConfig(name="full", description="What results are reported on.")
LARGE = ShapesConfig(
    name="large",
    description="More to learn from; held-out scenes are those of `full`.",
    train=12000,
)
TINY = ShapesConfig(
    name="tiny", description="For tests: seconds.", train=64, validation=16, test=16
)
SINGLE = ShapesConfig(
    name="single",
    description="One object in each scene, larger: to say what it is and where.",
    train=8000,
    most=1,
    empty=0.0,
    group=0.0,
    radii=(0.2, 0.42),
)
PAIR = dataclasses.replace(
    SINGLE,
    name="pair",
    description="Two objects in each scene; one, in a few of them, where there is no place.",
    fewest=2,
    most=2,
    radii=(0.16, 0.3),
)
SINGLE_TINY = dataclasses.replace(
    SINGLE, name="single_tiny", description=TINY.description, train=64, validation=16, test=16
)


Drawing = Literal["full", "large", "tiny", "single", "pair", "single_tiny"]  # Their names.


class Shapes(tfds.core.GeneratorBasedBuilder):
    """Writes the scenes of a `ShapesConfig` as array_record files."""

    VERSION = tfds.core.Version("1.0.0")  # Of the drawing: old files are not taken for new ones.
    BUILDER_CONFIGS = [FULL, LARGE, TINY, SINGLE, PAIR, SINGLE_TINY]  # noqa: RUF012 -- TFDS's own attribute.
    # Nothing is downloaded. TFDS looks for checksums with a package it does not depend on.
    url_infos = None

    def _info(self) -> tfds.core.DatasetInfo:
        numbers = functools.partial(tfds.features.Tensor, dtype=np.float32)
        flags = tfds.features.Tensor(shape=(None,), dtype=np.bool_)
        features = {
            "id": tfds.features.Scalar(np.int64),
            "image": tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format="jpeg"),
            "boxes": numbers(shape=(None, 4)),  # xyxy pixels, half-open: not TFDS's yxyx.
            "labels": tfds.features.Tensor(shape=(None,), dtype=np.int32),  # 1..k.
            "crowd": flags,
            "difficult": flags,
            "areas": numbers(shape=(None,)),  # Of the masks, pixels.
            "keypoints": numbers(shape=(None, 5, 3)),
            "masks": tfds.features.Sequence(
                tfds.features.Image(shape=(SIZE, SIZE, 1), encoding_format="png")
            ),
            "caption": tfds.features.Text(),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,  # Record i is scene i.
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        config: Any = self.builder_config
        for index in range(getattr(config, split)):
            scene = draw(split, index, config=config)
            yield (
                index,
                {
                    "id": index,
                    "image": _encode(".jpg", scene.image[..., ::-1], _JPEG),
                    "boxes": scene.boxes,
                    "labels": scene.labels,
                    "crowd": scene.crowd,
                    "difficult": scene.difficult,
                    "areas": scene.masks.sum((1, 2), dtype=np.float32),
                    "keypoints": scene.keypoints,
                    "masks": [_encode(".png", mask.astype(np.uint8) * 255) for mask in scene.masks],
                    "caption": scene.caption,
                },
            )


def draw(split: str, index: int, *, config: ShapesConfig = FULL) -> scenes.Scene:
    """The scene of a place in the data set, before its picture is compressed.

    Args:
      split: One of `SPLITS`.
      index: 0, 1, ...; may lie beyond the split's end.
      config: Which drawing.

    Returns:
      The scene.
    """
    return scenes.draw_scene(
        np.random.default_rng((config.seed, _index_of(split), index)),
        size=SIZE,
        fewest=config.fewest,
        most=config.most,
        empty=config.empty,
        group=config.group,
        radii=config.radii,
    )


def prepare(data_dir: pathlib.Path, *, config: ShapesConfig = FULL) -> pathlib.Path:
    """Draws and writes the data set if it is not there; shows progress.

    Files are written to a folder of another name that is renamed at the end, so what was
    interrupted is never taken for a data set.

    Args:
      data_dir: Where data sets live; made if it does not exist.
      config: Which drawing.

    Returns:
      The folder of the files.
    """
    return pathlib.Path(_prepared(data_dir, config).data_dir)


def load(split: str, *, data_dir: pathlib.Path, config: ShapesConfig = FULL) -> Source:
    """Opens a split, after drawing the data set if it is not there.

    Args:
      split: One of `SPLITS`.
      data_dir: Where data sets live; made if it does not exist.
      config: Which drawing.

    Returns:
      The split, with all annotations in memory and pictures read one at a time.
    """
    _index_of(split)
    return read_prepared(prepare(data_dir, config=config), split)


def read_prepared(folder: pathlib.Path, split: str) -> Source:
    """Opens a split of the data set in a folder that `prepare` returned."""
    rows = open_rows(tfds.builder_from_directory(folder), split)
    return Source(
        f"{folder}:{split}",
        scenes.CLASSES,
        tuple(_annotation(row, split) for row in rows),
        _Pictures(folder, split),
        keypoint_names=KEYPOINT_NAMES,
        keypoint_pairs=KEYPOINT_PAIRS,
    )


@dataclasses.dataclass(frozen=True)
class _Pictures:
    """Reads the pictures of a split; opens its files anew where it is unpickled."""

    folder: pathlib.Path
    split: str

    @functools.cached_property
    def _files(self) -> Any:
        return open_rows(tfds.builder_from_directory(self.folder), self.split)

    def __call__(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        return pictures.decode(self.encoded(index), self.where(index))

    def encoded(self, index: int) -> bytes:
        """Picture number `index` as it is in the file."""
        return self._files[index]["image"]

    def where(self, index: int) -> str:
        """What messages call picture number `index`."""
        return f"{self.folder}: record {index} of {self.split}"

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "split": self.split}


def _index_of(split: str) -> int:
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}. Got {split!r}.")
    return SPLITS.index(split)


def _prepared(data_dir: pathlib.Path, config: ShapesConfig) -> Shapes:
    build = functools.partial(
        Shapes, data_dir=str(data_dir), config=config, file_format="array_record"
    )
    builder = build()
    try:
        builder.download_and_prepare()
    except FileExistsError:  # Another process was faster; it wrote the same scenes.
        builder = build()
    return builder


def open_rows(builder: Any, split: str) -> Any:
    """Random access to the records of a data set, with its pictures left as they are in the file.

    Args:
      builder: Of this data set or another one in array_record files.
      split: Name of one of its splits.
    """
    decoders: dict[str, Any] = {
        name: tfds.decode.SkipDecoding()
        for name, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.Image)
    }
    if "masks" in builder.info.features:
        decoders["masks"] = _SkipSequence()
    return builder.as_data_source(split, decoders=decoders)


class _SkipSequence(tfds.decode.SkipDecoding):
    """SkipDecoding for a Sequence that is read without TensorFlow, which TFDS lacks."""

    def decode_batch_example_np(self, serialized_example: Any) -> Any:
        return serialized_example


def _annotation(row: dict[str, Any], split: str) -> Annotation:
    name = f"shapes {split} {int(row['id'])}"
    masks = (functools.partial(pictures.decode_mask, mask, name) for mask in row["masks"])
    return Annotation(
        image_id=int(row["id"]),
        name=name,
        size=(SIZE, SIZE),
        boxes=row["boxes"],
        labels=row["labels"],
        crowd=row["crowd"],
        difficult=row["difficult"],
        areas=row["areas"],
        segments=tuple(map(StoredBitmap, masks)),
        keypoints=_keypoints(row),
        captions=(row["caption"].decode(),),
    )


def _keypoints(row: dict[str, Any]) -> Float32[np.ndarray, "n 5 3"]:
    """The file's 0 or 1, whether a keypoint shows, to not labelled, hidden or seen."""
    points, shows = row["keypoints"][..., :2], row["keypoints"][..., 2] > 0
    within = np.all((points >= 0) & (points < SIZE), axis=-1) & ~row["crowd"][:, None]
    state = np.where(shows, 2, np.where(within, 1, 0)).astype(np.float32)[..., None]
    return np.where(state > 0, np.concatenate([points, state], axis=-1), np.float32(0))


def _encode(extension: str, pixels: np.ndarray, options: Any = ()) -> io.BytesIO:
    done, encoded = cv2.imencode(extension, pixels, options)
    if not done:
        raise ValueError(f"OpenCV could not write {extension} from {pixels.shape}.")
    return io.BytesIO(encoded.tobytes())
