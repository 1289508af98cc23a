"""What a file of weights is: the state dict in it, out of its wrappers, and which framework named its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from model.importing.reading import ReadingError, read

if TYPE_CHECKING:
    from pathlib import Path

# Where training scripts put the state dict, in the order of preference: weights averaged over steps are what the
# script that kept them evaluates.
WRAPPERS = ("model_ema", "ema", "state_dict_ema", "ema_state_dict", "model", "model_state_dict", "state_dict")
# MMEngine has swapped them when it saves: its `state_dict` is the average.
MMENGINE_WRAPPERS = ("state_dict",)
TORCHVISION, DETECTRON2, MMDETECTION = "torchvision", "Detectron2", "MMDetection"
_SIGNS = {
    TORCHVISION: ("backbone.body.", "roi_heads.box_predictor.cls_score.weight"),
    DETECTRON2: ("proposal_generator.rpn_head.", "roi_heads."),
    MMDETECTION: ("rpn_head.rpn_conv.", "roi_head.bbox_head"),
}
# A tensor that every network of each framework has once: what stands before its name was put there by what wraps the
# network: DataParallel, torch.compile, Lightning, averaging.
_ONCE = (
    "rpn.head.cls_logits.weight",
    "proposal_generator.rpn_head.objectness_logits.weight",
    "rpn_head.rpn_cls.weight",
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A state dict and what stood around it."""

    # TORCHVISION, DETECTRON2 or MMDETECTION.
    framework: str
    # By the framework's own names.
    tensors: dict[str, torch.Tensor]
    # What else the file holds, by its name.
    around: dict[str, Any] = field(default_factory=dict)
    # How it was unwrapped, for whoever imports it.
    notes: tuple[str, ...] = ()


def open_checkpoint(path: Path) -> Checkpoint:
    """Read a file of weights, unwrap its state dict and recognise its framework. Raises ReadingError."""
    document = read(path)
    notes: list[str] = []
    around: dict[str, Any] = {}
    while isinstance(document, Mapping) and not _holds_tensors(document):
        around.update({str(k): v for k, v in document.items() if str(k) not in WRAPPERS})
        names = MMENGINE_WRAPPERS if "message_hub" in document or "meta" in document else WRAPPERS
        found = [name for name in names if isinstance(document.get(name), Mapping) and document[name]]
        if not found:
            raise ReadingError(
                f"{path}: holds no state dict: its entries are {_some(map(str, document))}, and weights are looked "
                f"for at the top and in {', '.join(WRAPPERS)}"
            )
        others = f"; not used: {', '.join(found[1:])}" if found[1:] else ""
        notes.append(f"weights from its entry {found[0]!r}{others}")
        document = document[found[0]]
    if not isinstance(document, Mapping):
        raise ReadingError(f"{path}: holds a {type(document).__name__}, not a state dict")
    tensors = {str(name): _tensor(value) for name, value in document.items() if _is_tensor(value)}
    tensors, prefix = _without_prefix(path, tensors)
    if prefix:
        notes.append(f"names without their prefix {prefix!r}")
    return Checkpoint(_framework(path, tensors), tensors, around, tuple(notes))


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor | np.ndarray)


def _tensor(value: Any) -> torch.Tensor:
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "fiub":
            return torch.empty(0)
        return torch.from_numpy(np.require(value, value.dtype.newbyteorder("="), requirements=("C", "W")))
    tensor: torch.Tensor = value.detach()
    return tensor


def _holds_tensors(document: Mapping[Any, Any]) -> bool:
    return sum(map(_is_tensor, document.values())) > len(document) / 2


def _without_prefix(path: Path, tensors: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], str]:
    """The network's tensors under their names without what a wrapper put before them, and what that is.

    Of a network and its average, these are the average's.
    """
    before = {name.removesuffix(once) for name in tensors for once in _ONCE if name.endswith(once)}
    prefixes = sorted(prefix for prefix in before if not prefix or prefix.endswith("."))
    averaged = [prefix for prefix in prefixes if "ema" in prefix.lower().replace("_", ".").split(".")]
    if len(prefixes) > 1 and len(averaged) != 1:
        raise ReadingError(
            f"{path}: holds several networks, whose names begin with {', '.join(map(repr, prefixes))}: save the state "
            "dict of one"
        )
    prefix = (averaged or prefixes or [""])[0]
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}, prefix


def _framework(path: Path, tensors: dict[str, torch.Tensor]) -> str:
    for name, signs in _SIGNS.items():
        if all(any(t.startswith(sign) for t in tensors) for sign in signs):
            return name
    raise ReadingError(
        f"{path}: not the weights of a Mask R-CNN of torchvision, Detectron2 or MMDetection: its tensors are "
        f"{_some(tensors)}"
    )


def _some(names: Any) -> str:
    """The first few of many names."""
    listed = list(names)
    return ", ".join(listed[:4]) + (f" and {len(listed) - 4} more" if len(listed) > 4 else "") or "none"
