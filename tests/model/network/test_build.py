"""Networks that files fill."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from model.network.architecture import C4, SMALL, V1, V2
from model.network.build import build, build_uninitialized

if TYPE_CHECKING:
    from model.network.architecture import Architecture

ARCHITECTURES = {
    "v1": V1,
    "v2": V2,
    "c4": C4,
    "vgg16": replace(SMALL, backbone="vgg16", box_channels=64),
    "mobilenet": replace(SMALL, backbone="mobilenet_v3_small"),
    "keypoints": replace(SMALL, keypoints=17, keypoint_convs=8, keypoint_channels=64),
    "softmax": replace(SMALL, masks="softmax"),
}


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_uninitialized_networks_draw_no_random_numbers_and_lack_nothing(architecture: Architecture) -> None:
    state = torch.get_rng_state()
    made = build_uninitialized(architecture)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.device("meta"):
        usual = build(architecture)
    assert {n: t.shape for n, t in made.state_dict().items()} == {
        n: t.shape for n, t in usual.state_dict().items()
    }
    # What no file has: nothing.
    held = set(made.state_dict())
    assert {name for name, _ in (*made.named_parameters(), *made.named_buffers())} == held
