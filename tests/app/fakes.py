"""A fake engine, and the real application around it: what the tests of the HTTP contract share."""

from __future__ import annotations

import asyncio
import io
import struct
import zlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import torch
from PIL import Image

from app.main import create_app
from app.settings import Settings
from model.data import Category
from model.instances import Instances, Options
from model.network.architecture import Architecture
from model.zoo.model_file import describe

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    import numpy as np
    from fastapi import FastAPI
    from numpy.typing import NDArray

PATIENCE = 20  # seconds, for what takes milliseconds; met only when something hangs
CATEGORIES = (Category(1, "person"), Category(18, "dog"))


def picture(kind: str, width: int = 40, height: int = 30) -> bytes:
    """An image file of two colours."""
    image = Image.new("RGB", (width, height), "navy")
    image.paste("orange", (5, 5, width // 2, height // 2))
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


PHOTO = picture("PNG")


class FakeEngine:
    """Finds a person and a dog in every image, or does what the test tells it to."""

    def __init__(self, behave: Callable[[], None] = lambda: None) -> None:
        self.model = describe(
            "fake",
            Architecture(classes=3),
            CATEGORIES,
            ap={"mask": 0.5},
            sha256="f" * 64,
            notice="Only a fake.",
        )
        self.device = torch.device("cpu")
        self.precision = "float32"
        self.batches = True
        self.cores = 1
        self.behave = behave
        self.images = 0

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    def device_memory(self) -> dict[str, int]:
        return {}

    def padded_shape(self, height: int, width: int) -> tuple[int, int]:
        return -(-height // 32) * 32, -(-width // 32) * 32

    def warm_up(self) -> None:
        pass

    def segment(self, images: Sequence[NDArray[np.uint8]], options: Sequence[Options]) -> list[Instances]:
        self.behave()
        self.images += len(images)
        return [self.instances(image, wanted) for image, wanted in zip(images, options, strict=True)]

    def instances(self, image: NDArray[np.uint8], wanted: Options) -> Instances:
        height, width = image.shape[:2]
        scores = torch.tensor([0.98765432, 0.6])
        labels = torch.tensor([1, 18])
        boxes = torch.tensor([[1.234, 2.345, width - 3.1, height - 4.2], [0.0, 0.0, 8.0, 8.0]])
        kept = scores >= wanted.score_threshold
        if wanted.categories is not None:
            kept &= torch.tensor([int(label) in wanted.categories for label in labels])
        chosen = kept.nonzero().flatten()[: wanted.max_instances]
        probabilities = torch.full((2, 28, 28), 0.9)[chosen] if wanted.masks else None
        return Instances((height, width), boxes[chosen], scores[chosen], labels[chosen], probabilities)


@asynccontextmanager
async def serving(
    engine: FakeEngine | None = None,
    *,
    load: Callable[[], FakeEngine] | None = None,
    on_failure: Callable[[], None] = lambda: None,
    wait: bool = True,
    **settings: Any,
) -> AsyncIterator[tuple[httpx.AsyncClient, FastAPI]]:
    """A client of an application that is ready, or with wait=False still loads."""
    # Two decoders would start with the first image, and take a quarter of a second of processor time.
    given = Settings(**{"decode_processes": 1, **settings})
    app = create_app(given, load or (lambda: engine or FakeEngine()), on_failure)
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://maskserve") as client,
        asyncio.timeout(PATIENCE),
    ):
        if wait:
            await app.state.service.ready.wait()
        yield client, app


async def until(condition: Callable[[], bool]) -> None:
    """Let the event loop go on until the condition holds."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0)


def ask(
    method: str,
    url: str,
    engine: FakeEngine | None = None,
    settings: dict[str, Any] | None = None,
    **request: Any,
) -> httpx.Response:
    """The answer to one request."""

    async def run() -> httpx.Response:
        async with serving(engine, **(settings or {})) as (client, _):
            return await client.request(method, url, **request)

    return asyncio.run(run())


def post(query: str = "", content: bytes = PHOTO, kind: str = "image/png", **more: Any) -> httpx.Response:
    """The answer to a raw image."""
    return ask("POST", f"/segment{query}", content=content, headers={"content-type": kind}, **more)


def fail() -> None:
    raise RuntimeError("the secret inside")


def png_of(width: int, height: int) -> bytes:
    """A PNG that claims this size and has no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    checked = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + checked + struct.pack(">I", 0) + b"IDAT"


class Scripted:
    """An ASGI client that sends what the test says and remembers what came back."""

    def __init__(
        self,
        app: FastAPI,
        events: list[dict[str, Any]],
        headers: dict[str, str] | None = None,
        query: str = "",
    ) -> None:
        self.events = events
        self.more = asyncio.Event()
        self.sent: list[dict[str, Any]] = []
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "path": "/segment",
            "raw_path": b"/segment",
            "root_path": "",
            "scheme": "http",
            "query_string": query.encode(),
            "headers": [(k.encode(), v.encode()) for k, v in (headers or {}).items()],
            "server": ("maskserve", 80),
        }
        self.run = asyncio.ensure_future(app(scope, self.receive, self.send))

    async def receive(self) -> dict[str, Any]:
        while not self.events:
            await self.more.wait()
            self.more.clear()
        return self.events.pop(0)

    async def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    def begin_shutdown(self) -> None:
        self.events.append({"type": "http.disconnect"})
        self.more.set()

    @property
    def status(self) -> int:
        return self.sent[0]["status"]

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


def request_event(body: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}
