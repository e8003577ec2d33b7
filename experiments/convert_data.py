"""Annotated pictures of any format to COCO JSON, or to array_record files.

Run       python experiments/convert_data.py PATH --out OUT
          python experiments/convert_data.py PATH --out OUT --to array_record
Writes    coco: OUT/annotations/instances_PART.json, captions_PART.json, pictures in OUT/PART/;
          array_record: OUT/converted/1.0.0/, which TFDS opens (tfds.builder_from_directory)
"""

import dataclasses
import pathlib
from typing import Annotated, Literal

import tyro

from jaxdet.data import arrays, coco_write, layouts, sources
from jaxdet.data.records import Source
from jaxdet.data.reports import Report
from jaxdet.training import recipes


@dataclasses.dataclass(frozen=True)
class Config:
    """What to convert, and to what."""

    data: Annotated[str, tyro.conf.Positional]
    """A path: a data set in any format that training reads; or tfds:NAME."""
    out: pathlib.Path
    """Where to write; there must be no data set yet."""
    to: Literal["coco", "array_record"] = "coco"
    """What to write."""
    format: layouts.Format | None = None
    """Of the data, if what is found by itself is wrong."""
    images: pathlib.Path | None = None
    """Folder of the pictures of a JSON or CSV file that lie far from it."""
    data_dir: pathlib.Path = pathlib.Path("data")
    """Where TFDS's data sets are kept."""
    skip_bad: bool = False
    """Leave out pictures with faults, in place of stopping."""


def main(config: Config) -> dict[str, Source]:
    """Reads and writes all parts; returns what was read."""
    parts = read_parts(config)
    if config.to == "coco":
        coco_write.write_coco(parts, config.out)
    else:
        arrays.write_arrays(parts, config.out)
    print(f"Written to {config.out}.")
    return parts


def read_parts(config: Config) -> dict[str, Source]:
    """All parts, with the classes of all of them, looked through."""
    path = sources.resolve(config.data, config.data_dir)
    names = layouts.find_parts(
        path, layouts.Options(Report(), None, config.images), format=config.format
    )
    if config.to == "coco":
        coco_write.check_free(config.out, names)
    else:
        arrays.check_free(config.out)
    parts: dict[str, Source] = {}
    for part in sorted(names, key="trainval".__eq__):  # VOC's holds those of train and val again.
        report = Report()
        classes = next(iter(parts.values())).classes if parts else None
        options = layouts.Options(report, classes, config.images)
        source = layouts.find_parts(path, options, format=config.format)[part]()
        if part == "trainval":
            known = {a.name for other in parts.values() for a in other.annotations}
            if known.issuperset(a.name for a in source.annotations):
                print(f"{part}: left out, all of its pictures are in the other parts.", flush=True)
                continue
        parts[part] = sources.without_faults(source, report, skip_bad=config.skip_bad)
        print(sources.describe(parts[part]), flush=True)
    return parts


if __name__ == "__main__":
    recipes.run_script(
        main, Config, description=__doc__ or "", faults=(ValueError, FileExistsError)
    )
