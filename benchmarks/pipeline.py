"""Images a second of the input pipeline, beside torchvision's transforms v2 with its DataLoader.

Does      both read the same JPEG files and boxes, decode each time, mirror, scale from 0.5 to 1.5,
          crop or pad to one canvas, vary brightness, contrast and saturation, leave out boxes
          without area, and stack batches. Rounds of both take turns; torchvision is left out where
          it is not installed.
Run       python benchmarks/pipeline.py
          python benchmarks/pipeline.py --data FOLDER --canvas 480 640
Columns   images/s: median of the rounds; range: slowest and fastest round
"""

import contextlib
import dataclasses
import functools
import importlib.util
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import cv2
import numpy as np

from jaxdet.data import pipeline
from jaxdet.data.augment import Augmentation
from jaxdet.data.pictures import PictureFiles
from jaxdet.data.records import Annotation, Source
from jaxdet.training import recipes

VARIED = Augmentation(scale=(0.5, 1.5), brightness=0.2, contrast=0.2, saturation=0.2)
N_OBJECTS = 8  # A picture.
WARM_UP = 5  # Batches: more than are read ahead.
MEMORY = "pictures in memory"

Start = Callable[[], contextlib.AbstractContextManager[Iterable[Any]]]


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure."""

    data: pathlib.Path | None = None
    """Folder of JPEG files, searched through; pictures of 640 x 480 are drawn if None."""
    canvas: tuple[int, int] = (480, 640)
    """(height, width) of a batch's pictures."""
    batch_size: int = 16
    readers: int = 2
    """Threads or processes that read."""
    rounds: int = 5
    batches: int = 12
    """Timed in each round."""


def draw_pictures(folder: pathlib.Path, n: int = 96) -> None:
    """Soft shapes with some grain, about as large as photographs are."""
    rng = np.random.default_rng(0)
    for number in range(n):
        low = rng.integers(0, 256, (30, 40, 3)).astype(np.uint8)
        soft = cv2.resize(low, (640, 480), interpolation=cv2.INTER_CUBIC).astype(float)
        pixels = np.clip(soft + rng.normal(0, 6, soft.shape), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{number:04d}.jpg"), pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])


def read_source(folder: pathlib.Path) -> Source:
    """The folder's pictures with random boxes."""
    paths = tuple(sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg")))
    if not paths:
        raise ValueError(f"data must hold JPEG files: got {folder}")
    read, rng, annotations = PictureFiles(paths), np.random.default_rng(0), []
    for number, path in enumerate(paths):
        height, width = read(number).shape[:2]
        low = rng.uniform(0, 0.7, (N_OBJECTS, 2))
        high = low + rng.uniform(0.05, 0.3, (N_OBJECTS, 2))
        boxes = np.hstack([low, high]).astype(np.float32) * np.float32([width, height] * 2)
        labels, no = np.ones(N_OBJECTS, np.int32), np.zeros(N_OBJECTS, bool)
        annotations.append(Annotation(number, path.name, (height, width), boxes, labels, no, no))
    return Source(str(folder), ("thing",), tuple(annotations), read)


@contextlib.contextmanager
def ours(
    config: Config, source: Source, *, threads: int, workers: int, cache_bytes: int
) -> Iterator[Iterable[Any]]:
    """An endless reader of batches of jaxdet's."""
    dataset = pipeline.train_pipeline(
        source,
        canvases=(config.canvas,),
        batch_size=config.batch_size,
        seed=0,
        augmentation=VARIED,
        cache_bytes=cache_bytes,
    )
    with contextlib.closing(pipeline.iterate(dataset, threads=threads, workers=workers)) as reader:  # type: ignore[type-var]
        yield reader


class TorchPictures:
    """The same files and boxes as torchvision's examples do it."""

    def __init__(self, source: Source, canvas: tuple[int, int]) -> None:
        from torchvision.transforms import v2

        self.source = source
        self.transforms = v2.Compose(
            [
                v2.RandomHorizontalFlip(0.5),
                v2.ScaleJitter(target_size=canvas, scale_range=VARIED.scale, antialias=True),
                v2.RandomCrop(canvas, pad_if_needed=True),
                v2.ColorJitter(VARIED.brightness, VARIED.contrast, VARIED.saturation),
                v2.SanitizeBoundingBoxes(),
            ]
        )

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        import torch
        from torchvision import io, tv_tensors

        index = index % len(self.source)
        annotation = self.source.annotations[index]
        path = str(self.source.read.paths[index])  # type: ignore[attr-defined]
        image = tv_tensors.Image(io.decode_image(path, io.ImageReadMode.RGB))
        boxes = tv_tensors.BoundingBoxes(  # type: ignore[call-overload]
            torch.from_numpy(annotation.boxes), format="XYXY", canvas_size=annotation.size
        )
        labels = torch.from_numpy(annotation.labels)
        return self.transforms(image, {"boxes": boxes, "labels": labels})


def collate(examples: list[tuple[Any, Any]]) -> tuple[Any, list[Any]]:
    """Pictures are of one size; objects are left in lists."""
    import torch

    images, targets = zip(*examples, strict=True)
    return torch.stack(images), list(targets)


@contextlib.contextmanager
def theirs(config: Config, source: Source) -> Iterator[Iterable[Any]]:
    """An endless reader of batches of torchvision's."""
    from torch.utils import data

    loader = data.DataLoader(
        TorchPictures(source, config.canvas),  # type: ignore[arg-type]
        batch_size=config.batch_size,
        num_workers=config.readers,
        collate_fn=collate,
    )
    yield iter(loader)


def measure(config: Config, start: Start, *, warm_up: int) -> float:
    """Images a second of one round, after some batches that are not timed."""
    with start() as reader:
        batches = iter(reader)
        for _ in range(warm_up):
            next(batches)
        begun = time.perf_counter()
        for _ in range(config.batches):
            next(batches)
        return config.batch_size * config.batches / (time.perf_counter() - begun)


def main(config: Config) -> None:
    """Measures and prints."""
    with tempfile.TemporaryDirectory() as folder:
        if config.data is None:
            draw_pictures(pathlib.Path(folder))
        source = read_source(config.data or pathlib.Path(folder))
        n = config.readers
        read = functools.partial(ours, config, source)
        cases: dict[str, Start] = {
            f"jaxdet, {n} threads": functools.partial(read, threads=n, workers=0, cache_bytes=0),
            f"jaxdet, {n} processes": functools.partial(read, threads=1, workers=n, cache_bytes=0),
            f"jaxdet, {n} threads, {MEMORY}": functools.partial(
                read, threads=n, workers=0, cache_bytes=1 << 30
            ),
        }
        if importlib.util.find_spec("torchvision"):
            cases[f"torchvision, {n} processes"] = functools.partial(theirs, config, source)
        speeds: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(config.rounds):
            for name, start in cases.items():
                epoch = len(source) // config.batch_size if name.endswith(MEMORY) else 0
                speeds[name].append(measure(config, start, warm_up=WARM_UP + epoch))
    print(f"{len(source)} pictures, canvas {config.canvas}, batches of {config.batch_size}")
    print(f"{'':42}{'images/s':>10}{'range':>16}")
    for name, values in speeds.items():
        print(f"{name:42}{np.median(values):10.0f}{min(values):10.0f} to {max(values):.0f}")


if __name__ == "__main__":
    recipes.run_script(main, Config, description=__doc__ or "")
