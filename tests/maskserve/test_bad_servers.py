"""A server that means ill, or is none of ours: bounded time and memory, an error that says why, nothing else lost."""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import json
import resource
import socket
import socketserver
import threading
import time
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from PIL import Image

from maskserve import AnswerError, Client, DeadlineError, MaskserveError, Result

if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGE = b"an image"
RECORD = {"category_id": 1, "category": "dog", "score": 0.5, "bbox": [0, 0, 1, 1], "area": 1}
DRIP_SECONDS = 0.05
CHUNK = bytes(1 << 20)


def document(**changes: Any) -> dict[str, Any]:
    return {"id": "x", "model": "m", "image": {"width": 4, "height": 4}, "instances": [RECORD], **changes}


def png(width: int, height: int) -> str:
    content = io.BytesIO()
    Image.new("1", (width, height), 1).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


@contextlib.contextmanager
def serving(begin: bytes, piece: bytes, pause: float, pieces: int) -> Iterator[str]:
    """A server's address: it answers with `begin` and then a piece from time to time."""
    ended = threading.Event()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65_536)
            with contextlib.suppress(OSError):
                self.request.sendall(begin)
                for _ in range(pieces):
                    if ended.wait(pause):
                        return
                    self.request.sendall(piece)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        address_family = socket.AF_INET

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            ended.set()
            server.shutdown()


@pytest.mark.parametrize(
    "begin", [b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n", b"HTTP/1.1 200 OK\r\nx-endless: ", b"HTTP"],
    ids=["body", "header", "status line"],
)  # fmt: skip
def test_the_deadline_holds_against_a_server_that_sends_byte_by_byte(begin: bytes) -> None:
    with serving(begin, b" ", DRIP_SECONDS, 100_000) as url, Client(url, deadline=0.5) as client:
        started = time.monotonic()
        with pytest.raises(DeadlineError, match=r"within 0\.5 seconds, tried 1 times"):
            client.segment(IMAGE)
        assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    "begin", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 500 No\r\n\r\n"], ids=["200", "500"]
)
def test_an_answer_without_end_is_not_kept(begin: bytes) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with (
        serving(begin, CHUNK, 0, 1500) as url,
        Client(url, max_answer_bytes=20 << 20) as client,
        pytest.raises(MaskserveError, match=r"more than 20,971,520 bytes|500 No"),
    ):
        client.segment(IMAGE)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KB


def answering(content: Any, status: int = 200, **headers: str) -> Client:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()

    def handle(_: httpx.Request) -> httpx.Response:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.Response(status, stream=httpx.ByteStream(body), headers=fields)

    return Client("http://maskserve", transport=httpx.MockTransport(handle))


@pytest.mark.parametrize("status", [200, 500])
def test_a_compressed_answer_is_not_unpacked(status: int) -> None:
    bomb = gzip.compress(bytes(100 << 20))
    with answering(bomb, status, content_encoding="gzip") as client, pytest.raises(MaskserveError):
        client.segment(IMAGE)


@pytest.mark.parametrize(
    "content",
    [
        b"<html><body>Sign in</body></html>",
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b"[" * 2_000_000,
        None,
        {},
        [],
        7,
        document(image={"width": "4", "height": 4}),
        document(image={"width": 40_000, "height": 40_000}),
        document(image={"width": -4, "height": -4}),
        document(instances=None),
        document(instances=[None]),
        document(instances=[{**RECORD, "bbox": [1, 2]}]),
        document(instances=[{**RECORD, "score": "high"}]),
        document(instances=[{**RECORD, "score": [1]}]),
    ],
    ids=str,
)
def test_a_success_that_is_no_result_is_an_error_of_that_image_only(content: Any) -> None:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()

    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(
            200, content=body if request.content == b"bad" else json.dumps(document()).encode()
        )

    with Client("http://maskserve", transport=httpx.MockTransport(handle)) as client:
        outcomes = list(client.segment_many([IMAGE, b"bad", IMAGE]))
    assert [type(outcome) for outcome in outcomes] == [Result, AnswerError, Result]
    assert len(str(outcomes[1])) < 300


@pytest.mark.parametrize("content", [b"<html>", None, {}, [], {"categories": 3}, {"categories": [{}]}])
def test_a_model_document_that_is_none_is_an_error(content: Any) -> None:
    with answering(content) as client, pytest.raises(AnswerError):
        client.model()


def test_a_picture_that_is_none_is_an_error() -> None:
    with (
        answering({}, content_type="application/json") as client,
        pytest.raises(AnswerError, match="no picture"),
    ):
        client.draw(IMAGE)


@pytest.mark.parametrize(
    "mask",
    [
        {"segmentation": {"size": [40_000, 40_000], "counts": [0, 1_600_000_000]}},
        {"segmentation": {"size": [4, 4], "counts": "nonsense"}},
        {"segmentation": {"size": [4, 4], "counts": 5}},
        {"segmentation": {"size": 4, "counts": "0"}},
        {"segmentation": [[0, 0, 1e300, 1, 5, 5]]},
        {"segmentation": [["a", "b"]]},
        {"segmentation": [[number % 2 * 1e6 - 5 for number in range(100)]] * 2 + [7]},
        {"mask": {"left": 0, "top": 0, "png": "no base64"}},
        {"mask": {"left": 0, "top": 0, "png": base64.b64encode(b"no PNG").decode()}},
        {"mask": {"left": 2, "top": 0, "png": png(3, 3)}},
        {"mask": {"left": -1, "top": 0, "png": png(3, 3)}},
        {"mask": {"left": 0, "top": 0, "png": png(10_000, 10_000)}},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_mask_that_does_not_fit_its_image_is_an_error(mask: dict[str, Any]) -> None:
    with answering(document(instances=[{**RECORD, **mask}])) as client:
        result = client.segment(IMAGE)
    with pytest.raises(AnswerError, match="the mask of a dog cannot be read"):
        result.instances[0].mask  # noqa: B018 - a property that raises


def test_a_mask_as_png_lies_where_the_answer_says() -> None:
    record = {**RECORD, "mask": {"left": 1, "top": 2, "png": png(3, 2)}}
    with answering(document(instances=[record])) as client:
        (instance,) = client.segment(IMAGE).instances
    assert np.argwhere(instance.mask).tolist() == [[y, x] for y in (2, 3) for x in (1, 2, 3)]


def test_nonsense_in_server_timing_is_left_out() -> None:
    with answering(document(), server_timing="queue;dur=soon, forward;dur=3.5, x") as client:
        assert client.segment(IMAGE).timings == {"forward": 3.5}
