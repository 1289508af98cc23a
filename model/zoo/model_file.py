"""One safetensors file is one model: its weights, and what is known of them.

The file's metadata entry "maskserve" is a JSON document: {"format": 1, "name", "architecture", "categories",
"ap", "training", "ranges", "object_extent"}. Tensors are the torchvision module's state dict; matrices may be stored in
half precision.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize

from model.data import Category
from model.messages import first_line
from model.network.architecture import Architecture, ArchitectureError
from model.network.bounds import find_excess
from model.network.skeleton import has_skeleton, skeleton
from model.zoo.naming import MOST_CHARACTERS, find_keypoint_fault, is_name, is_unicode, read_keypoints
from model.zoo.partial import digest

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from model.data import Keypoints
    from model.kernels.quantization import Ranges

FORMAT = 1
# Names of files that other frameworks write.
CHECKPOINTS = (".pth", ".pt", ".pkl")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class ModelError(Exception):
    """The model cannot be had; the message says which, why, and what to do."""


@dataclass(frozen=True, slots=True)
class Model:
    """What is known of a model besides its weights."""

    name: str
    architecture: Architecture
    categories: tuple[Category, ...]
    # The network's output class of each category: 1 … classes - 1.
    labels: tuple[int, ...]
    # "box", "mask", "keypoints" …, 0 to 1.
    ap: dict[str, float] = field(default_factory=dict)
    # On what it was measured, or who published it.
    ap_source: str = ""
    training: dict[str, Any] = field(default_factory=dict)
    # The framework that it was imported from, if it was.
    origin: str = ""
    # What the longer side of nine of ten objects in its training data stays within, in the network's input and as a
    # share of `min_size`. 0: not known.
    object_extent: float = 0.0
    # Of its activations, for int8; empty if never calibrated.
    ranges: Ranges = field(default_factory=dict)
    # Of the weights file.
    sha256: str = ""
    # A line for the log, /model and the page.
    notice: str | None = None
    # What its keypoints are, as many as the architecture has.
    keypoints: Keypoints | None = None

    @property
    def max_instances(self) -> int:
        """How many instances the model finds in an image at most."""
        return self.architecture.conventions.detections

    def label_ids(self) -> Tensor:
        """[classes] int64: the category id of each of the network's outputs; 0 where there is none (see `labels`)."""
        ids = torch.zeros(self.architecture.classes, dtype=torch.int64)
        for category, label in zip(self.categories, self.labels, strict=True):
            ids[label] = category.id
        return ids


def describe(name: str, architecture: Architecture, categories: tuple[Category, ...], **known: Any) -> Model:
    """A model whose network numbers the categories 1, 2, … in their order.

    Args:
        name: of the model.
        architecture: of its network.
        categories: without background.
        known: other fields of Model.
    """
    return Model(name, architecture, categories, tuple(range(1, len(categories) + 1)), **known)


def save(path: Path, network: nn.Module, model: Model, *, half: bool = False) -> None:
    """Write one model as one safetensors file, atomically.

    Args:
        path: where; an older file there is replaced.
        network: torchvision's modules.
        model: what is known of it.
        half: store matrices and convolutions as float16. Vectors stay float32, because BatchNorm's variances can lie
            outside float16's range.
    """
    tensors = {}
    for name, tensor in network.state_dict().items():
        narrow = half and tensor.ndim >= 2 and tensor.dtype == torch.float32
        tensors[name] = tensor.detach().to("cpu", torch.float16 if narrow else tensor.dtype).contiguous()
    _write(path, tensors, model)


def rewrite_metadata(path: Path, source: Path, model: Model) -> None:
    """Write the file `source` with another description to `path`, atomically; its tensors stay as they are.

    Args:
        path: where; it may be `source`.
        source: a file that `save` wrote.
        model: the new description.

    Raises ModelError as `read` does.
    """
    _, tensors = _open(source)
    _write(path, tensors, model)


def _write(path: Path, tensors: dict[str, Tensor], model: Model) -> None:
    document: dict[str, Any] = {
        "format": FORMAT,
        "name": model.name,
        "architecture": model.architecture.to_dict(),
        "categories": [
            {"id": c.id, "name": c.name, "label": label}
            for c, label in zip(model.categories, model.labels, strict=True)
        ],
        "ap": model.ap,
        "ap_source": model.ap_source,
        "training": model.training,
    }
    optional = {"origin": model.origin, "object_extent": model.object_extent, "ranges": model.ranges}
    document |= {name: value for name, value in optional.items() if value}
    if model.keypoints is not None:
        document["keypoints"] = asdict(model.keypoints)
    part = path.with_name(path.name + ".part")
    try:
        # Not save_file, whose files only their owner may read: another user's container could not serve them.
        part.write_bytes(serialize(tensors, {"maskserve": json.dumps(document)}))
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def read(path: Path, *, runnable: bool = True) -> tuple[nn.Module, Model]:
    """The network (CPU, float32, evaluation mode) and description in a file that `save` wrote.

    runnable: False if the network is only to hold weights, for an Engine: it may be a skeleton then, whose tensors are
    the mapped file where it has them in float32.
    Raises ModelError for a file that is missing, damaged, not from maskserve, or made for another architecture.
    """
    model, tensors = _open(path)
    try:
        own = _empty(model.architecture)
        check_tensors(tensors, own.state_dict(), str(path))
        if not runnable and has_skeleton(model.architecture):
            return fill(own, tensors), model
        network = _build(model.architecture)
    # Torch's own, where memory is short.
    except (ArchitectureError, MemoryError, RuntimeError) as error:
        raise ModelError(f"{path}: its architecture cannot be built ({first_line(error)})") from error
    # Its weights are uninitialized, and its names are not the skeleton's unless they are checked.
    check_tensors(tensors, network.state_dict(), str(path))
    network.load_state_dict(tensors, strict=False)
    return network, model


def fill(skeleton_: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    """The skeleton with these tensors, which may share memory with it. They have its names and shapes."""
    own = skeleton_.state_dict()
    kept = {name: tensor.to(own[name].dtype) for name, tensor in tensors.items()}
    skeleton_.load_state_dict(kept, strict=False, assign=True)
    return skeleton_


def _empty(architecture: Architecture) -> nn.Module:
    """The architecture's modules without memory: a description may ask for more than there is."""
    if has_skeleton(architecture):
        return skeleton(architecture)
    with torch.device("meta"):
        return _build(architecture)


def _build(architecture: Architecture) -> nn.Module:
    from model.network.build import build_uninitialized  # noqa: PLC0415 - imports torchvision

    return build_uninitialized(architecture)


def _open(path: Path) -> tuple[Model, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Tensors only where the description is ours: a foreign file may be of any size.
            tensors = {k: file.get_tensor(k) for k in file.keys()} if "maskserve" in metadata else {}  # noqa: SIM118
    except FileNotFoundError:
        raise ModelError(f"{path}: there is no such file") from None
    except (SafetensorError, OSError) as error:
        if path.suffix in CHECKPOINTS:
            raise ModelError(
                f"{path}: a checkpoint of another framework; `maskserve import {path}` makes a model file of it"
            ) from None
        raise ModelError(f"{path}: not a readable safetensors file ({first_line(error)})") from error
    if "maskserve" not in metadata:
        raise ModelError(
            f"{path}: a safetensors file, but none that `maskserve train` wrote (no 'maskserve' entry in its metadata)"
            f"; if it is a Mask R-CNN of torchvision, Detectron2 or MMDetection: maskserve import {path}"
        )
    try:
        document = json.loads(metadata["maskserve"])
        if document["format"] != FORMAT:
            raise ModelError(
                f"{path}: written in format {document['format']!r:.30}; this version of maskserve reads format "
                f"{FORMAT}"
            )
        if not is_unicode(document):
            raise ModelError(f"{path}: its description holds text that is not Unicode (a lone surrogate)")
        architecture = Architecture.from_dict(document["architecture"])
        entries = document["categories"]
        model = Model(
            name=str(document["name"]),
            architecture=architecture,
            categories=tuple(Category(_integer(c["id"]), str(c["name"])) for c in entries),
            labels=tuple(_integer(c["label"]) for c in entries),
            ap={str(k): float(v) for k, v in document["ap"].items()},
            ap_source=str(document.get("ap_source", "")),
            training=dict(document.get("training", {})),
            origin=str(document.get("origin", "")),
            object_extent=float(document.get("object_extent", 0)),
            ranges={
                str(name): (float(low), float(high))
                for name, (low, high) in document.get("ranges", {}).items()
            },
            keypoints=read_keypoints(document.get("keypoints")),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ModelError(f"{path}: its description of the model is damaged ({error!r:.300})") from error
    if (wrong := find_fault(model)) is not None:
        raise ModelError(f"{path}: {wrong}")
    return replace(model, sha256=digest(path)), tensors


def find_fault(model: Model) -> str | None:
    """What `read` would refuse a description of the right types for, as the end of a line; None if nothing."""
    if (wrong := find_excess(model.architecture)) is not None:
        return f"its architecture cannot be built ({wrong})"
    if (wrong := find_keypoint_fault(model.keypoints, model.architecture.keypoints)) is not None:
        return wrong
    names_shown = [model.name, *(c.name for c in model.categories), *model.ap]
    if (odd := next((name for name in names_shown if not is_name(name)), None)) is not None:
        return f"it holds a name that is not one line of at most {MOST_CHARACTERS} characters: {odd!a:.60}"
    ids, names = {c.id for c in model.categories}, {c.name for c in model.categories}
    unlike = len(ids) == len(set(model.labels)) == len(model.labels)
    if not ids or not unlike or not all(0 < label < model.architecture.classes for label in model.labels):
        return f"its categories do not fit its {model.architecture.classes} classes"
    if min(ids) < 0 or max(ids) >= 2**63:
        return "its category ids are not all from 0 to 2^63 - 1"
    if len(names) < len(ids) or not all(name.strip() for name in names):
        return "its categories have names that are empty or the same"
    # -1: there was nothing to count.
    if not all(0 <= ap <= 1 or ap == -1 for ap in model.ap.values()):
        return "its AP is not from 0 to 1"
    if not (math.isfinite(model.object_extent) and model.object_extent >= 0):
        return "the extent of its objects is not a number from 0 up"
    if not all(math.isfinite(high - low) and low <= high for low, high in model.ranges.values()):
        return "its ranges of activations are damaged"
    return None


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r} is no integer")
    return value


def check_tensors(tensors: dict[str, Tensor], own: dict[str, Tensor], origin: str) -> None:
    """Raise ModelError for tensors that are not those of a network.

    Args:
        tensors: of the file, by name.
        own: those of the network, on any device.
        origin: what the message begins with.
    """
    missing, foreign = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    # torchvision's V1 file, made when BatchNorm was frozen, has no batch counters.
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    wrong = [n for n in own if n in tensors and own[n].shape != tensors[n].shape]
    if missing or foreign or wrong:
        first = (missing or foreign or wrong)[0]
        raise ModelError(
            f"{origin}: the weights were made for another architecture ({len(missing)} tensors missing, "
            f"{len(foreign)} unknown, {len(wrong)} of another shape; the first is {first})"
        )
    for name, tensor in tensors.items():
        kept = own[name].dtype
        if tensor.dtype not in (FLOATS if kept.is_floating_point else (kept,)):
            raise ModelError(
                f"{origin}: the weights are damaged: {name} holds {tensor.dtype} instead of {kept}"
            )
        # One pass for all that is asked. NaN is passed on, and a float64 may be more than float32 holds.
        ends = torch.stack(tensor.aminmax()).to(kept)
        if not ends.isfinite().all():
            raise ModelError(f"{origin}: the weights are damaged: {name} holds values that are not finite")
        if name.endswith("running_var") and ends[0] < 0:
            raise ModelError(f"{origin}: the weights are damaged: {name} holds variances below 0")
