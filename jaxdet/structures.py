"""The records that cross layers: fixed sizes, padded, NumPy on the host and JAX on the device.

Shape letters, used in the whole package:
  b  images in a batch      n  objects or boxes of an image    m  anchors, proposals or rows
  h  height, pixels         w  width, pixels                   c  channels      k  classes
  s  side of a mask         j  keypoints of an object

Boxes are (x1, y1, x2, y2), float32, absolute pixels of the array they are about, half-open, no
`+ 1`. Sizes are (height, width). Labels: 0 is background, 1..k are objects. Rows with
`valid == False` are padding: zeros that no result depends on.
"""

from typing import Any, NamedTuple

from jaxtyping import Bool, Float32, Int32, Shaped


class Proposals(NamedTuple):
    """Class-agnostic boxes that may hold an object, best first."""

    boxes: Float32[Any, "b n 4"]
    scores: Float32[Any, "b n"]  # Any increasing measure of objectness.
    valid: Bool[Any, "b n"]


class Images(NamedTuple):
    """Pictures in the top left corner of one canvas."""

    pixels: Shaped[Any, "b h w 3"]  # RGB, 0 to 255; uint8, or float32 after a resize.
    sizes: Int32[Any, "b 2"]  # (height, width) of the picture within the canvas.
    proposals: Proposals | None = None  # From outside, for systems that do not make their own.


class Instances(NamedTuple):
    """Ground truth objects, in pixels of the canvas."""

    boxes: Float32[Any, "b n 4"]
    labels: Int32[Any, "b n"]  # 1..k; 0 where not valid.
    valid: Bool[Any, "b n"]
    crowd: Bool[Any, "b n"]  # A region of many objects; what lies inside is no mistake.
    difficult: Bool[Any, "b n"]  # One object, too hard to be counted for or against.
    masks: Bool[Any, "b n s s"] | None = None  # Of the box's frame; all False where not known.
    keypoints: Float32[Any, "b n j 3"] | None = None  # x, y, 0: not labelled, 1: hidden, 2: seen.

    @property
    def objects(self) -> Bool[Any, "*b n"]:
        """Rows to be found: no padding, crowd or difficult object."""
        return self.valid & ~self.crowd & ~self.difficult

    @property
    def regions(self) -> Bool[Any, "*b n"]:
        """Rows in which nothing is a mistake: crowds and difficult objects."""
        return self.valid & (self.crowd | self.difficult)


class Batch(NamedTuple):
    """What a training or evaluation step reads."""

    images: Images
    instances: Instances
    records: Int32[Any, " b"]  # Index in the data source; -1 where the batch is padded.
    positions: Int32[Any, " b"]  # Index in the *global* batch: randomness belongs to an image.
    keys: Shaped[Any, " b"] | None = None  # jax.random keys; the step folds them from `positions`.


class Detections(NamedTuple):
    """Final boxes in pixels of the array they were found in, best first."""

    boxes: Float32[Any, "b n 4"]
    scores: Float32[Any, "b n"]  # 0 to 1.
    labels: Int32[Any, "b n"]  # 1..k; 0 where not valid.
    valid: Bool[Any, "b n"]
