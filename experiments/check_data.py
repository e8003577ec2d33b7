"""Looks for all that is wrong or odd in annotated pictures, before anything is trained on them.

Run       python experiments/check_data.py PATH
Writes    OUT/findings.txt: every fault and remark, with file and field; OUT/PART.png: pictures of
          each part with their annotations; exit status 1 where there are faults
"""

import dataclasses
import pathlib
from typing import Annotated

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import tqdm
import tyro

from jaxdet import predictor
from jaxdet.data import check, coco_masks, layouts, sources
from jaxdet.data.records import Source
from jaxdet.geometry import anchors
from jaxdet.metrics import anchor_recall
from jaxdet.training import recipes
from jaxdet.viz import draw, objects

SHOWN = 5  # Places of a kind that are printed; all are written.


@dataclasses.dataclass(frozen=True)
class Config:
    """What to look at."""

    data: Annotated[str, tyro.conf.Positional]
    """A path: a data set in any format that training reads; or tfds:NAME."""
    format: layouts.Format | None = None
    """Of the data, if what is found by itself is wrong."""
    images: pathlib.Path | None = None
    """Folder of the pictures of a JSON or CSV file that lie far from it."""
    data_dir: pathlib.Path = pathlib.Path("data")
    """Where TFDS's data sets are kept."""
    out: pathlib.Path = pathlib.Path("data_check")
    """Where to write."""
    n_pictures: int = 12
    """Pictures drawn of each part."""
    canvases: tuple[tuple[int, int], ...] = ((320, 416), (416, 320))
    """(height, width) of the arrays that training resizes pictures onto."""
    anchor_sizes: tuple[tuple[float, ...], ...] = ((32.0,), (64.0,), (128.0,))
    """Anchors of each level, pixels of the canvas, that are held against the boxes."""
    strides: tuple[int, ...] = (8, 16, 32)
    """Of the levels, pixels."""
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Of the anchors, height / width."""


def main(config: Config) -> dict[str, check.Checked]:
    """Checks, prints, writes; returns what was found by part."""
    path = sources.resolve(config.data, config.data_dir)
    with tqdm.tqdm(unit="look", leave=False) as bar:

        def show(part: str, done: int, total: int) -> None:
            bar.total = total
            bar.set_description(f"looking through {part}", refresh=False)
            bar.update(done - bar.n)

        checked = check.check_data(path, format=config.format, images=config.images, progress=show)
    config.out.mkdir(parents=True, exist_ok=True)
    lines = []
    for part, (source, report) in checked.items():
        print(f"== {part}: {len(report.faults)} faults")
        lines += [f"{part}: fault: {text}" for text in report.faults]
        for text in report.faults[:SHOWN]:
            print(f"  fault: {text}")
        if len(report.faults) > SHOWN:
            print(f"  ... and {len(report.faults) - SHOWN} more")
        for what, places in report.remarks.items():
            lines += [f"{part}: {what}: {place}" for place in places]
        for note in report.notes():
            print(f"  {note}")
        if source is not None and len(source):
            print(sources.describe(dataclasses.replace(source, notes=())))
            print(check.count_table(source))
            print(anchor_table(source, config), flush=True)
            sheet = contact_sheet(source, config.n_pictures)
            if sheet is not None:
                draw.save_png(config.out / f"{part}.png", sheet)
    (config.out / "findings.txt").write_text("".join(f"{line}\n" for line in lines))
    print(f"{len(lines)} findings are in {config.out / 'findings.txt'}.")
    return checked


def anchor_table(source: Source, config: Config) -> str:
    """How well the anchors fit the boxes, by size on the canvas, as lines of text."""
    rows = max(1, *(len(a.labels) for a in source.annotations))
    grids = {
        canvas: jnp.concatenate(
            anchors.pyramid_anchors(
                [(-(-canvas[0] // s), -(-canvas[1] // s)) for s in config.strides],
                canvas,
                config.anchor_sizes,
                config.aspect_ratios,
            )
        )
        for canvas in config.canvases
    }
    best = jax.jit(anchor_recall.best_overlaps)
    overlaps, sides = [], []
    for a in source.annotations:
        scale, canvas = max((min(c[0] / a.size[0], c[1] / a.size[1]), c) for c in config.canvases)
        boxes = (a.boxes * np.float32(scale))[~a.crowd]
        padded = np.zeros((rows, 4), np.float32)
        padded[: len(boxes)] = boxes
        overlaps.append(np.asarray(best(padded, grids[canvas]))[: len(boxes)])
        sides.append(np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)))
    table = anchor_recall.recall_by_size(
        np.concatenate(overlaps), np.concatenate(sides), check.SIZES
    )
    lines = [f"anchors {config.anchor_sizes}: on the canvas, best IoU and recall at 0.5 and 0.7"]
    for name, row in table.items():
        cells = "".join(f"{row[key]:>8.2f}" for key in ("mean", "0.5", "0.7"))
        lines.append(f"  {name:8}{row['boxes']:>8.0f}{cells}")
    return "\n".join(lines)


def contact_sheet(source: Source, n_pictures: int) -> np.ndarray | None:
    """Pictures spread evenly over a source, with all that is known of them."""
    tiles = []
    chosen = np.linspace(0, len(source) - 1, min(n_pictures, len(source))).astype(int)
    for index in np.unique(chosen).tolist():
        try:
            image, a = source[index]
        except sources.DataError:  # A fault, and said already.
            continue
        if a.segments is not None:
            masks = [s and coco_masks.segment_mask(s, a.size) for s in a.segments]
            image = objects.draw_masks(image, masks, a.labels)
        if a.keypoints is not None:
            image = objects.draw_keypoints(image, a.keypoints)
        tile = predictor.draw_truth(image, a, classes=source.classes)
        scale = min(1, 640 / tile.shape[1])
        tiles.append(cv2.resize(tile, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))
    return draw.contact_sheet(tiles, 3) if tiles else None


if __name__ == "__main__":
    found = recipes.run_script(main, Config, description=__doc__ or "")
    raise SystemExit(any(report.faults for _, report in found.values()))
