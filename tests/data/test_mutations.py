"""Spoiled files through every reader: a named error or a counted skip, and nothing else."""

import json
import pathlib
import re
import resource
import shutil
import signal

import numpy as np
import pytest
from small_sets import FORMATS

from jaxdet.data import arrays, coco_write, layouts, sources
from jaxdet.data.coco_masks import segment_mask
from jaxdet.data.records import DataError
from jaxdet.data.reports import Report

KINDS = (*FORMATS, "tfds", "keypoints")
FEW, MANY = 288, 2000
SECONDS, MEGABYTES = 20, 1500

NUMBERS = ("NaN", "1e999", "-1", "0", "1e300", "-1e300", "1" + "0" * 40, "0.5", "null", '"x"', "[]")
TEXTS = ("../../../outside.png", "/etc/passwd", "", "\\u0000", "x" * 5000, "cat", "..", "\\n")


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A folder with the small set in every format; written when asked for."""
    root = tmp_path_factory.mktemp("sets")

    def folder(kind, write_set, write_coco, write_picture):
        path = root / kind.replace(" ", "_")
        if path.exists():
            return path / "converted" / "1.0.0" if kind == "tfds" else path
        if kind == "keypoints":
            spec = {"a.png": [(5, 6, 10, 20, 3)], "b.png": [(1, 1, 9, 9, 3)]}
            for name in spec:
                write_picture(path / name)
            data = write_coco(path / "x.json", spec)
            data["categories"][0]["keypoints"] = ["left", "right"]
            for row in data["annotations"]:
                row["keypoints"] = [6, 7, 2, 8, 9, 1]
                row["segmentation"] = {"size": [40, 60], "counts": [100, 50, 2250]}
            (path / "x.json").write_text(json.dumps(data))
        elif kind == "tfds":
            write_set(root / "for_tfds", "coco")
            source = sources.open_folder(root / "for_tfds", split="train")
            path = arrays.write_arrays({"train": source}, path)
        else:
            write_set(path, kind)
        return path

    return folder


def flip_bits(rng, data):
    spoiled = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        spoiled[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    return bytes(spoiled)


def truncate(rng, data):
    return data[: int(rng.integers(len(data)))]


def repeat(rng, data):
    start, end = np.sort(rng.integers(0, len(data) + 1, 2)).tolist()
    return data[:end] + data[start:end] * int(rng.integers(1, 4)) + data[end:]


def change_number(rng, data):
    return _replace(rng, data, rb"-?\d+(\.\d+)?", NUMBERS)


def change_text(rng, data):
    return _replace(rng, data, rb'(?<=")[^"\n]*(?=")|(?<=>)[^<>\n]+(?=<)|(?<=,)[^,\n]+', TEXTS)


def change_type(rng, data):
    return _replace(
        rng, data, rb"\[[^\[\]]*\]|\{[^{}]*\}|\"[^\"]*\"", ("3", "null", "{}", "[]", "[[[]]]")
    )


def enlarge(rng, data):
    """The size in the header of a PNG; elsewhere four bytes of ones."""
    at = 16 if data.startswith(b"\x89PNG") else int(rng.integers(len(data)))
    return data[:at] + b"\x7f\xff\xff\xff" + data[at + 4 :]


def _replace(rng, data, pattern, values):
    places = list(re.finditer(pattern, data))
    if not places:
        return flip_bits(rng, data)
    place = places[int(rng.integers(len(places)))]
    value = str(rng.choice(np.array(values, object))).encode()
    return data[: place.start()] + value + data[place.end() :]


CHANGES = (flip_bits, truncate, repeat, change_number, change_text, change_type, enlarge)


def use_all(path, out):
    """Reads, looks through, draws and writes all there is; returns how many pictures there were."""
    n_used = 0
    names = layouts.find_parts(path, layouts.Options(Report()))
    for part in names:
        report = Report()
        source = layouts.find_parts(path, layouts.Options(report))[part]()
        source = sources.without_faults(source, report, skip_bad=True)
        sources.describe(source)
        for annotation in source.annotations:
            assert (annotation.labels >= 1).all()
            assert (annotation.labels <= len(source.classes)).all()
            assert np.isfinite(annotation.boxes).all()
            limit = np.array([*annotation.size[::-1]] * 2)
            assert (annotation.boxes >= 0).all() and (annotation.boxes <= limit).all()
            for segment in annotation.segments or ():
                if segment is not None:
                    assert segment_mask(segment, annotation.size).shape == annotation.size
        coco_write.write_coco({"part": source}, out)
        shutil.rmtree(out)
        n_used += len(source)
    return n_used


def tree(root):
    return {p: p.stat().st_size for p in root.rglob("*") if p.is_file()}


@pytest.fixture
def survive(sets, tmp_path, write_set, write_coco, write_picture):
    """Spoils a file of a set and uses the set: `survive(seed)`; the outcome in a word."""

    def hang(*_):
        raise TimeoutError(f"more than {SECONDS} s")

    def run(seed):
        rng = np.random.default_rng(seed)
        kind = KINDS[seed % len(KINDS)]
        whole = sets(kind, write_set, write_coco, write_picture)
        path = tmp_path / "deep" / "spoiled"
        shutil.copytree(whole, path)
        files = sorted(p for p in path.rglob("*") if p.is_file() and p.stat().st_size)
        # Annotations are few among pictures, and more is to be found in them.
        notes = [p for p in files if p.suffix not in (".png", ".jpg")] or files
        target = notes if rng.uniform() < 0.75 else files
        file = target[int(rng.integers(len(target)))]
        change = CHANGES[int(rng.integers(len(CHANGES)))]
        file.write_bytes(change(rng, file.read_bytes()))
        before = tree(tmp_path)
        old = signal.signal(signal.SIGALRM, hang)
        signal.alarm(SECONDS)
        try:
            outcome = f"{use_all(path, tmp_path / 'deep' / 'out')} pictures"
        except DataError:
            outcome = "refused"
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, old)
            shutil.rmtree(tmp_path / "deep" / "out", ignore_errors=True)
        assert tree(tmp_path) == before, "wrote outside of its folder"
        shutil.rmtree(path)
        return kind, outcome

    return run


def run_many(survive, seeds):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = [survive(seed) for seed in seeds]
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024
    assert grown < MEGABYTES
    return outcomes


def test_some_spoiled_files(survive):
    outcomes = run_many(survive, range(FEW))
    for kind in KINDS:  # Some changes do no harm, others cost a picture or all.
        assert len({outcome for name, outcome in outcomes if name == kind}) > 1, kind
    assert 0 < sum(outcome == "refused" for _, outcome in outcomes) < len(outcomes) / 2


@pytest.mark.slow
def test_many_spoiled_files(survive):
    run_many(survive, range(FEW, FEW + MANY))


def test_whole_files_are_not_refused(sets, tmp_path, write_set, write_coco, write_picture):
    for kind in KINDS:
        path = pathlib.Path(sets(kind, write_set, write_coco, write_picture))
        assert use_all(path, tmp_path / "out") == (2 if kind in ("keypoints", "tfds") else 3)
