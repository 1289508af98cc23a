"""What an architecture may ask for at most: a file must not name one that takes all memory."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from model.images.formats import MAX_SIDE
from model.network.architecture import ArchitectureError

if TYPE_CHECKING:
    from model.network.architecture import Architecture

# Layers in a row: each is made before its weights are looked for, and no head has ten.
MOST_CONVS = 64
# Anchors of a cell.
MOST_RATIOS = 32
# Of an instance; a whole body with hands and face has 133.
MOST_KEYPOINTS = 1000
# They are compared with one another; the paper's largest figure is 2,000.
MOST_PROPOSALS = 10_000
# Of the network's input, 16 times the usual 800 × 1333: it takes about 16 GB.
MOST_PIXELS = 1 << 24


def find_excess(architecture: Architecture) -> str | None:
    """Why an architecture cannot be built here, as the end of a line; None if it can."""
    for name, value in asdict(architecture).items():
        most = MOST_CONVS if name.endswith("_convs") else MAX_SIDE
        most = MOST_PROPOSALS if name == "proposals" else most
        if any(isinstance(n, int) and n > most for n in (value if isinstance(value, tuple) else (value,))):
            return f"{name} is above {most}"
    if len(architecture.anchor_ratios) > MOST_RATIOS:
        return f"it has {len(architecture.anchor_ratios)} anchor ratios, of which {MOST_RATIOS} can be"
    if architecture.keypoints > MOST_KEYPOINTS:
        return f"keypoints is above {MOST_KEYPOINTS}"
    if architecture.conventions.candidates > MOST_PROPOSALS:
        return f"candidates is above {MOST_PROPOSALS}"
    try:
        architecture.validate()
    except ArchitectureError as error:
        return f"{error!s:.300}"
    height, width = architecture.min_size, architecture.max_size
    if height * width > MOST_PIXELS:
        return f"its input of {height} × {width} has more than {MOST_PIXELS} pixels"
    return None
