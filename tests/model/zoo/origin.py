"""An HTTP server on loopback that can be told to misbehave, and a destination to download into."""

from __future__ import annotations

import contextlib
import hashlib
import random
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from model.zoo.download import download
from model.zoo.partial import Partial

if TYPE_CHECKING:
    from pathlib import Path

MEBIBYTE = 1 << 20
CONTENT = random.Random(1).randbytes(300_000)  # larger than the sockets' reads, quick to hash


def official_name(content: bytes) -> str:
    """A file name with the first eight digits of the content's sha256, as the official files have."""
    return f"net_coco-{hashlib.sha256(content).hexdigest()[:8]}.pth"


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Request:
    target: str
    range: str | None
    if_range: str | None
    status: int = 0


@dataclass
class Origin:
    """What the server has and how it behaves; `requests` and `sent` say what it was asked for and gave."""

    port: int
    content: bytes = CONTENT
    etag: str | None = '"one"'
    last_modified: str | None = None
    content_type: str = "application/octet-stream"
    honours_range: bool = True
    honours_if_range: bool = True
    announced: int | None = None  # a Content-Length that is not the content's
    cuts: list[int] = field(default_factory=list)  # bytes after which each answer breaks off, in turn
    stalls: list[int] = field(default_factory=list)  # bytes after which each answer waits for `gate`, in turn
    statuses: list[int] = field(default_factory=list)  # errors to answer with first, in turn
    location: str | None = None  # redirect everything but this path to it
    requests: list[Request] = field(default_factory=list)
    sent: int = 0  # bytes of bodies
    gate: threading.Event = field(default_factory=threading.Event)
    stalled: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/models/{official_name(self.content)}"


class Handler(BaseHTTPRequestHandler):
    """HTTP/1.0 with Content-Length; takes absolute-form targets too, as a forward proxy does."""

    server: OriginServer

    def do_GET(self) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client has seen enough
            self.answer(self.server.origin)

    def answer(self, origin: Origin) -> None:
        request = Request(self.path, self.headers["Range"], self.headers["If-Range"])
        origin.requests.append(request)
        if origin.statuses:
            request.status = origin.statuses.pop(0)
            self.send_error(request.status)
            return
        if origin.location is not None and urlsplit(self.path).path != origin.location:
            request.status = 302
            self.send_response(302)
            self.send_header("Location", origin.location)
            self.end_headers()
            return
        size, start, request.status = len(origin.content), 0, 200
        same = not origin.honours_if_range or request.if_range in (None, origin.etag, origin.last_modified)
        if request.range is not None and origin.honours_range and same:
            start = int(request.range.removeprefix("bytes=").removesuffix("-"))
            request.status = 206 if start < size else 416
        self.send_response(request.status)
        for name, value in (("ETag", origin.etag), ("Last-Modified", origin.last_modified)):
            if value is not None:
                self.send_header(name, value)
        if request.status == 416:
            self.send_header("Content-Range", f"bytes */{size}")
            self.end_headers()
            return
        if request.status == 206:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Content-Type", origin.content_type)
        self.send_header("Content-Length", str(origin.announced or size - start))
        self.end_headers()
        body = origin.content[start:]
        if origin.stalls:
            count = origin.stalls.pop(0)
            self.send(origin, body[:count])
            origin.stalled.set()
            origin.gate.wait(30)
            body = body[count:]
        self.send(origin, body[: origin.cuts.pop(0)] if origin.cuts else body)

    def send(self, origin: Origin, body: bytes) -> None:
        self.wfile.write(body)
        self.wfile.flush()
        origin.sent += len(body)

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


class OriginServer(ThreadingHTTPServer):
    origin: Origin


@dataclass
class Fetch:
    """One destination, and what download said while it fetched into it."""

    folder: Path
    pauses: list[float] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    progress: list[tuple[int, int | None]] = field(default_factory=list)

    def __call__(self, origin: Origin, url: str | None = None, **options: Any) -> Path:
        destination = self.path(origin)
        options.setdefault("progress", lambda done, total: self.progress.append((done, total)))
        sleep, tell = self.pauses.append, self.lines.append
        download(url or origin.url, destination, sha256_of(origin.content), sleep=sleep, tell=tell, **options)
        return destination

    def path(self, origin: Origin) -> Path:
        return self.folder / official_name(origin.content)

    def left(self) -> set[str]:
        """What lies in the folder besides lock files."""
        return {path.name for path in self.folder.iterdir() if path.suffix != ".lock"}


def partial_of(fetch: Fetch, origin: Origin, content: bytes, validator: str | None) -> Partial:
    fetch.folder.mkdir()
    partial = Partial(fetch.path(origin))
    partial.restart(validator)
    partial.path.write_bytes(content)
    return partial
