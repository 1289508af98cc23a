"""What a ResNet's tensors say about it by their shapes alone, in torchvision's names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from model.importing.result import ImportingError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

# (blocks of the four stages, whether they are bottlenecks) → depth
_DEPTHS = {
    ((2, 2, 2, 2), False): 18,
    ((3, 4, 6, 3), False): 34,
    ((3, 4, 6, 3), True): 50,
    ((3, 4, 23, 3), True): 101,
    ((3, 8, 36, 3), True): 152,
}


def find_numbers(names: Iterable[str], pattern: str) -> list[int]:
    """The different numbers that the first group of a regular expression finds in names, ascending."""
    compiled = re.compile(pattern)
    return sorted({int(found[1]) for name in names if (found := compiled.match(name))})


def depth_of(tensors: Mapping[str, Tensor], body: str, stage: str = "layer") -> int:
    """How deep a ResNet is, in layers.

    Args:
        tensors: of the file, by name.
        body: what the names of the ResNet begin with.
        stage: what the names of its stages begin with: "layer" (from 1 on) or "res" (from 2 on).

    Raises ImportingError for a ResNet of another depth.
    """
    first = 1 if stage == "layer" else 2
    blocks = tuple(
        len(find_numbers(tensors, rf"{re.escape(body)}{stage}{n}\.(\d+)\.")) for n in range(first, first + 4)
    )
    bottleneck = f"{body}{stage}{first}.0.conv3.weight" in tensors
    depth = _DEPTHS.get((blocks, bottleneck))  # type: ignore[arg-type]
    if depth is None:
        raise ImportingError(
            f"a backbone with stages of {', '.join(map(str, blocks))} blocks is not supported; ResNets of 18, 34, 50, "
            "101 and 152 layers are"
        )
    return depth


def take(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """The tensor of that name. Raises ImportingError."""
    if name not in tensors:
        raise ImportingError(f"the file has no tensor {name}")
    return tensors[name]
