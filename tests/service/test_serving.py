"""A real process over real sockets: answers, refusals, start and end."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import signal
import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable

QUERY = "score_threshold=0.06&max_instances=20"
REQUESTS = 80


def photo(width: int, height: int, seed: int = 0, kind: str = "JPEG") -> bytes:
    """A noisy picture with some flat shapes in it."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 60, (height, width, 3), dtype=np.uint8)
    for _ in range(5):
        x, y = random.integers(0, width), random.integers(0, height)
        pixels[y : y + height // 3, x : x + width // 3] += random.integers(60, 190, 3, dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def without_id(response: httpx.Response) -> bytes:
    """The answer's bytes, its id taken out."""
    assert response.status_code == 200, response.text
    return response.content.replace(response.headers["x-request-id"].encode(), b"", 1)


class Wire:
    """A plain socket to the server, for what no HTTP library lets one do."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self.socket = socket.create_connection((address.hostname, address.port), timeout=60)
        self.file = self.socket.makefile("rb")

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.socket.close()

    def send(self, *lines: str, body: bytes = b"") -> None:
        head = "\r\n".join([*lines, "Host: maskserve", "", ""])
        self.socket.sendall(head.encode() + body)

    def status(self) -> int:
        """The next status line's code."""
        return int(self.file.readline().split()[1])

    def response(self) -> tuple[int, dict[str, str], bytes]:
        """The next response: status, headers, body."""
        status, headers = self.status(), {}
        while line := self.file.readline().decode().strip():
            name, _, value = line.partition(": ")
            headers[name.lower()] = value
        return status, headers, self.file.read(int(headers.get("content-length", 0)))


# Answers


def test_the_ready_line_names_model_device_and_address(server: Any) -> None:
    assert server.ready_line == f"maskserve: random on cpu (float32) is ready at {server.url}"
    assert httpx.get(f"{server.url}/readyz").status_code == 200


def test_the_effective_settings_are_logged_at_start(server: Any) -> None:
    (line,) = [line for line in server.log if "settings: " in line]
    assert "max_upload_bytes=400000" in line
    assert "threads=1" in line


def test_all_three_body_forms_get_the_same_bytes_but_for_the_id(server: Any) -> None:
    image = photo(320, 240)
    with httpx.Client(base_url=server.url, timeout=60) as client:
        url = f"/segment?{QUERY}"
        answers = {
            without_id(client.post(url, content=image, headers={"content-type": "image/jpeg"})),
            without_id(client.post(url, files={"image": ("photo.jpg", image, "image/jpeg")})),
            without_id(client.post(url, json={"image": base64.b64encode(image).decode()})),
        }
    assert len(answers) == 1
    assert len(json.loads(answers.pop())["instances"]) == 20


def test_concurrent_requests_of_mixed_sizes_get_the_answers_that_they_get_alone(
    server: Any,
) -> None:
    sizes = [(320, 240), (240, 320), (300, 300), (640, 200), (200, 150), (150, 200), (128, 128), (333, 251)]
    images = [photo(*size, seed) for seed, size in enumerate(sizes)]
    garbage = images[0][:2000]

    async def run() -> tuple[list[bytes], list[httpx.Response]]:
        limits = httpx.Limits(max_connections=REQUESTS)
        async with httpx.AsyncClient(base_url=server.url, timeout=300, limits=limits) as client:
            url = f"/segment?{QUERY}"
            alone = [without_id(await client.post(url, content=image)) for image in images]
            bodies = [images[number % len(images)] for number in range(REQUESTS)]
            bodies[REQUESTS // 2] = garbage
            return alone, await asyncio.gather(*(client.post(url, content=body) for body in bodies))

    alone, together = asyncio.run(run())
    assert all(len(json.loads(answer)["instances"]) == 20 for answer in alone)
    refused = together.pop(REQUESTS // 2)
    assert refused.status_code == 422
    assert refused.json()["type"] == "urn:maskserve:problem:undecodable-image"
    numbers = [number for number in range(REQUESTS) if number != REQUESTS // 2]
    for number, response in zip(numbers, together, strict=True):
        assert without_id(response) == alone[number % len(images)]


def test_on_a_cpu_answers_do_not_wait_for_a_batch(server: Any) -> None:
    """There a batch takes as long as its images one by one."""
    same = photo(320, 240)

    def batches() -> tuple[float, float]:
        """How many ran, and the images in them."""
        text = httpx.get(f"{server.url}/metrics").text
        found = dict(re.findall(r"^maskserve_batch_images_(count|sum) (\S+)$", text, re.MULTILINE))
        return float(found["count"]), float(found["sum"])

    async def run() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=server.url, timeout=300) as client:
            return await asyncio.gather(*(client.post("/segment", content=same) for _ in range(16)))

    ran, images = batches()
    assert [response.status_code for response in asyncio.run(run())] == [200] * 16
    assert batches() == (ran + 16, images + 16)


# Refusals on the wire


def test_a_client_that_sends_the_whole_body_first_reads_the_413(server: Any) -> None:
    body = b"\xff" * 30_000_000  # more than all the buffers between here and there
    with Wire(server.url) as wire:
        wire.send("POST /segment HTTP/1.1", f"Content-Length: {len(body)}", body=body)
        status, headers, content = wire.response()
    assert status == 413
    assert headers["connection"] == "close"
    assert json.loads(content)["type"] == "urn:maskserve:problem:body-too-large"


def test_a_refusal_after_the_whole_body_keeps_the_connection(server: Any) -> None:
    image = photo(64, 64)
    with Wire(server.url) as wire:
        for _ in range(2):
            wire.send("POST /segment?score=2 HTTP/1.1", f"Content-Length: {len(image)}", body=image)
            status, headers, _ = wire.response()
            assert status == 422
            assert "connection" not in headers
        wire.send("POST /segment HTTP/1.1", f"Content-Length: {len(image)}", body=image)
        assert wire.response()[0] == 200


def test_a_chunked_body_without_end_is_cut_off_with_413(server: Any) -> None:
    with Wire(server.url) as wire:
        wire.send("POST /segment HTTP/1.1", "Transfer-Encoding: chunked")
        chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        for _ in range(20):
            wire.socket.sendall(chunk)
        assert wire.response()[0] == 413


def test_expect_100_continue_is_answered_before_the_body(server: Any) -> None:
    image = photo(64, 64)
    with Wire(server.url) as wire:
        wire.send("POST /segment HTTP/1.1", f"Content-Length: {len(image)}", "Expect: 100-continue")
        assert wire.status() == 100
        assert wire.file.readline() == b"\r\n"
        wire.socket.sendall(image)
        assert wire.response()[0] == 200
    with Wire(server.url) as wire:
        wire.send("POST /segment HTTP/1.1", "Content-Length: 5000000", "Expect: 100-continue")
        assert wire.response()[0] == 413
        assert wire.file.read() == b""  # closed


def test_a_body_that_does_not_arrive_is_408(server: Any) -> None:
    with Wire(server.url) as wire:
        wire.send("POST /segment HTTP/1.1", "Content-Length: 1000", body=b"x" * 10)
        status, headers, _ = wire.response()
    assert status == 408
    assert headers["connection"] == "close"


def test_a_client_that_hangs_up_does_not_disturb_others(server: Any) -> None:
    image = photo(320, 240)
    for sent in (0, 100, len(image)):
        with Wire(server.url) as wire:
            wire.send("POST /segment HTTP/1.1", f"Content-Length: {len(image)}", body=image[:sent])
    assert httpx.post(f"{server.url}/segment", content=image, timeout=60).status_code == 200


def test_a_connection_serves_many_requests_with_head_among_them(server: Any) -> None:
    with Wire(server.url) as wire:
        wire.send("HEAD /model HTTP/1.1")
        status = wire.status()
        while wire.file.readline() != b"\r\n":
            pass
        wire.send("GET /healthz HTTP/1.1")
        assert (status, wire.response()[0]) == (200, 200)


def test_malformed_http_gets_a_400(server: Any) -> None:
    with Wire(server.url) as wire:
        wire.socket.sendall(b"\x16\x03\x01 a TLS greeting\r\n\r\n")
        status, headers, body = wire.response()
        assert (status, headers["content-type"]) == (400, "application/problem+json")
        assert json.loads(body)["request_id"] == headers["x-request-id"]
    assert httpx.get(f"{server.url}/healthz").status_code == 200


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([b"ZZ\r\n\r\n"], id="with-the-header"),
        pytest.param([b"", b"ZZ\r\n\r\n"], id="later"),
        pytest.param([b"", b"4\r\nabcd\r\n", b"ZZ\r\n\r\n"], id="after-a-chunk"),
        pytest.param([b"4\r\nabcd\r\nZZ\r\n\r\n"], id="all-at-once"),
    ],
)
def test_malformed_chunks_get_one_400_and_are_logged(
    server: Any, pieces: list[bytes], request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.id
    with Wire(server.url) as wire:
        wire.send(
            "POST /segment HTTP/1.1", "Transfer-Encoding: chunked", f"X-Request-ID: {name}", body=pieces[0]
        )
        for piece in pieces[1:]:
            # Another connection's answer: by now the server has read what this one sent.
            assert httpx.get(f"{server.url}/healthz").status_code == 200
            wire.socket.sendall(piece)
        status, headers, body = wire.response()
        assert (status, headers["content-type"]) == (400, "application/problem+json")
        assert headers["connection"] == "close"
        problem = json.loads(body)
        assert (problem["type"], problem["request_id"]) == ("urn:maskserve:problem:malformed-request", name)
        assert "chunks" in problem["detail"]
        wire.socket.shutdown(socket.SHUT_WR)
        assert wire.file.read() == b""
    server.wait_for(re.compile(rf"POST /segment 400 .* id={name}$"))


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        pytest.param("categories=猫".encode(), 'The model has no category "猫".', id="UTF-8"),
        pytest.param(b"categories=%E7%8C%AB", 'The model has no category "猫".', id="encoded"),
        pytest.param("categories=é".encode("latin-1"), "The model has no category", id="Latin-1"),
    ],
)
def test_a_query_in_any_script_is_read_as_it_is_typed(server: Any, query: bytes, detail: str) -> None:
    image = photo(64, 64)
    with Wire(server.url) as wire:
        for _ in range(2):
            header = b" HTTP/1.1\r\nHost: m\r\nContent-Length: %d\r\n\r\n" % len(image)
            wire.socket.sendall(b"POST /segment?" + query + header + image)
            status, _, body = wire.response()
            assert status == 422
            assert json.loads(body)["detail"].startswith(detail)


def test_a_malformed_address_gets_a_hint_at_encoding(server: Any) -> None:
    with Wire(server.url) as wire:
        wire.socket.sendall(b"GET /\xe7")
        assert httpx.get(f"{server.url}/healthz").status_code == 200  # by now it has been read
        wire.socket.sendall(b"\x8c\xab HTTP/1.1\r\n\r\n")
        status, headers, body = wire.response()
    assert (status, headers["content-type"]) == (400, "application/problem+json")
    assert "percent-encoded" in json.loads(body)["detail"]


@pytest.mark.parametrize("accept", ["application/x-ndjson", "application/json"])
def test_http_1_0_gets_no_chunks(server: Any, accept: str) -> None:
    image = photo(64, 64)
    with Wire(server.url) as wire:
        wire.send(
            "POST /segment HTTP/1.0",
            f"Content-Length: {len(image)}",
            f"Accept: {accept}",
            "Accept-Encoding: gzip",
            body=image,
        )
        status, headers, body = wire.response()
        assert (status, headers["content-type"]) == (200, accept)
        assert "transfer-encoding" not in headers
        assert json.loads(body)["image"] == {"width": 64, "height": 64}
        assert wire.file.read() == b""


# Start and end


def test_a_signal_ends_an_idle_server_with_code_0(start: Callable[..., Any]) -> None:
    running = start().wait_until_ready()
    running.process.send_signal(signal.SIGTERM)
    assert running.ended() == 0


def test_a_signal_during_the_load_ends_the_server_with_code_0(start: Callable[..., Any]) -> None:
    running = start(forked=False)
    running.wait_for(re.compile("settings: "))
    running.process.send_signal(signal.SIGTERM)
    assert running.ended() == 0


def test_after_a_signal_accepted_requests_finish_and_new_ones_get_503(
    start: Callable[..., Any],
) -> None:
    running = start().wait_until_ready()
    image = photo(640, 480)

    async def run() -> tuple[list[httpx.Response], httpx.Response]:
        async with httpx.AsyncClient(base_url=running.url, timeout=300) as client:
            accepted = [asyncio.ensure_future(client.post("/segment", content=image)) for _ in range(24)]
            done, _ = await asyncio.wait(accepted, return_when=asyncio.FIRST_COMPLETED)
            assert len(done) < len(accepted)
            running.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(running.wait_for, re.compile("shutting down"))
            ready = await client.get("/readyz")
            return await asyncio.gather(*accepted), ready

    accepted, ready = asyncio.run(run())
    assert ready.status_code == 503
    assert ready.json()["type"] == "urn:maskserve:problem:draining"
    # All were sent before the signal; one that was still being read when it came may be told to go elsewhere.
    statuses = [response.status_code for response in accepted]
    assert set(statuses) <= {200, 503}
    assert statuses.count(200) >= 8
    assert running.ended() == 0


def test_a_model_that_is_not_there_ends_the_server_with_one_line(
    start: Callable[..., Any], tmp_path: Any
) -> None:
    running = start(model=tmp_path / "none.safetensors")
    assert running.ended() == 1
    with pytest.raises(AssertionError, match="the server ended"):
        running.wait_for(re.compile("is ready"))
    (line,) = [line for line in running.log if "CRITICAL" in line]
    assert "none.safetensors: there is no such file" in line
    assert not any("Traceback" in line for line in running.log)


def test_a_port_in_use_ends_the_server_with_one_line(server: Any, start: Callable[..., Any]) -> None:
    port = urlsplit(server.url).port
    running = start(program=("-m", "app.cli", "serve", "--port", str(port)))
    assert running.ended() == 1
    with pytest.raises(AssertionError, match="the server ended"):
        running.wait_for(re.compile("is ready"))
    assert (
        f"cannot listen on 127.0.0.1 port {port}: it is in use; choose another with --port or MASKSERVE_PORT"
        in running.log[-1]
    )


def test_the_health_check_finds_the_service_by_its_settings(server: Any, command: Callable[..., Any]) -> None:
    port = urlsplit(server.url).port
    for arguments in (["healthcheck", "--port", port], ["healthcheck", "--port", port, "--ready"]):
        assert command(*arguments).returncode == 0
    result = command("healthcheck", port=port, host="0.0.0.0")
    assert (result.returncode, result.stdout) == (0, f"http://127.0.0.1:{port}/healthz: ok\n")
    nobody = command("healthcheck", port=1)
    assert (nobody.returncode, nobody.stdout) == (1, "")
    assert nobody.stderr == "http://127.0.0.1:1/healthz: Connection refused\n"


def test_a_misspelt_setting_stops_the_start(command: Callable[..., Any]) -> None:
    result = command("serve", modle="shapes")
    assert result.returncode == 2
    assert result.stderr == "MASKSERVE_MODLE is not a setting; did you mean MASKSERVE_MODEL?\n"


def test_a_setting_out_of_bounds_stops_the_start(command: Callable[..., Any]) -> None:
    result = command("serve", "--device", "gpu")
    assert result.returncode == 2
    assert result.stderr.startswith("MASKSERVE_DEVICE=gpu: ")
