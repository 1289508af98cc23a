"""One decoder process as the process that serves sees it: started, given a job, asked for pixels, killed."""

from __future__ import annotations

import asyncio
import math
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import orjson

from app.problems import (
    BodyTooLarge,
    ImageTooLarge,
    MalformedRequest,
    NotReady,
    Problem,
    UndecodableImage,
    UnsupportedFormat,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

PROGRAM = "app.intake.decoder_process"
# Bytes that are copied at once on the event loop; a thread copies more.
SMALL_BYTES = 4 << 20
# Bytes of pixels that are copied before their memory is given back; whole pages.
BAND_BYTES = 16 << 20
BYTES_PER_PIXEL = 3
# Retry-After of a request whose decoder was killed from outside.
RETRY_SECONDS = 1.0
# Most bytes of an answer, which is one line. What a process sends beyond that is no answer.
MOST_ANSWER_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image file as it was sent."""

    content: bytes
    # The content is not the file but the inside of a JSON string, which has it in base64.
    base64: bool = False


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a decoder process found in an image's header."""

    format: str
    # Pixels of the upright image.
    width: int
    height: int
    # Bytes that decoding takes at most, besides the file.
    memory: int
    # The pixels, [H, W, 3] uint8, if they were decoded at once.
    decoded: NDArray[np.uint8] | None = field(default=None, repr=False, compare=False)

    @property
    def pixels(self) -> int:
        """How many pixels decoding will make."""
        return self.width * self.height


@dataclass(frozen=True, slots=True)
class DecoderJob:
    """What a decoder process is asked to do."""

    # "inspect" or "decode".
    do: str
    file: ImageFile
    # Limits: bytes besides the shared ones, seconds of processor time.
    memory: int
    seconds: float
    # An image of so many pixels at most is decoded when it is inspected.
    decode_up_to: int = 0
    # Set when the caller no longer waits for the answer.
    abandoned: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def small(self) -> bool:
        """Whether file and pixels are copied at once."""
        most = max(len(self.file.content), BYTES_PER_PIXEL * self.decode_up_to)
        return self.do == "inspect" and most <= SMALL_BYTES


class DecoderLostError(Exception):
    """The process ended before its answer; the argument is its exit code."""


class Child(asyncio.Protocol):
    """A decoder process. Its methods belong to the event loop; making one takes milliseconds, in a thread.

    It is the protocol of its own connection, because streams would take a task and two futures more for each job.
    """

    def __init__(self, shared_bytes: int) -> None:
        """Start it. Raises OSError."""
        ours, theirs = socket.socketpair()
        with theirs, _memory_file(shared_bytes) as file:
            self._shared = mmap.mmap(file.fileno(), shared_bytes)
            self.process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-S", "-P", "-m", PROGRAM, str(file.fileno()), str(shared_bytes)],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                pass_fds=(file.fileno(),),
                env=_environment(),
            )
        self._socket = ours
        self._view: NDArray[np.uint8] = np.frombuffer(self._shared, np.uint8)
        self._transport: asyncio.Transport | None = None
        self._connecting = False
        self._received = b""
        self._reply: asyncio.Future[bytes]

    @property
    def is_lost(self) -> bool:
        """Whether its connection has ended, so that it takes no more jobs."""
        return self._transport is None or self._transport.is_closing()

    async def connect(self) -> None:
        """Return when it can take jobs. Raises DecoderLostError."""
        # It was killed before its turn came.
        if self._socket.fileno() < 0:
            raise DecoderLostError(await asyncio.to_thread(self.process.wait))
        self._connecting = True
        loop = asyncio.get_running_loop()
        self._reply = loop.create_future()
        await loop.create_connection(lambda: self, sock=self._socket)
        await self.answer(self._reply)

    def ask(self, job: DecoderJob, max_bytes: int) -> asyncio.Future[bytes]:
        """Give it a job whose file lies in the shared memory; what comes back is for `answer`.

        max_bytes: of the file, if that comes as base64.
        """
        self._reply = asyncio.get_running_loop().create_future()
        if self._transport is None or self.is_lost:
            self._reply.set_result(b"")
            return self._reply
        line = {
            "do": job.do,
            "bytes": len(job.file.content),
            "base64": job.file.base64,
            "max_bytes": max_bytes,
            "memory": job.memory,
            "seconds": job.seconds,
            "decode_up_to": job.decode_up_to,
        }
        self._transport.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        return self._reply

    async def answer(self, reply: asyncio.Future[bytes]) -> dict[str, Any]:
        """What it has found. Raises DecoderLostError."""
        if line := await reply:
            found: dict[str, Any] = orjson.loads(line)
            return found
        raise DecoderLostError(await asyncio.to_thread(self.process.wait))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It can be asked."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """A part of its answer, most often the whole."""
        self._received += data
        if self._received.endswith(b"\n"):
            line, self._received = self._received, b""
            if not self._reply.done():
                self._reply.set_result(line)
        elif len(self._received) > MOST_ANSWER_BYTES and self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's
        """It has ended, or is as good as that."""
        if not self._reply.done():
            self._reply.set_result(b"")

    def write(self, content: bytes) -> None:
        """Copy a file into the shared memory; much of it takes milliseconds."""
        # NumPy copies, and lets other threads run meanwhile.
        self._view[: len(content)] = np.frombuffer(content, np.uint8)

    async def pixels(self, shape: Sequence[int]) -> NDArray[np.uint8]:
        """A copy of the pixels that it has decoded, [H, W, 3]."""
        if math.prod(shape) <= SMALL_BYTES:
            return self._read(shape)
        return await asyncio.to_thread(self._read, shape)

    def _read(self, shape: Sequence[int]) -> NDArray[np.uint8]:
        size = math.prod(shape)
        pixels = np.empty(size, np.uint8)
        for begin in range(0, size, BAND_BYTES):
            end = min(begin + BAND_BYTES, size)
            pixels[begin:end] = self._view[begin:end]
            # A large image is never there twice.
            if size > BAND_BYTES and hasattr(mmap, "MADV_REMOVE"):
                self._shared.madvise(mmap.MADV_REMOVE, begin, end - begin)
        return pixels.reshape(shape)

    async def forget(self, job: DecoderJob, shape: Sequence[int]) -> None:
        """Give the shared memory of a job back to the system, if it was much."""
        size = max(len(job.file.content), math.prod(shape) if shape else 0)
        if size > SMALL_BYTES and hasattr(mmap, "MADV_REMOVE"):
            await asyncio.to_thread(self._shared.madvise, mmap.MADV_REMOVE)

    def kill(self) -> None:
        """End it, whatever it does; once more is fine. The caller waits for `process`.

        While `connect` is under way the socket is its own: it finds the process gone, and its caller kills once more.
        """
        self.process.kill()
        if self._transport is not None:
            self._transport.close()
        elif not self._connecting:
            self._socket.close()


def _memory_file(size: int) -> Any:
    """A file in memory without a name; pages that are never touched take no memory."""
    if hasattr(os, "memfd_create"):
        file = os.fdopen(os.memfd_create("maskserve-image"), "r+b")
    else:
        file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    file.truncate(size)
    return file


def _environment() -> dict[str, str]:
    """What the process needs of this process's environment; no secrets."""
    kept = {name: value for name in ("LD_LIBRARY_PATH", "LANG", "TZ") if (value := os.environ.get(name))}
    # One thread each: BLAS would reserve memory for more, which counts against the limit.
    path = os.pathsep.join(part for part in (os.path.realpath(entry) for entry in sys.path) if part)
    return {**kept, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def too_slow(job: DecoderJob) -> UndecodableImage:
    """The answer to a job that was ended at its limit."""
    return UndecodableImage(
        f"The image cannot be decoded: it takes more than {job.seconds:.1f} seconds of processor time, "
        "the limit for a file of its bytes and pixels."
    )


def why_lost(job: DecoderJob, exit_code: int) -> tuple[str, Problem]:
    """The reason to count, and the answer to a job whose process has ended by itself or been killed by others."""
    if exit_code == -signal.SIGXCPU:
        return "time", too_slow(job)
    if exit_code in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT):
        # The kernel has ended it, where memory is short, or before it could ignore a signal: the image is not at fault.
        detail = "The decoder was killed from outside; memory may be short. Another replica may answer."
        return "outside", NotReady(detail, retry_after=RETRY_SECONDS)
    return "crash", UndecodableImage("The image cannot be decoded: the decoder gave up on it.")


def raise_if_refused(found: dict[str, Any], max_bytes: int) -> None:
    """Raise the problem that a decoder process has found, if any."""
    kind, detail = found.get("error"), found.get("detail", "")
    if kind == "TooManyBytes":
        raise BodyTooLarge.beyond(max_bytes)
    if kind is not None:
        raise _PROBLEMS[kind](detail)


_PROBLEMS: dict[str, type[Problem]] = {
    "NotBase64": MalformedRequest,
    "UnsupportedImage": UnsupportedFormat,
    "DamagedImage": UndecodableImage,
    "ImageTooBig": ImageTooLarge,
}
