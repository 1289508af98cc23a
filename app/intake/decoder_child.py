"""One decoder process as the process that serves sees it: started, given a job, asked for pixels, killed."""

from __future__ import annotations

import asyncio
import json
import math
import mmap
import os
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from app.problems import (
    BodyTooLarge,
    ImageTooLarge,
    MalformedRequest,
    Problem,
    UndecodableImage,
    UnsupportedFormat,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

PROGRAM = "app.intake.decoder_process"
# Copied at once on the event loop; more is copied by a thread.
SMALL_BYTES = 4 << 20
# Of pixels, that are copied before their memory is given back; whole pages.
BAND_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image file as it was sent."""

    content: bytes
    # The content is not the file but the inside of a JSON string, which has it in base64.
    base64: bool = False


@dataclass(frozen=True, slots=True)
class Job:
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


class DecoderLostError(Exception):
    """The process ended before its answer; the argument is its exit code."""


class Child:
    """A decoder process. Its methods belong to the event loop; making one takes milliseconds, in a thread."""

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
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter | None = None
        self._connecting = False

    async def connect(self) -> None:
        """Return when it can take jobs. Raises DecoderLostError."""
        # It was killed before its turn came.
        if self._socket.fileno() < 0:
            raise DecoderLostError(await asyncio.to_thread(self.process.wait))
        self._connecting = True
        self._reader, self._writer = await asyncio.open_connection(sock=self._socket)
        await self.reply()

    async def send(self, job: Job, max_bytes: int) -> None:
        """Give it a job; max_bytes: of the file, if that comes as base64. Raises DecoderLostError."""
        content = job.file.content
        if len(content) <= SMALL_BYTES:
            self._write(content)
        else:
            await asyncio.to_thread(self._write, content)
        line = {
            "do": job.do,
            "bytes": len(content),
            "base64": job.file.base64,
            "max_bytes": max_bytes,
            "memory": job.memory,
            "seconds": job.seconds,
            "decode_up_to": job.decode_up_to,
        }
        if self._writer is not None:
            self._writer.write(json.dumps(line).encode() + b"\n")

    def _write(self, content: bytes) -> None:
        self._view[: len(content)] = np.frombuffer(content, np.uint8)

    async def reply(self) -> dict[str, Any]:
        """Its answer. Raises DecoderLostError."""
        with suppress(OSError):
            if line := await self._reader.readline():
                reply: dict[str, Any] = json.loads(line)
                return reply
        raise DecoderLostError(await asyncio.to_thread(self.process.wait))

    async def pixels(self, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
        """A copy of the pixels that it has decoded, [H, W, 3]."""
        if shape[0] * shape[1] * shape[2] <= SMALL_BYTES:
            return self._read(shape)
        return await asyncio.to_thread(self._read, shape)

    def _read(self, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
        size = shape[0] * shape[1] * shape[2]
        pixels = np.empty(size, np.uint8)
        for begin in range(0, size, BAND_BYTES):
            end = min(begin + BAND_BYTES, size)
            pixels[begin:end] = self._view[begin:end]
            # A large image is never there twice.
            if size > BAND_BYTES and hasattr(mmap, "MADV_REMOVE"):
                self._shared.madvise(mmap.MADV_REMOVE, begin, end - begin)
        return pixels.reshape(shape)

    async def forget(self, job: Job, shape: tuple[int, ...]) -> None:
        """Give the shared memory of a job back to the system, if it was much."""
        size = max(len(job.file.content), math.prod(shape) if shape else 0)
        if size > SMALL_BYTES and hasattr(mmap, "MADV_REMOVE"):
            await asyncio.to_thread(self._shared.madvise, mmap.MADV_REMOVE)

    def kill(self) -> None:
        """End it, whatever it does; once more is fine. The caller waits for `process`.

        While `connect` is under way the socket is its own: it finds the process gone, and its caller kills once more.
        """
        self.process.kill()
        if self._writer is not None:
            self._writer.close()
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


def too_slow(job: Job) -> UndecodableImage:
    """The answer to a job that was ended at its limit."""
    return UndecodableImage(
        f"The image cannot be decoded: it takes more than {job.seconds:.1f} seconds of processor time, "
        "the limit for a file of its bytes and pixels."
    )


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
