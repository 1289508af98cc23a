"""Mask R-CNN in this process, without a server. It needs the extra `serve`, which brings torch.

from maskserve.engine import Engine, Options, decode, paste

engine = Engine.load("nuclei")
image = decode(open("photo.jpg", "rb").read())
[found] = engine.segment([image], [Options(score_threshold=0.7)])
masks = paste(found.probabilities, found.boxes, found.size)
"""

# ruff: noqa: E402 - they are not importable before
from __future__ import annotations

from maskserve.server import make_importable

make_importable()

from model.images.decode import decode
from model.inference.engine import Engine
from model.instances import Instances, Options
from model.masks.paste import paste

__all__ = ["Engine", "Instances", "Options", "decode", "paste"]
