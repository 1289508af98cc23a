"""What TorchServe's worker runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from network import Segmenter
from ts.torch_handler.base_handler import BaseHandler


class Handler(BaseHandler):
    """One photo at a time."""

    def initialize(self, context: Any) -> None:  # noqa: ARG002 (its signature)
        self.segmenter = Segmenter(Path(os.environ["PEERS_FOLDER"]))
        self.initialized = True

    def handle(self, data: list[dict[str, bytes]], context: Any) -> list[dict[str, Any]]:  # noqa: ARG002 (likewise)
        return [self.segmenter(bytes(row.get("data") or row.get("body"))) for row in data]
