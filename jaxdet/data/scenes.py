"""Draws scenes of flat shapes, with all that is known about them.

What is drawn is a pure function of the generator passed in. Colour and texture are drawn without
a look at the class, so only the outline tells what an object is. Points are (x, y) in pixels.
"""

import functools
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, Int32, UInt8

CLASSES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "arrow")
VISIBLE_TO_COUNT = 0.4  # Share of its area; an object that shows less is difficult.

_PALETTE = {
    "red": (205, 45, 45),
    "orange": (235, 130, 30),
    "yellow": (235, 215, 60),
    "green": (50, 150, 60),
    "cyan": (60, 195, 205),
    "blue": (45, 75, 200),
    "purple": (130, 55, 165),
    "pink": (235, 130, 180),
    "brown": (115, 75, 45),
    "white": (235, 235, 230),
    "black": (35, 35, 40),
}
_TEXTURES = ("plain", "striped", "dotted", "checked", "speckled", "shaded")
# Turns that carry a class onto itself. Turning by less than one such step looks the same as any
# turn, and leaves no doubt which keypoint is which.
_SYMMETRY: dict[str, int] = dict(zip(CLASSES, (4, 4, 3, 5, 4, 4, 1, 1), strict=True))
_CONTRAST = 105.0  # Least RGB distance of an object's colours from the background's.
_OVERSAMPLE = 4
_TRIES = 12


class Scene(NamedTuple):
    """One picture and its objects, in the order they were painted: back to front."""

    image: UInt8[np.ndarray, "h w 3"]  # RGB.
    boxes: Float32[np.ndarray, "n 4"]  # xyxy pixels, half-open, tight around the mask.
    labels: Int32[np.ndarray, " n"]  # 1..8: CLASSES[label - 1].
    crowd: Bool[np.ndarray, " n"]  # A group of small objects of one class.
    difficult: Bool[np.ndarray, " n"]  # Less than 40 % of the object shows.
    masks: Bool[np.ndarray, "n h w"]  # What shows; no two overlap.
    keypoints: Float32[np.ndarray, "n 5 3"]  # (x, y, visible): centre, top, right, bottom, left.
    caption: str


class _Look(NamedTuple):
    colour: str
    texture: str
    pixels: Float32[np.ndarray, "h w 3"]


class _Thing(NamedTuple):
    label: int
    crowd: bool
    look: _Look
    contours: list[np.ndarray]  # Points [p 2], pixels; holes turn the other way.
    keypoints: Float[np.ndarray, "5 2"]
    least: float  # Share of its area that others must leave in sight.
    mask: Bool[np.ndarray, "h w"]  # As if nothing lay over it.
    area: float  # Pixels, what lies beyond the border included.


def draw_scene(
    rng: np.random.Generator,
    *,
    size: int = 128,
    fewest: int = 1,
    most: int = 8,
    empty: float = 0.02,
    group: float = 0.06,
    radii: tuple[float, float] = (0.085, 0.25),
) -> Scene:
    """Draws a square scene.

    Boxes and masks follow COCO: they hold what shows of an object, not what lies under others or
    beyond the border. A group is one of the objects; its keypoints are 0.

    Args:
      rng: The only source of chance.
      size: Side of the picture, pixels; at least 64.
      fewest: Smallest number of objects, where there are any, but for those that find no place.
      most: Largest number; all from `fewest` on are as frequent.
      empty: Share of scenes without objects.
      group: Share of scenes with a group of small objects.
      radii: Smallest and largest radius of an object that is no group, as shares of `size`.

    Returns:
      The scene.
    """
    if size < 64 or not 1 <= fewest <= most:
        raise ValueError(
            "size must be at least 64, fewest at least 1 and at most `most`. "
            f"Got {size}, {fewest} and {most}."
        )
    if not 0 < radii[0] <= radii[1] <= 0.5:
        raise ValueError(f"radii must be (low, high), 0 < low <= high <= 0.5. Got {radii}.")
    pixels, avoid = _background(rng, size)
    count = 0 if rng.random() < empty else int(rng.integers(fewest, most + 1))
    grouped = rng.random() < group
    things: list[_Thing] = []
    for i in range(count):
        thing = _place(rng, things, avoid, size, radii=radii, crowd=grouped and i == 0)
        if thing is not None:
            pixels = _paint(pixels, thing)
            things.append(thing)
    noise = rng.normal(0.0, rng.uniform(2.0, 8.0), (size, size, 1)).astype(np.float32)
    image = np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)
    return _annotate(image, things)


def _annotate(image: np.ndarray, things: list[_Thing]) -> Scene:
    """What the finished picture shows of each thing."""
    size = image.shape[0]
    masks = _visible([thing.mask for thing in things], size)
    shares = [_share(mask, thing) for mask, thing in zip(masks, things, strict=True)]
    crowd = np.array([thing.crowd for thing in things], bool)
    boxes = [_box(mask) for mask in masks]
    points = [_see(things, i, size) for i in range(len(things))]
    return Scene(
        image=image,
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.array([thing.label for thing in things], np.int32),
        crowd=crowd,
        difficult=(np.array(shares) < VISIBLE_TO_COUNT) & ~crowd,
        masks=masks,
        keypoints=np.array(points, np.float32).reshape(-1, 5, 3),
        caption=_caption(things, np.array(boxes).reshape(-1, 4)),
    )


def _place(
    rng: np.random.Generator,
    things: list[_Thing],
    avoid: np.ndarray,
    size: int,
    *,
    radii: tuple[float, float],
    crowd: bool,
) -> _Thing | None:
    """A new thing where it hides no other too much; None if there is no room."""
    look = _look(rng, avoid, size)
    label = int(rng.integers(1, len(CLASSES) + 1))
    least = rng.uniform(0.15, 0.35) if rng.random() < 0.5 else 0.5
    draw = _group if crowd else functools.partial(_single, radii=radii)
    for _ in range(_TRIES):
        contours, keypoints = draw(rng, CLASSES[label - 1], size)
        mask = _coverage(contours, size) >= 0.5
        new = _Thing(label, crowd, look, contours, keypoints, least, mask, _area(contours))
        stack = [*things, new]
        masks = _visible([thing.mask for thing in stack], size)
        if all(_share(m, thing) >= thing.least for m, thing in zip(masks, stack, strict=True)):
            return new
    return None


def _single(
    rng: np.random.Generator, name: str, size: int, *, radii: tuple[float, float]
) -> tuple[list[np.ndarray], Float[np.ndarray, "5 2"]]:
    """Outline and keypoints of one object: stretched, turned, and moved."""
    radius = np.exp(rng.uniform(*np.log(radii))) * size
    stretch = np.exp(rng.uniform(-0.15, 0.15))
    turn = rng.uniform(-np.pi, np.pi) / _SYMMETRY[name]
    center = rng.uniform(0.5 * radius, size - 0.5 * radius, 2)
    matrix = radius * _rotation(turn) @ np.diag([stretch, 1 / stretch])
    contours, keypoints = _outline(name)
    return [c @ matrix.T + center for c in contours], keypoints @ matrix.T + center


def _group(
    rng: np.random.Generator, name: str, size: int
) -> tuple[list[np.ndarray], Float[np.ndarray, "5 2"]]:
    """Outlines of many small objects in a loose grid; a group has no keypoints."""
    cell = rng.uniform(0.085, 0.11) * size
    rows, columns = rng.integers(3, 6, 2)
    low = rng.uniform(0, size - cell * np.array([columns, rows]))
    contours = []
    for row, column in np.ndindex(int(rows), int(columns)):
        radius = rng.uniform(0.36, 0.42) * cell
        center = low + cell * (np.array([column, row]) + rng.uniform(0.42, 0.58, 2))
        matrix = radius * _rotation(rng.uniform(-np.pi, np.pi))
        contours += [c @ matrix.T + center for c in _outline(name)[0]]
    return contours, np.zeros((5, 2))


@functools.cache
def _outline(name: str) -> tuple[list[np.ndarray], Float[np.ndarray, "5 2"]]:
    """A class in its own frame: contours about the origin, x right, y down, radius about 1."""
    circle, angle = _circle(64), 2 * np.pi * np.arange(64) / 64
    tips = _circle(10) * np.where(np.arange(10) % 2, 0.42, 1.08)[:, None]
    a, b = 0.33, 1.0
    cross = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a)]
    heart_x = 16 * np.sin(angle) ** 3
    heart_y = 13 * np.cos(angle) - 5 * np.cos(2 * angle) - 2 * np.cos(3 * angle) - np.cos(4 * angle)
    arrow = [(0, -1.1), (0.8, -0.1), (0.3, -0.1), (0.3, 1), (-0.3, 1), (-0.3, -0.1), (-0.8, -0.1)]
    contours = {
        "circle": [0.92 * circle],
        "square": [0.85 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])],
        "triangle": [1.12 * _circle(3)],
        "star": [tips],
        "cross": [np.array([*cross, (-b, a), (-b, -a), (-a, -a)])],
        "ring": [circle, 0.55 * circle[::-1]],
        "heart": [np.stack([heart_x, -heart_y - 2.5], -1) / 15.5],
        "arrow": [np.array(arrow)],
    }[name]
    return contours, _keypoints(contours[0])


def _circle(count: int) -> Float[np.ndarray, "count 2"]:
    """Evenly spaced points of the unit circle, clockwise from the top."""
    angle = 2 * np.pi * np.arange(count) / count
    return np.stack([np.sin(angle), -np.cos(angle)], -1)


def _keypoints(contour: np.ndarray) -> Float[np.ndarray, "5 2"]:
    """The origin, and where the rays up, right, down and left leave the outline."""
    points = [np.zeros(2)]
    for ray in np.array([(0, -1), (1, 0), (0, 1), (-1, 0)], float):
        along = contour @ ray
        across = contour @ np.array([-ray[1], ray[0]])
        along_next, across_next = np.roll(along, -1), np.roll(across, -1)
        # Of the edges that cross the ray's line, take the crossing farthest out.
        cross = (across <= 1e-9) != (across_next <= 1e-9)
        part = across[cross] / (across - across_next)[cross]
        points.append(ray * np.max(along[cross] + part * (along_next - along)[cross]))
    return np.stack(points)


def _rotation(angle: float) -> Float[np.ndarray, "2 2"]:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([(c, -s), (s, c)])


def _coverage(contours: list[np.ndarray], size: int) -> Float32[np.ndarray, "h w"]:
    """Share of each pixel that lies inside, 0 to 1."""
    canvas = np.zeros((size * _OVERSAMPLE,) * 2, np.uint8)
    # fillPoly counts from pixel centres, and takes 4 more bits of the coordinates.
    points = [np.rint((c * _OVERSAMPLE - 0.5) * 16).astype(np.int32) for c in contours]
    cv2.fillPoly(canvas, points, 255, shift=4)
    small = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)
    return small.astype(np.float32) / 255


def _area(contours: list[np.ndarray]) -> float:
    """Shoelace area, pixels; holes turn the other way and take away from it."""
    total = 0.0
    for contour in contours:
        (x, y), (x_next, y_next) = contour.T, np.roll(contour, -1, 0).T
        total += 0.5 * float(x @ y_next - y @ x_next)
    return total


def _visible(masks: list[np.ndarray], size: int) -> Bool[np.ndarray, "n h w"]:
    """What is left of each mask under the ones after it."""
    free = np.ones((size, size), bool)
    shown = np.zeros((len(masks), size, size), bool)
    for i in reversed(range(len(masks))):
        shown[i] = masks[i] & free
        free &= ~masks[i]
    return shown


def _share(shown: np.ndarray, thing: _Thing) -> float:
    """Visible share of the area; the area counts what lies beyond the border."""
    return np.count_nonzero(shown) / thing.area


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The tight half-open box of a mask that is not empty."""
    (rows,), (columns,) = np.nonzero(mask.any(1)), np.nonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _see(things: list[_Thing], i: int, size: int) -> Float[np.ndarray, "5 3"]:
    """Keypoints of thing i, visible where inside the picture and under no later thing."""
    points = things[i].keypoints
    if things[i].crowd:
        return np.zeros((5, 3))
    columns, rows = np.floor(points).astype(int).T
    inside = (columns >= 0) & (columns < size) & (rows >= 0) & (rows < size)
    over = np.zeros((size, size), bool)
    for thing in things[i + 1 :]:
        over |= thing.mask
    hidden = over[np.clip(rows, 0, size - 1), np.clip(columns, 0, size - 1)]
    return np.column_stack([points, inside & ~hidden])


def _background(
    rng: np.random.Generator, size: int
) -> tuple[Float32[np.ndarray, "h w 3"], Float[np.ndarray, "a 3"]]:
    """A textured ground with strokes on it, and the colours that objects keep away from."""
    base = rng.uniform(20, 235, 3)
    other = np.clip(base + rng.uniform(-45, 45, 3), 0, 255)
    pixels = _mix(base, other, _pattern(rng, str(rng.choice(_TEXTURES)), size))
    clouds = cv2.resize(rng.random((5, 5), np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    pixels += 30 * (clouds[..., None] - 0.5)
    for _ in range(rng.integers(0, 6)):
        ends = np.rint(rng.uniform(-0.1, 1.1, (3, 2)) * size * 16).astype(np.int32)
        colour = np.clip(base + rng.uniform(-70, 70, 3), 0, 255).tolist()
        cv2.polylines(pixels, [ends], False, colour, int(rng.integers(1, 4)), cv2.LINE_AA, 4)
    return pixels, np.stack([base, other])


def _look(rng: np.random.Generator, avoid: np.ndarray, size: int) -> _Look:
    """Two colours that stand out from the background, in a texture."""
    first, second = _stand_out(rng, avoid), _stand_out(rng, avoid)
    texture = str(rng.choice(_TEXTURES))
    if texture == "plain":
        second = first
    return _Look(first[0], texture, _mix(first[1], second[1], _pattern(rng, texture, size)))


def _mix(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> Float32[np.ndarray, "h w 3"]:
    step = (second - first).astype(np.float32)
    return first.astype(np.float32) + weight[..., None] * step


def _stand_out(rng: np.random.Generator, avoid: np.ndarray) -> tuple[str, np.ndarray]:
    """A named colour, varied a little, far from those to avoid; the farthest if none is."""
    found = []
    for name in rng.permutation(list(_PALETTE)):
        colour = np.clip(np.array(_PALETTE[str(name)]) + rng.uniform(-20, 20, 3), 0, 255)
        gap = float(np.min(np.linalg.norm(avoid - colour, axis=-1)))
        if gap >= _CONTRAST:
            return str(name), colour
        found.append((gap, str(name), colour))
    return max(found, key=lambda entry: entry[0])[1:]


def _pattern(rng: np.random.Generator, texture: str, size: int) -> Float32[np.ndarray, "h w"]:
    """Weight of the second colour, 0 to 1."""
    if texture == "plain":
        return np.zeros((size, size), np.float32)
    if texture == "speckled":
        grain = int(rng.integers(2, 5))
        coarse = (rng.random((size // grain + 1,) * 2) < 0.4).astype(np.float32)
        large = cv2.resize(coarse, None, fx=grain, fy=grain, interpolation=cv2.INTER_NEAREST)
        return large[:size, :size]
    c, s = _rotation(rng.uniform(-np.pi, np.pi))[0]
    along = np.arange(size, dtype=np.float32)
    u, v = along * np.float32(c) + along[:, None] * np.float32(s), along * np.float32(s)
    v = along[:, None] * np.float32(c) - v
    wave = np.float32(np.pi / 40 if texture == "shaded" else 2 * np.pi / rng.uniform(6, 12))
    phase = rng.uniform(0, 2 * np.pi, 2).astype(np.float32)
    u, v = np.sin(u * wave + phase[0]), np.sin(v * wave + phase[1])
    if texture == "shaded":
        return 0.5 + 0.5 * u
    hard = {"striped": u, "checked": u * v, "dotted": np.minimum(u, v) - 0.1}[texture]
    return np.clip(0.5 + 1.5 * hard, 0, 1)


def _paint(pixels: np.ndarray, thing: _Thing) -> Float32[np.ndarray, "h w 3"]:
    cover = _coverage(thing.contours, pixels.shape[0])[..., None]
    return pixels + cover * (thing.look.pixels - pixels)


def _caption(things: list[_Thing], boxes: np.ndarray) -> str:
    """The two largest objects and how they lie."""
    if not things:
        return "an empty scene"
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = np.argsort(-areas, kind="stable")[:2]
    names = [_name(things[i]) for i in order]
    if len(names) == 1:
        return names[0]
    centers = (boxes[order, :2] + boxes[order, 2:]) / 2
    right, down = centers[0] - centers[1]
    if abs(right) > abs(down):
        return f"{names[0]} {'right' if right > 0 else 'left'} of {names[1]}"
    return f"{names[0]} {'below' if down > 0 else 'above'} {names[1]}"


def _name(thing: _Thing) -> str:
    texture = "" if thing.look.texture == "plain" else f"{thing.look.texture} "
    words = f"{thing.look.colour} {texture}{CLASSES[thing.label - 1]}"
    if thing.crowd:
        return f"a group of {words}" + ("es" if words.endswith("s") else "s")
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
