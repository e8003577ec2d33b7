"""Detectors from state dicts: which network it is, told by the tensors, and its variables."""

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdet.data.resize import ShortSide
from jaxdet.features import networks
from jaxdet.proposals.rpn import ProposalOptions
from jaxdet.structures import Images
from jaxdet.systems import architectures
from jaxdet.systems.architectures import Architecture
from jaxdet.systems.faster_rcnn import DetectOptions
from jaxdet.training import checkpoints
from jaxdet.training import state as states
from jaxdet.weights import description, download, families, files, published, torchvision
from jaxdet.weights.description import Description
from jaxdet.weights.tensor_pickle import WeightsError


class Detector(NamedTuple):
    """A detector, whole."""

    description: Description
    variables: Any


def load(
    weights: str | pathlib.Path,
    *,
    norm_epsilon: float | None = None,
    canvases: Sequence[tuple[int, int]] | ShortSide | None = None,
    classes: Sequence[str] | None = None,
    progress: Callable[[int, int | None], Any] | None = None,
) -> Detector:
    """Opens a published detector, a file of weights, or a run.

    Args:
      weights: A detector's name in `published`; a file: `.pth`, `.pt` or `.safetensors`; or a
        folder, as for `load_checkpoint`.
      norm_epsilon: Added to the variances of batch norms. If None, 0 for the file of the published
        `fasterrcnn_resnet50_fpn`, as torchvision does when it loads that one (overwrite_eps), and
        1e-5 for all others.
      canvases: Sizes that pictures are given; torchvision's of this model if None.
      classes: Names of the labels; those of COCO for 90 of them, else numbers, if None.
      progress: Of a download; see `download.fetch`.

    Returns:
      The detector. A safetensors file that `save` wrote knows all of this itself, unless told
      otherwise here.

    Raises:
      WeightsError: Where there is no such file, or it is of another kind; the message says which
        tensors do not fit and what the file seems to be.
      ValueError: Where a name is none, or that of a classifier.
    """
    path = pathlib.Path(weights)
    if path.is_dir():
        found, variables = load_checkpoint(path)
        try:
            return Detector(_told(found, norm_epsilon, canvases, classes), variables)
        except ValueError as fault:
            raise WeightsError(f"{path}: {fault}") from fault
    if path.suffix not in files.SUFFIXES:
        url = published.url(str(weights))
        if str(weights).partition(":")[0] in networks.PUBLISHED:
            known = dict.fromkeys(key.partition(":")[0] for key in published.FILES)
            others = ", ".join(name for name in known if name not in networks.PUBLISHED)
            raise ValueError(f"{weights}: is a published classifier; detectors are {others}.")
        path = download.fetch(url, progress=progress)
    state_dict, texts = files.read(path)
    try:
        found = description.from_texts(texts) or describe(state_dict, file_name=path.name)
        found = _told(found, norm_epsilon, canvases, classes)
        shapes = variable_shapes(len(found.classes), found.architecture)
        return Detector(found, torchvision.from_state_dict(state_dict, shapes))
    except ValueError as fault:
        raise WeightsError(f"{path}: {fault}") from fault


def _told(
    found: Description,
    norm_epsilon: float | None,
    canvases: Sequence[tuple[int, int]] | ShortSide | None,
    classes: Sequence[str] | None,
) -> Description:
    """The description with what the caller knows better."""
    if norm_epsilon is not None:
        if not isinstance(found.architecture, Architecture):
            raise WeightsError("norm_epsilon is of a Faster R-CNN's architecture alone.")
        changed = dataclasses.replace(found.architecture, norm_epsilon=norm_epsilon)
        found = found._replace(architecture=changed)
    if canvases is not None:
        rule = isinstance(canvases, ShortSide)
        found = found._replace(canvases=canvases if rule else tuple(canvases))
    if classes is not None:
        if len(classes) != len(found.classes):
            raise WeightsError(f"it knows {len(found.classes)} classes, not {len(classes)}.")
        found = found._replace(classes=tuple(classes))
    return found


def load_checkpoint(path: str | pathlib.Path) -> Detector:
    """Opens what training wrote.

    Args:
      path: A run, a series of checkpoints or one of them; see `checkpoints.load_variables`.

    Raises:
      ValueError: Where there is no checkpoint, or one of another kind.
    """
    variables, metadata = checkpoints.load_variables(path)
    try:
        return Detector(description.from_metadata(metadata), variables)
    except ValueError as fault:
        raise ValueError(f"{path}: {fault}") from fault


def save_checkpoint(path: str | pathlib.Path, detector: Detector) -> None:
    """Writes a detector as training would: for `load_checkpoint`, not for going on with.

    Args:
      path: A folder for the checkpoint, without one so far.
      detector: What to write.
    """
    path = pathlib.Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"path must be a new or empty folder. Got {path}")
    variables = {name: tree for name, tree in detector.variables.items() if tree}
    state = states.init_state(jax.random.key(0), variables, optax.identity())
    series = checkpoints.Checkpoints(
        path / "checkpoints", metadata=description.to_metadata(detector.description)
    )
    series.save_last(state)
    series.close()


def save(path: str | pathlib.Path, detector: Detector) -> None:
    """Writes a detector's state dict, named as torchvision's; the suffix says in which format.

    A `.safetensors` file holds the description too; a `.pth` has no place for it.

    Args:
      path: The file, made or replaced.
      detector: What to write.

    Raises:
      ValueError: Where a `.pth` would be of a system that torchvision does not have: nobody could
        read it.
    """
    system = description.name_of(detector.description.architecture)
    if pathlib.Path(path).suffix in files.TORCH and system not in ("faster_rcnn", "classifier"):
        raise ValueError(
            f"path must end in {files.SAFE}: torchvision has no {system}, and {files.TORCH[0]} no "
            f"place for what one is. Got {path}"
        )
    text = json.dumps(description.to_metadata(detector.description))
    state_dict = torchvision.to_state_dict(detector.variables)
    files.write(path, state_dict, texts={description.METADATA: text})


def describe(state_dict: Mapping[str, np.ndarray], *, file_name: str = "") -> Description:
    """Tells a Faster R-CNN of torchvision by its tensors.

    Args:
      state_dict: Arrays by name.
      file_name: Of the file; a published one has settings that no tensor shows.

    Raises:
      WeightsError: Where it is none; says what it seems to be.
    """
    found = torchvision.tidy(state_dict)
    count = functools.partial(families.count, found)
    scores = found.get("roi_heads.box_predictor.cls_score.weight")
    logits = found.get("rpn.head.cls_logits.weight")
    has_other_heads = any(n.startswith(("roi_heads.mask_", "roi_heads.keypoint_")) for n in found)
    if scores is None or logits is None or scores.ndim != 2 or has_other_heads:
        family = families.describe(found)
        hint = (
            " classifier.py --weights begins with those it knows." if "classifier" in family else ""
        )
        raise WeightsError(f"no Faster R-CNN: it seems to be {family}.{hint}")
    key = published.of_file(file_name) or ""
    counted = any(re.search(r"backbone\.body\..*num_batches_tracked$", n) for n in state_dict)
    common = Architecture(
        norm="batch" if counted else "frozen",
        norm_epsilon=0.0 if key.startswith("fasterrcnn_resnet50_fpn:") else 1e-5,
        pyramid_features=logits.shape[1],
        pyramid_norm="backbone.fpn.inner_blocks.0.1.weight" in found,
        rpn_convs=count(r"rpn\.head\.conv\.(\d+)\.0\.weight"),
        head_convs=count(r"roi_heads\.box_head\.(\d+)\.0\.weight"),
        head_features=scores.shape[1],
    )
    n_classes = len(scores) - 1
    names = published.COCO_CLASSES if n_classes == len(published.COCO_CLASSES) else None
    return Description(
        architecture=_with_backbone(common, found),
        classes=names or numbered(n_classes),
        category_ids=tuple(range(1, n_classes + 1)),
        canvases=ShortSide(320, 640) if "_320_" in key else ShortSide(),
        detect=_detect_options(found, small="_320_" in key),
    )


def _with_backbone(common: Architecture, found: Mapping[str, np.ndarray]) -> Architecture:
    replace = functools.partial(dataclasses.replace, common)
    if "backbone.body.16.0.weight" in found:
        like = architectures.MOBILENET_FPN
        return replace(
            backbone=like.backbone, n_frozen=like.n_frozen, anchor_sizes=like.anchor_sizes
        )
    depth, stages = families.resnet(found, prefix="backbone.body.")
    stem = found.get("backbone.body.conv1.weight")
    if depth is None or len(stages) < 4 or stem is None:
        raise WeightsError(
            f"a backbone with stages of {stages} blocks is not known here; it seems to be "
            f"{families.describe(found)}."
        )
    return replace(depth=depth, width=len(stem))


def _detect_options(found: Mapping[str, np.ndarray], *, small: bool) -> DetectOptions:
    """What torchvision detects with."""
    if "backbone.body.0.0.weight" not in found:
        return DetectOptions()
    most = 150 if small else 1000
    return DetectOptions(
        proposals=ProposalOptions(pre_nms=most, post_nms=most, score_threshold=0.05)
    )


def variable_shapes(num_classes: int, architecture: Any) -> Any:
    """Returns the shapes and types of a detector's variables; makes no arrays.

    Args:
      num_classes: Of objects; background is one more.
      architecture: Of one of `description.SYSTEMS`.
    """
    images = Images(
        jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.uint8), jax.ShapeDtypeStruct((1, 2), jnp.int32)
    )
    system = description.SYSTEMS[description.name_of(architecture)]
    model = system.build(num_classes, architecture)
    return jax.eval_shape(model.init, jax.random.key(0), images)


def numbered(n: int) -> tuple[str, ...]:
    """Returns what n classes are called that nobody has named."""
    return tuple(f"class {i + 1}" for i in range(n))


def with_head_for(
    variables: Any, fresh: Any, *, known: Sequence[str], wanted: Sequence[str]
) -> tuple[Any, str]:
    """Returns variables with a head for other classes, and a sentence on what became of the old.

    Classes that both know by name, and background with them, keep their numbers; the others get
    those of `fresh`. As many classes as are wanted, which nobody has named, are taken for these.

    Args:
      variables: Of a trained Faster R-CNN.
      fresh: Of the same network for the classes that are wanted, such as just drawn ones.
      known: Names of the trained classes.
      wanted: Names of the others.
    """
    if tuple(known) == tuple(wanted):
        return variables, f"The head is kept, for {len(wanted)} classes."
    if tuple(known) == numbered(len(wanted)):
        return variables, (
            f"The head is kept: classes 1 to {len(wanted)}, which the weights do not name, are "
            f"taken for {', '.join(wanted)} (if they are others, convert.py --classes names them)."
        )
    rows = [(1 + known.index(name), 1 + i) for i, name in enumerate(wanted) if name in known]
    rows = np.array([(0, 0), *rows] if rows else np.zeros((0, 2)), int)
    heads = variables["params"]["roi_heads"]
    trained, new = (t["params"]["roi_heads"]["box_predictor"] for t in (variables, fresh))

    def carried(path: Any, old: Any, drawn: Any) -> np.ndarray:
        size = 1 if path[0].key == "cls_score" else 4
        old, result = (np.array(x).reshape(*x.shape[:-1], -1, size) for x in (old, drawn))
        if size == 4 and result.shape[-2] == 1:  # One box for all classes.
            result = old if len(rows) else result
        else:
            result[..., rows[:, 1], :] = old[..., rows[:, 0], :]
        return result.reshape(drawn.shape)

    predictor = jax.tree_util.tree_map_with_path(carried, trained, new)
    heads = heads | {"box_predictor": predictor}
    text = f"The head is new for {len(wanted) - max(len(rows) - 1, 0)} of {len(wanted)} classes."
    return variables | {"params": variables["params"] | {"roi_heads": heads}}, text
