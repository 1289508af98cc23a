"""torchvision's model as it is, and with torch.compile."""

from __future__ import annotations

from typing import TYPE_CHECKING

import protocol
import torch
from network import OnePhoto, load_network, to_tensor

if TYPE_CHECKING:
    from pathlib import Path


def load(folder: Path, precision: str) -> protocol.Engine:
    torch.set_num_threads(protocol.threads())
    network = OnePhoto(load_network(folder))
    if precision == "compiled":
        network = torch.compile(network)

    @torch.inference_mode()
    def engine(photo):
        return network(to_tensor(photo))

    return engine


protocol.main(load)
