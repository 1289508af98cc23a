"""LitServe with one worker. It reads annotations, so that they cannot be postponed here."""

import sys
from pathlib import Path
from typing import Annotated, Any

import litserve
from fastapi import Depends, Request
from network import Segmenter


async def body(request: Request) -> bytes:
    """The request's; LitServe itself takes only JSON and forms."""
    return await request.body()


class Segment(litserve.LitAPI):
    """One photo at a time: torchvision's model is no faster with several."""

    def setup(self, device: str) -> None:  # noqa: ARG002 (there is the CPU)
        self.segmenter = Segmenter(Path(sys.argv[1]))

    def decode_request(self, request: Annotated[bytes, Depends(body)]) -> bytes:
        return request

    def predict(self, jpeg: bytes) -> dict[str, Any]:
        return self.segmenter(jpeg)

    def encode_response(self, answer: dict[str, Any]) -> dict[str, Any]:
        return answer


# Its workers are started again and import this file.
if __name__ == "__main__":
    server = litserve.LitServer(Segment(api_path="/segment"), accelerator="cpu", timeout=False)
    server.run(host="127.0.0.1", port=int(sys.argv[3]), generate_client_file=False, log_level="warning")
