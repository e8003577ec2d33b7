"""Draws each augmentation: a few pictures as they are, and variants with boxes, masks, keypoints.

Run       python experiments/show_augmentations.py
          python experiments/show_augmentations.py --data PATH --canvas 480 640
Writes    runs/augmentations/NAME.png: a sheet for each augmentation, a row for each picture
"""

import dataclasses
import pathlib
from collections.abc import Iterator

import numpy as np

from jaxdet.data import segments, shapes, sources, transforms
from jaxdet.data.augment import Augmentation, augment
from jaxdet.data.compose import Picture
from jaxdet.data.examples import CachedSource
from jaxdet.data.records import Source
from jaxdet.data.windows import LARGE_JITTER, STANDARD_JITTER
from jaxdet.training import recipes
from jaxdet.viz import draw, objects

STILL = Augmentation(horizontal_flip=0.0)
AUGMENTATIONS = {
    "flip": Augmentation(horizontal_flip=0.5, vertical_flip=0.5),
    "scale": dataclasses.replace(STILL, scale=STANDARD_JITTER),
    "large_scale": dataclasses.replace(STILL, scale=LARGE_JITTER),
    "crop": dataclasses.replace(STILL, crop=0.3),
    "patch": dataclasses.replace(STILL, patch=1.0),
    "expand": dataclasses.replace(STILL, expand=1.0),
    "rotation": dataclasses.replace(STILL, rotation=30.0),
    "color": dataclasses.replace(STILL, brightness=0.3, contrast=0.3, saturation=0.3, hue=20.0),
    "hsv": dataclasses.replace(STILL, hsv=(0.015, 0.7, 0.4)),
    "distort": dataclasses.replace(STILL, distort=0.5),
    "mosaic": dataclasses.replace(STILL, mosaic=1.0),
    "copy_paste": Augmentation(copy_paste=1.0, scale=LARGE_JITTER),
    "everything": Augmentation(
        vertical_flip=0.5,
        scale=STANDARD_JITTER,
        hsv=(0.015, 0.7, 0.4),
        distort=0.5,
        rotation=20.0,
        expand=0.3,
        patch=0.3,
        crop=0.8,
        mosaic=0.3,
        copy_paste=0.5,
    ),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to draw."""

    data: str = "shapes"
    """`shapes`, or a path, as for training."""
    images: pathlib.Path | None = None
    """Folder of the pictures of a COCO JSON that lie far from it."""
    data_dir: pathlib.Path = pathlib.Path("data")
    """Where generated data sets are kept."""
    scenes: shapes.Drawing = "full"
    """Which drawing of `shapes`."""
    split: str = "train"
    only: tuple[str, ...] = ()
    """Names of augmentations; all if none."""
    canvas: tuple[int, int] = (256, 256)
    """(height, width) that pictures are fitted to."""
    n_pictures: int = 4
    n_variants: int = 4
    seed: int = 0
    out: pathlib.Path = pathlib.Path("runs/augmentations")


def drawn(picture: Picture, source: Source) -> np.ndarray:
    """The picture with all that is known of it."""
    pixels, known = picture
    masks = [
        None if segment is None else segments.draw_segment(segment, box, known.size)
        for segment, box in zip(known.segments or (), known.boxes, strict=False)
    ]
    if masks:
        pixels = objects.draw_masks(pixels, masks, known.labels)
    if known.keypoints is not None:
        pixels = objects.draw_keypoints(pixels, known.keypoints)
    return draw.draw_boxes(
        pixels,
        known.boxes,
        known.labels,
        source.classes,
        ignored=known.crowd | known.difficult,
        magnify=1,
    )


def sheet(config: Config, source: Source, augmentation: Augmentation) -> np.ndarray:
    """A row for each picture: as it is, then its variants."""
    cached = CachedSource(source, 1 << 28)
    indices = np.linspace(0, len(source) - 1, config.n_pictures).astype(int).tolist()

    def variants(index: int) -> Iterator[Picture]:
        image, annotation = cached[index]
        view = transforms.fitting_view(annotation.size, config.canvas)
        yield transforms.render(image, view), transforms.move_annotation(annotation, view)
        for number in range(config.n_variants):
            yield augment(
                np.random.default_rng((config.seed, index, number)),
                image,
                annotation,
                config.canvas,
                augmentation,
                partner=cached.draw,
                keypoint_pairs=source.keypoint_pairs,
            )

    pictures = [drawn(picture, source) for index in indices for picture in variants(index)]
    return draw.contact_sheet(pictures, columns=config.n_variants + 1)


def main(config: Config) -> None:
    """Draws and writes."""
    if unknown := set(config.only) - AUGMENTATIONS.keys():
        raise ValueError(f"only must be of {list(AUGMENTATIONS)}: got {sorted(unknown)}")
    source = sources.open_data(
        config.data,
        split=config.split,
        data_dir=config.data_dir,
        scenes=config.scenes,
        images=config.images,
    )
    for name in config.only or AUGMENTATIONS:
        pixels = sheet(config, source, AUGMENTATIONS[name])
        print(draw.save_png(config.out / f"{name}.png", pixels), flush=True)


if __name__ == "__main__":
    recipes.run_script(main, Config, description=__doc__ or "")
