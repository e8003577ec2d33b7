"""Training pictures varied at random, on the host: what is varied, and in which order.

image     [h w 3], RGB, uint8
canvas    (height, width) that the varied picture fits

A picture, its boxes, segments and keypoints move together. The randomness of an image comes from
the generator given, always by the same number of draws; what would need more draws makes them
from generators that are far away on the same sequence.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from jaxdet.data import compose, photometric, transforms, windows
from jaxdet.data.compose import Picture
from jaxdet.data.records import Annotation
from jaxdet.data.transforms import Pairs, Size, Window

Image = UInt8[np.ndarray, "h w 3"]
Varied = UInt8[np.ndarray, "new_h new_w 3"]
Partner = Callable[[np.random.Generator], Picture]

CUT = (0.25, 0.75)  # Where the four pictures of a mosaic meet, relative to the canvas.

# Places on the sequence of a generator, 2**128 draws or more apart.
_MOVES, _COLORS, _COMPOSES = 1, 2, 3


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How training pictures are varied; the defaults only mirror them."""

    horizontal_flip: float = 0.5
    """Probability of a left-right mirror image."""
    vertical_flip: float = 0.0
    """Probability of an upside-down one; 0.5 suits microscopes and views from above."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Range of the size relative to the largest that fits the canvas; beyond 1 crops. 0.8 to 1.25
    is standard, 0.1 to 2 large scale jitter."""
    brightness: float = 0.0
    """Factor on all values, drawn from 1 - b to 1 + b."""
    contrast: float = 0.0
    """Factor on the distance to the picture's mean grey, drawn likewise."""
    saturation: float = 0.0
    """Factor on the distance to each pixel's own grey, drawn likewise."""
    hue: float = 0.0
    """Largest rotation of the colours about the grey axis, degrees."""
    hsv: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Largest relative change of hue, saturation and value; YOLO's are 0.015, 0.7, 0.4."""
    distort: float = 0.0
    """Probability of each of SSD's four photometric distortions; SSD's is 0.5."""
    rotation: float = 0.0
    """Largest angle either way, degrees."""
    expand: float = 0.0
    """Probability of a picture on a sheet of up to four times its sides; SSD's is 0.5."""
    patch: float = 0.0
    """Probability of one of SSD's patches, which hold the centre of an object; SSD's is 1."""
    crop: float = 1.0
    """Least height and width of a crop that keeps an object, relative to the picture's."""
    mosaic: float = 0.0
    """Probability of four pictures on one canvas."""
    mosaic_scale: tuple[float, float] = (0.4, 1.0)
    """`scale` of the four."""
    copy_paste: float = 0.0
    """Probability of objects of another picture pasted over; they need segments."""

    def __post_init__(self) -> None:
        for name in ("scale", "mosaic_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(
                    f"{name} must be (low, high), 0 < low <= high: got {getattr(self, name)}"
                )
        shares = (
            *("horizontal_flip", "vertical_flip", "brightness", "contrast", "saturation"),
            *("distort", "expand", "patch", "crop", "mosaic", "copy_paste"),
        )
        for name in shares:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1: got {getattr(self, name)}")
        if not self.crop > 0:
            raise ValueError(f"crop must be above 0: got {self.crop}")
        if not all(0 <= share <= 1 for share in self.hsv):
            raise ValueError(f"hsv must be three numbers from 0 to 1: got {self.hsv}")

    @property
    def n_pictures(self) -> int:
        """The most pictures whose objects can be on one canvas."""
        return (compose.MOSAIC if self.mosaic else 1) + (1 if self.copy_paste else 0)


def augment(
    rng: np.random.Generator,
    image: Image,
    annotation: Annotation,
    canvas: Size,
    augmentation: Augmentation,
    *,
    partner: Partner | None = None,
    keypoint_pairs: Pairs = (),
) -> tuple[Varied, Annotation]:
    """One random variant of a picture.

    In this order: mosaic, sheet, patch, crop, scale, turn, flips, pasted objects, colours.

    Args:
      rng: The randomness of this image.
      image: The picture.
      annotation: Its objects.
      canvas: (height, width) that the result fits.
      augmentation: What to vary.
      partner: Draws another picture of the set; mosaic and copy-paste need it.
      keypoint_pairs: Indices of keypoints that a mirror image swaps.

    Returns:
      The picture, and the annotation in its pixels. Objects out of view are gone; those with less
      than a quarter of their box in view are difficult, unless the one object is the picture.
    """
    picture = _composed(
        rng,
        (image, annotation),
        canvas,
        augmentation,
        partner=partner,
        keypoint_pairs=keypoint_pairs,
    )
    return _colored(rng, picture[0], augmentation), picture[1]


def _composed(
    rng: np.random.Generator,
    picture: Picture,
    canvas: Size,
    options: Augmentation,
    *,
    partner: Partner | None,
    keypoint_pairs: Pairs,
) -> Picture:
    """The picture in its view, with what others add to it."""
    if not (options.mosaic or options.copy_paste):
        return _moved(rng, picture, canvas, options, keypoint_pairs=keypoint_pairs)
    if partner is None:
        raise ValueError("mosaic and copy_paste need a partner: got None")
    own = _far(rng, _COMPOSES)
    draws, seeds = own.uniform(size=4).tolist(), own.integers(2**63, size=compose.MOSAIC)
    generators = [np.random.default_rng(seed) for seed in seeds]
    if draws[0] < options.mosaic:
        tiled = dataclasses.replace(options, scale=options.mosaic_scale)
        y, x = (
            max(1, round(side * (CUT[0] + at * (CUT[1] - CUT[0]))))
            for side, at in zip(canvas, draws[1:3], strict=True)
        )
        sources = [picture, *(partner(generator) for generator in generators[1:])]
        tiles = [
            _moved(g, source, canvas, tiled, room=room, keypoint_pairs=keypoint_pairs)
            for g, source, room in zip(
                [rng, *generators[1:]], sources, compose.tile_sizes((y, x), canvas), strict=True
            )
        ]
        picture = compose.mosaic(tiles, (y, x), canvas)
    else:
        picture = _moved(rng, picture, canvas, options, keypoint_pairs=keypoint_pairs)
    if draws[3] < options.copy_paste:
        donor = _moved(
            generators[0],
            partner(generators[0]),
            canvas,
            options,
            room=picture[1].size,
            keypoint_pairs=keypoint_pairs,
        )
        picture = compose.copy_paste(generators[0], picture, donor)
    return picture


def _moved(
    rng: np.random.Generator,
    picture: Picture,
    canvas: Size,
    options: Augmentation,
    *,
    keypoint_pairs: Pairs,
    room: Size | None = None,
) -> Picture:
    """The picture in a random view that fits the room."""
    image, annotation = picture
    flip_x, flip_y = rng.uniform(size=2) < (options.horizontal_flip, options.vertical_flip)
    frame, angle, annotation = _framed(rng, annotation, options)
    low, high = options.scale
    whole = (frame[2] - frame[0], frame[3] - frame[1])
    part, size = windows.scale_jitter(rng, whole, canvas, low=low, high=high, room=room)
    y, x = frame[:2]
    part = (part[0] + y, part[1] + x, part[2] + y, part[3] + x)
    view = transforms.view_of_frame(part, size, annotation.size)
    view = view._replace(angle=angle, flip_x=bool(flip_x), flip_y=bool(flip_y))
    moved = transforms.move_annotation(annotation, view, keypoint_pairs=keypoint_pairs)
    return transforms.render(image, view), transforms.drop_unseen(moved, annotation, view)


def _framed(
    rng: np.random.Generator, annotation: Annotation, options: Augmentation
) -> tuple[Window, float, Annotation]:
    """The part of the plane to show, how far to turn it, and what a patch leaves undecided."""
    frame = (0, 0, *annotation.size)
    if not (options.expand or options.patch or options.crop < 1 or options.rotation):
        return frame, 0.0, annotation
    own = _far(rng, _MOVES)
    expands, patches, turn = own.uniform(size=3).tolist()
    boxes = annotation.boxes[~annotation.crowd]
    if expands < options.expand:
        frame = windows.expand(own, annotation.size)
    if patches < options.patch:
        frame = windows.sample_patch(own, frame, boxes)
        outside = ~windows.holds_centers(frame, annotation.boxes) & ~annotation.crowd
        outside &= not transforms.is_whole(annotation)
        annotation = annotation._replace(difficult=annotation.difficult | outside)
    if options.crop < 1:
        frame = windows.crop_with_object(own, frame, boxes, least=options.crop)
    return frame, (2 * turn - 1) * options.rotation, annotation


def _colored(rng: np.random.Generator, image: Image, options: Augmentation) -> Image:
    image = photometric.color_jitter(
        rng,
        image,
        brightness=options.brightness,
        contrast=options.contrast,
        saturation=options.saturation,
        hue=options.hue,
    )
    if not (any(options.hsv) or options.distort):
        return image
    own = _far(rng, _COLORS)
    hue, saturation, value = options.hsv
    image = photometric.hsv_jitter(own, image, hue=hue, saturation=saturation, value=value)
    return photometric.distort(own, image, probability=options.distort)


def _far(rng: np.random.Generator, steps: int) -> np.random.Generator:
    """A generator that the same image always gets, and that has no draw in common with `rng`."""
    jumped = rng.bit_generator.jumped(steps)  # pyright: ignore - NumPy's generators can.
    return np.random.Generator(jumped)
