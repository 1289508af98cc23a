"""The client's requests, limits and answers, against transports that do as they are told."""

from __future__ import annotations

import asyncio
import io
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from PIL import Image

from maskserve import AsyncClient, Client, Result, ServiceError, UnreachableError
from maskserve.requests import image_file
from model.images.decode import decode

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ANSWER = {
    "id": "0f",
    "model": "fake",
    "image": {"width": 9, "height": 6},
    "instances": [
        {
            "category_id": 18,
            "category": "dog",
            "score": 0.99,
            "bbox": [2.0, 1.0, 4.0, 3.0],
            "area": 12,
            "segmentation": {"size": [6, 9], "counts": "=3300000a0"},
        }
    ],
}
IMAGE = b"an image"


def answer(status: int, **headers: str) -> httpx.Response:
    problem = {
        "type": "urn:x",
        "title": "Queue full",
        "status": status,
        "detail": "Too many.",
        "request_id": "7",
    }
    return httpx.Response(
        status, json=problem, headers={name.replace("_", "-"): v for name, v in headers.items()}
    )


def client(handle: Callable[[httpx.Request], Any], **settings: Any) -> Client:
    return Client("http://maskserve", transport=httpx.MockTransport(handle), **settings)


# Requests and answers


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(np.linspace(0, 3000, 64 * 48).reshape(48, 64).astype(np.uint16)),
        Image.fromarray(np.linspace(0, 1, 64 * 48, dtype=np.float32).reshape(48, 64)),
        Image.new("RGBA", (64, 48), (200, 10, 10, 100)),
        Image.new("LA", (64, 48), (90, 0)),
        Image.new("P", (64, 48), 3),
        Image.new("1", (64, 48), 1),
    ],
    ids=lambda image: str(image.mode),
)
def test_a_pillow_image_is_read_as_its_file_is(image: Image.Image) -> None:
    file = io.BytesIO()
    image.save(file, "TIFF" if image.mode in ("I;16", "F") else "PNG")
    np.testing.assert_array_equal(decode(image_file(image)), decode(file.getvalue()))


@pytest.mark.parametrize(
    "tags",
    [{262: 0}, {281: 4095}, {270: "ImageJ=1.53\nmin=100.0\nmax=2000.0\n"}, {}],
    ids=["white is zero", "12 bits", "range of ImageJ", "compressed"],
)
def test_an_opened_tiff_is_sent_as_it_is_shown(tags: dict[int, Any]) -> None:
    file = io.BytesIO()
    values = Image.fromarray(np.linspace(0, 3000, 64 * 48).reshape(48, 64).astype(np.uint16))
    values.save(file, "TIFF", tiffinfo=tags, compression=None if tags else "tiff_lzw")
    with Image.open(file) as image:
        sent = image_file(image)
    np.testing.assert_array_equal(decode(sent), decode(file.getvalue()))


def test_a_photo_may_become_floats() -> None:
    """Its file's compression is not one for floats."""
    file = io.BytesIO()
    Image.new("RGB", (64, 48), "teal").save(file, "TIFF", compression="jpeg")
    with Image.open(file) as image:
        assert decode(image_file(image.convert("F"))).shape == (48, 64, 3)


@pytest.mark.parametrize(
    "url", ["localhost:8000", "http://localhost:abc", "ftp://localhost", "http:/localhost"]
)
def test_what_is_no_address_is_said_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="is no address"):
        Client(url)


@pytest.mark.parametrize("deadline", [float("inf"), 1e12])
def test_a_deadline_may_be_far_away(deadline: float) -> None:
    told: list[str] = []

    def handle(request: httpx.Request) -> httpx.Response:
        told.append(request.headers.get("X-Request-Timeout-Ms", "none"))
        return httpx.Response(200, json=ANSWER)

    with client(handle, deadline=deadline) as connected:
        connected.segment(IMAGE)
    assert told == ["none" if deadline == float("inf") else "999999999"]


def test_what_is_asked_reaches_the_service() -> None:
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json=ANSWER)

    with client(handle, api_key="secret") as asked:
        asked.segment(IMAGE, score_threshold=0.7, categories=["dog", 3], masks="polygon", max_instances=5)
    (request,) = seen
    assert request.url.params.multi_items() == [
        ("score_threshold", "0.7"),
        ("categories", "dog"),
        ("categories", "3"),
        ("masks", "polygon"),
        ("max_instances", "5"),
    ]
    assert request.content == IMAGE
    assert request.headers["authorization"] == "Bearer secret"
    assert request.headers["accept"] == "application/json"


def test_images_come_as_paths_bytes_pixels_and_pil_images(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    seen: list[bytes] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request.content)
        return httpx.Response(200, json=ANSWER)

    with client(handle) as asked:
        for image in (path, str(path), path.read_bytes(), pixels, Image.fromarray(pixels)):
            asked.segment(image)
        with pytest.raises(TypeError, match="float64"):
            asked.segment(pixels / 255.0)
        with pytest.raises(ValueError, match=r"not \[20, 30, 2\]"):
            asked.segment(pixels[:, :, :2])
    assert len(seen) == 5
    for content in seen:
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), pixels)


def test_the_result_is_typed() -> None:
    with client(
        lambda _: httpx.Response(200, json=ANSWER, headers={"server-timing": "queue;dur=3.5"})
    ) as asked:
        result = asked.segment(IMAGE)
    (dog,) = result.instances
    assert (result.id, result.model, result.width, result.height) == ("0f", "fake", 9, 6)
    assert (dog.category_id, dog.category, dog.score, dog.area) == (18, "dog", 0.99, 12)
    assert dog.bbox == (2, 1, 4, 3)
    assert dog.box == (2, 1, 6, 4)
    assert dog.mask.shape == (6, 9)
    assert dog.mask.sum() == 12
    assert result.timings == {"queue": 3.5}
    assert result.document == ANSWER


def test_it_retries_until_the_service_has_room() -> None:
    answers = [answer(429, retry_after="0"), answer(503, retry_after="0"), httpx.Response(200, json=ANSWER)]
    with client(lambda _: answers.pop(0)) as asked:
        assert len(asked.segment(IMAGE).instances) == 1
    assert not answers


def test_closing_ends_the_calls_of_other_threads() -> None:
    reached = threading.Event()

    async def handle(_: httpx.Request) -> httpx.Response:
        reached.set()
        await asyncio.Event().wait()
        raise AssertionError

    ended: list[BaseException] = []

    def call() -> None:
        try:
            asked.segment(IMAGE)
        except UnreachableError as error:
            ended.append(error)

    asked = client(handle)
    thread = threading.Thread(target=call)
    thread.start()
    assert reached.wait(20)
    asked.close()
    thread.join(20)
    assert len(ended) == 1
    with pytest.raises(UnreachableError, match="the client is closed"):
        asked.segment(IMAGE)
    asked.close()


def test_closing_ends_a_call_whose_future_ctrl_c_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    start = asyncio.run_coroutine_threadsafe
    ended = threading.Event()

    async def handle(_: httpx.Request) -> httpx.Response:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    def interrupt(*args: Any) -> Any:
        start(*args)
        raise KeyboardInterrupt

    asked = client(handle, deadline=30)
    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", interrupt)
    with pytest.raises(KeyboardInterrupt):
        asked.segment(IMAGE)
    monkeypatch.undo()
    closing = threading.Thread(target=asked.close)
    closing.start()
    assert ended.wait(10)  # far below the call's deadline
    closing.join()


@pytest.mark.parametrize(
    "use", ["client = maskserve.Client(**made); client.model()", "maskserve.Client(**made).model()"]
)
def test_a_program_ends_that_closes_no_client(use: str) -> None:
    code = f"""
import httpx, maskserve
transport = httpx.MockTransport(lambda _: httpx.Response(200, json={{"categories": [], "name": "m"}}))
made = {{"url": "http://x", "transport": transport}}
{use}
print("done")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_who_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskserve.retry.FIRST_PAUSE", 0.001)
    with socket.create_server(("127.0.0.1", 0)) as unused:
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with Client(url) as asked, pytest.raises(UnreachableError, match=f"no service answers at {url}"):
        asked.model()


def test_it_never_has_more_requests_open_than_it_may() -> None:
    together = asyncio.Barrier(3)
    open_now, most = 0, 0

    async def handle(_: httpx.Request) -> httpx.Response:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        await together.wait()
        open_now -= 1
        return httpx.Response(200, json=ANSWER)

    with client(handle, concurrency=3) as asked:
        assert len(list(asked.segment_many([IMAGE] * 12))) == 12
    assert most == 3


def test_many_images_come_in_order_each_with_its_result_or_error() -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        number = int(request.content)
        return httpx.Response(200, json={**ANSWER, "id": str(number)}) if number % 5 else answer(422)

    with client(handle) as asked:
        outcomes = list(asked.segment_many([b"%d" % number for number in range(40)] + ["/does/not/exist"]))
    assert isinstance(outcomes.pop(), FileNotFoundError)
    assert [outcome.id if isinstance(outcome, Result) else outcome.status for outcome in outcomes] == [
        str(number) if number % 5 else 422 for number in range(40)
    ]


def test_images_are_taken_only_a_little_ahead() -> None:
    taken = 0

    def images() -> Any:
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield IMAGE

    with client(lambda _: httpx.Response(200, json=ANSWER), concurrency=2) as asked:
        outcomes = asked.segment_many(images())
        next(outcomes)
        assert taken <= 4
        outcomes.close()


def test_the_asynchronous_client_does_the_same() -> None:
    answers = [answer(429, retry_after="0")]

    def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/model":
            return httpx.Response(200, json={"name": "fake", "categories": []})
        if request.content == b"bad":
            return answer(415)
        if request.headers["accept"] == "image/png":
            return httpx.Response(200, content=b"picture", headers={"content-type": "image/png"})
        return answers.pop() if answers else httpx.Response(200, json=ANSWER)

    async def run() -> None:
        transport = httpx.MockTransport(handle)
        async with AsyncClient("http://maskserve", transport=transport, concurrency=2) as asked:
            assert len((await asked.segment(IMAGE)).instances) == 1
            assert (await asked.model())["name"] == "fake"
            assert await asked.draw(IMAGE) == b"picture"
            images = [IMAGE, b"bad", *[IMAGE] * 8]
            outcomes = [outcome async for outcome in asked.segment_many(images)]
        assert isinstance(outcomes[1], ServiceError)
        assert sum(isinstance(outcome, Result) for outcome in outcomes) == 9

    asyncio.run(run())


def test_the_client_does_without_torch_and_the_service() -> None:
    check = """
import sys, maskserve.client, maskserve.export, maskserve.results
sys.exit(" ".join({"torch", "fastapi", "app", "model"} & set(sys.modules)) or None)
"""
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_the_package_alone_imports_no_library() -> None:
    check = "import sys, maskserve; sys.exit(' '.join({'httpx', 'numpy', 'PIL'} & set(sys.modules)) or None)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
