"""Non-maximum suppression: on CPUs of no more boxes than are needed (nms.c), on GPUs in matrices of a fixed size.

Nothing in the matrices depends on how many boxes are left, so that the host can queue all of it without waiting for an
answer.
"""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from model.errors import EngineError
from model.kernels.compiled import load_first
from model.kernels.processor import AVX2, NEON

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

SOURCE = Path(__file__).with_name("nms.c")
VARIANTS = {"avx2": AVX2, "neon": NEON}
LIBRARY = {".so", ".pyd", ".dylib"}
# A box survives if no better survivor overlaps it. Each pass settles every box whose better ones are settled; so many
# passes are needed as boxes stand in the longest row of which each would suppress the next. See docs/engine.md.
MAX_PASSES = 16
# As many boxes are tried at first, for each that is wanted. The RPN of `shapes` needed 1.7 to 2.9 on eight images.
TRIED_PER_BOX = 2.5


def top_after_nms(scores: Tensor, count: int, run_nms: Callable[[Tensor], Tensor]) -> Tensor:
    """Indices of the `count` best boxes that survive, by falling score.

    Better boxes suppress worse ones and never the other way, so nothing changes if the worst are not looked at.

    Args:
        scores: [K].
        count: how many boxes are wanted at most.
        run_nms: takes indices of boxes by falling score, and gives the positions of the survivors among them.
    """
    order = scores.sort(descending=True, stable=True).indices
    ahead = int(TRIED_PER_BOX * count)
    # Its time grows with the square: to double what is tried adds a third at most, and mostly saves three quarters.
    while ahead < len(order):
        tried = order[:ahead]
        kept = tried[run_nms(tried).sort().values]
        if len(kept) >= count:
            return kept[:count]
        ahead *= 2
    return order[run_nms(order).sort().values][:count]


@cache
def load_operators() -> Any:
    """The compiled operators of torchvision, loaded without the package, whose import takes 1.3 to 2 s.

    Raises EngineError where they cannot be had.
    """
    spec = importlib.util.find_spec("torchvision")
    folders = (spec.submodule_search_locations or []) if spec is not None else []
    # _C.so up to torchvision 0.26, then _C_stable.so.
    libraries = [path for folder in folders for path in Path(folder).glob("_C*") if path.suffix in LIBRARY]
    try:
        for path in libraries:
            torch.ops.load_library(str(path))  # type: ignore[no-untyped-call]
        if not libraries:
            # Laid out otherwise, it finds them itself.
            importlib.import_module("torchvision")
    except (ImportError, OSError) as error:
        raise EngineError(f"torchvision's operators cannot be loaded: {error}") from None
    if not hasattr(torch.ops.torchvision, "nms"):
        raise EngineError(
            "torchvision was built without its operators: install the one that belongs to torch"
        )
    return torch.ops.torchvision


def prepare(device: torch.device) -> None:
    """Load what suppresses boxes there, before the first image. Raises EngineError where it cannot be had."""
    if kernel() is None or device.type != "cpu":
        load_operators()


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """[N] int64: the boxes that no better survivor overlaps with an IoU above the threshold, by falling score.

    Args:
        boxes: [K, 4] xyxy.
        scores: [K].
        iou_threshold: the largest intersection over union that two survivors may have.
    """
    suppress = kernel()
    if suppress is None or boxes.device.type != "cpu" or boxes.dtype not in (torch.float32, torch.float64):
        kept: Tensor = load_operators().nms(boxes, scores, iou_threshold)
        return kept
    if boxes.shape != (len(scores), 4):
        raise ValueError(f"not boxes of {len(scores)} scores: {list(boxes.shape)}")
    order = scores.sort(descending=True, stable=True).indices
    ends = boxes[order].T.contiguous()
    areas, is_suppressed = torch.empty_like(ends[0]), torch.empty(len(order), dtype=torch.bool)
    work = Work(
        boxes=ends.data_ptr(),
        areas=areas.data_ptr(),
        is_suppressed=is_suppressed.data_ptr(),
        count=len(order),
        iou_threshold=iou_threshold,
        is_double=boxes.dtype == torch.float64,
    )
    suppress(ctypes.addressof(work))
    return order[~is_suppressed]


class Work(ctypes.Structure):
    """`struct Work` of nms.c, which describes it."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("boxes", "areas", "is_suppressed")),
        ("count", ctypes.c_int64),
        ("iou_threshold", ctypes.c_double),
        ("is_double", ctypes.c_int64),
    ]


@cache
def kernel() -> Callable[[int], None] | None:
    """The compiled function, which takes the address of a `Work`; None on other processors, and where nothing was
    compiled.
    """
    library = load_first(SOURCE, VARIANTS, Work, cost="suppression takes ten times as long")
    if library is None:
        return None
    library.suppress.argtypes, library.suppress.restype = [ctypes.c_void_p], None
    suppress: Callable[[int], None] = library.suppress
    return suppress


def batched_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """[N] int64, as `nms`, but only boxes of the same label suppress one another.

    Args:
        boxes: [K, 4] float32 xyxy, not below 0.
        scores: [K] float32.
        labels: [K] int64.
        iou_threshold: as for `nms`.
    """
    if not len(boxes):
        return labels
    # Labels are told apart by moving their boxes by multiples of the largest coordinate, in float64 so that every
    # distance stays what it was.
    apart = boxes.double()
    apart = apart + (labels * (apart.max() + 1))[:, None]
    return nms(apart, scores.double(), iou_threshold)


def overlap_matrix(boxes: Tensor, iou_threshold: float) -> Tensor:
    """[..., K, K] bool: whether box j comes before box i and their IoU is above the threshold.

    boxes: [..., K, 4] xyxy float32, best first. The arithmetic is that of torchvision.ops.nms.
    """
    x0, y0, x1, y1 = boxes.unbind(-1)
    area = (x1 - x0) * (y1 - y0)
    width = _pairs(torch.minimum, x1).sub_(_pairs(torch.maximum, x0)).clamp_(min=0)
    height = _pairs(torch.minimum, y1).sub_(_pairs(torch.maximum, y0)).clamp_(min=0)
    shared = width.mul_(height)
    return (shared / _pairs(torch.add, area).sub_(shared) > iou_threshold).tril(-1)


def _pairs(of: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> Tensor:
    """[..., K, K] from [..., K]."""
    return of(x[..., :, None], x[..., None, :])


def keep_mask(overlaps: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Which boxes survive, [..., K] bool, and whether that is final, [] bool: if not, MAX_PASSES were too few.

    overlaps: as `overlap_matrix` gives it. valid: [..., K] bool, the boxes that take part.
    """
    keep = before = valid
    for _ in range(MAX_PASSES):
        before = keep
        keep = valid & ~(overlaps & before[..., None, :]).any(-1)
    return keep, (keep == before).all()
