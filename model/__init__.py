"""Mask R-CNN as a library: networks, weights, the forward pass, masks, training. It never imports `app`.

from model import Engine, Options, decode, paste

engine = Engine.load("nuclei")
image = decode(Path("photo.jpg").read_bytes())
[found] = engine.segment([image], [Options(score_threshold=0.7)])
masks = paste(found.probabilities, found.boxes, found.size)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.images.decode import decode
    from model.inference.engine import Engine
    from model.instances import Instances, Options
    from model.masks.paste import paste

__all__ = ["Engine", "Instances", "Options", "decode", "paste"]

# Imported when they are used (PEP 562): torch takes more than a second, and `maskserve --help` imports this package.
_MODULES = {
    "Engine": "model.inference.engine",
    "Instances": "model.instances",
    "Options": "model.instances",
    "decode": "model.images.decode",
    "paste": "model.masks.paste",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'model' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
