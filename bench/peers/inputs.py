"""What all peers are given: one network's weights, one photo, one score threshold, and our answer in float32."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from PIL import Image

from bench.engine import chosen, picture
from bench.peers.agreement import Answer
from bench.peers.agreement import decode as decode_rles
from model.images.decode import decode
from model.inference.calibration import measure_ranges
from model.inference.engine import Engine
from model.instances import Options
from model.zoo import model_file

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from model.zoo.model_file import Model

# Per image, of networks with synthetic weights.
MOST_DETECTIONS = 100
# Instances of a photo, for the choice of a threshold, and the lowest that is chosen.
FEW, MANY, LOWEST = 10, 40, 0.3


def write_inputs(folder: Path, name: str, score_threshold: float | None) -> tuple[Answer, float]:
    """Write a network that bench/engine.py has by this name, and its photo, as `write` does.

    Returns our answer and the threshold, which is chosen where none is given.
    """
    file = io.BytesIO()
    Image.fromarray(picture(None, None, name)).save(file, "JPEG", quality=90)
    network, model = chosen(name, decode(file.getvalue()), MOST_DETECTIONS)
    if score_threshold is None:
        scores = write(folder, network, model, file.getvalue(), LOWEST).scores
        score_threshold = threshold_between(scores.tolist())
    return write(folder, network, model, file.getvalue(), score_threshold), score_threshold


def threshold_between(scores: list[float]) -> float:
    """In the middle of the widest gap between scores, so that what is rounded otherwise moves no instance over it.

    Above it are FEW to MANY of them; 0.5 where there are not as many. scores: descending.
    """
    gaps = [(above - below, (above + below) / 2) for above, below in pairwise(scores)]
    return round(max(gaps[FEW - 1 : MANY], default=(0.0, 0.5))[1], 4)


def write(folder: Path, network: nn.Module, model: Model, jpeg: bytes, score_threshold: float) -> Answer:
    """Write what programs read, and return what their answers are compared with.

    Args:
        folder: gets photo.jpg, and the network twice: architecture.json and weights.pt for torchvision, and
            model.safetensors for us, calibrated on the photo if it is not calibrated yet.
        network: in evaluation mode.
        model: what is known of it.
        jpeg: the photo.
        score_threshold: of instances.
    """
    write_network(folder, network, model, score_threshold)
    (folder / "photo.jpg").write_bytes(jpeg)
    photo = decode(jpeg)
    if not model.ranges:
        model = replace(model, ranges=measure_ranges(network, model.architecture, [photo]))
    model_file.save(folder / "model.safetensors", network, model)
    engine = Engine(network, model, torch.device("cpu"), "float32")
    (found,) = engine.segment([photo], [Options(score_threshold=score_threshold)])
    masks = decode_rles([rle.to_coco() for rle in found.rles()])
    return Answer(found.boxes.numpy(), found.labels.numpy(), found.scores.numpy(), masks)


def write_network(folder: Path, network: nn.Module, model: Model, score_threshold: float) -> None:
    """Write architecture.json and weights.pt, which programs/network.py reads. Exits where torchvision has no such one.

    Args:
        folder: gets the files.
        network: in evaluation mode.
        model: what is known of it.
        score_threshold: of instances.
    """
    if not model.architecture.is_torchvision or not model.architecture.is_standard:
        raise SystemExit(f"{model.name}: not a network that torchvision has, so no peer computes it")
    described = asdict(model.architecture) | {"score_threshold": score_threshold}
    (folder / "architecture.json").write_text(json.dumps(described))
    torch.save(network.state_dict(), folder / "weights.pt")
