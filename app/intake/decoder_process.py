"""What runs in a decoder process: everything that is done to the bytes of an image that a stranger sent.

Started by app/intake/decoders.py as a program of its own, without torch. Before the first byte of an image is looked at
the process gives up what it does not need: it can open no file and no connection, start no process and write no file;
each job has its own limits of memory and processor time, which the kernel holds.

A job is a line of JSON on standard input; its answer is a line of JSON on standard output. The file lies at the
beginning of memory that both processes share, and the pixels are written there.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import resource
import signal
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import ImageCms, ImageMode, ImageOps, ImagePalette, TiffImagePlugin
from PIL._imaging import clear_cache

from app.intake.base64_text import NotBase64, decode_base64
from app.runtime.allocator import keep_small_blocks, release_freed_memory
from model.images.decode import decode
from model.images.formats import ImageError, ImageTooBig
from model.images.header import read_header

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Pillow imports these when they are first needed, which is too late here.
IMPORTED_EARLY = (ImageCms, ImageMode, ImageOps, ImagePalette, TiffImagePlugin)
# What a job may take besides what its header says: Pillow's buffers, the interpreter's, a band of pixels.
SPARE_BYTES = 48 << 20
# The kernel counts a limit of processor time in whole seconds.
SPARE_SECONDS = 1
# What photos of up to a megapixel need is kept for the next one: to fetch it from the kernel again and to clear it
# takes longer than decoding (640 × 480 JPEG, Zen 5: 2.3 ms a job without, 1.0 ms with it).
KEPT_BLOCK_BYTES = 8 << 20
KEPT_BYTES = 32 << 20
# A job that takes more gives everything back.
LARGE_JOB_BYTES = 24 << 20
# A process whose address space stays larger by this has leaked memory or fragmented it: it is replaced.
MOST_GROWTH_BYTES = 64 << 20


def main() -> None:
    """Answer jobs until standard input ends. The arguments: descriptor and length of the shared memory."""
    # A signal to the whole process group is for the service: it still has images decoded while it drains. This process
    # ends with its standard input, or is killed.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    descriptor, length = int(sys.argv[1]), int(sys.argv[2])
    shared = mmap.mmap(descriptor, length)
    os.close(descriptor)
    process = Process(shared)
    process.give_up_rights()
    answer({"ready": True})
    for line in sys.stdin.buffer:
        answer(process.run(json.loads(line)))


def answer(found: dict[str, Any]) -> None:
    """Write one line."""
    sys.stdout.buffer.write(json.dumps(found).encode() + b"\n")
    sys.stdout.buffer.flush()


class Process:
    """The jobs of one process."""

    def __init__(self, shared: mmap.mmap) -> None:
        self.shared = shared
        # Read again before each job; it cannot be opened any more then. There is none on macOS.
        self.statm: int | None = None
        with suppress(OSError):
            self.statm = os.open("/proc/self/statm", os.O_RDONLY)
        self.size_at_start = self.address_space()

    def give_up_rights(self) -> None:
        """Keep nothing that a decoder does not need. What libraries print goes nowhere."""
        warnings.simplefilter("ignore")
        keep_small_blocks(KEPT_BLOCK_BYTES, KEPT_BYTES)
        # If the machine runs out of memory, the kernel ends this process before the one that serves.
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        for what in (
            resource.RLIMIT_NOFILE,
            resource.RLIMIT_NPROC,
            resource.RLIMIT_FSIZE,
            resource.RLIMIT_CORE,
        ):
            resource.setrlimit(what, (0, 0))

    def address_space(self) -> int:
        """Bytes of the process's address space, the shared memory included."""
        return 0 if self.statm is None else int(os.pread(self.statm, 64, 0).split()[0]) * mmap.PAGESIZE

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """The answer to one job, and whether the process should be replaced after it."""
        self.limit(job["memory"], job["seconds"])
        found = self.attempt(job)
        # An inspection is allowed more than a small image then takes.
        if job["bytes"] + found.get("memory", job["memory"]) > LARGE_JOB_BYTES:
            clear_cache()
            release_freed_memory()
        found["worn_out"] = self.address_space() > self.size_at_start + MOST_GROWTH_BYTES
        return found

    def attempt(self, job: dict[str, Any]) -> dict[str, Any]:
        """What was found, or why nothing was."""
        try:
            return self.do(job)
        except NotBase64 as error:
            return {"error": "NotBase64", "detail": str(error)}
        except ImageError as error:
            return {"error": type(error).__name__, "detail": str(error)}
        except MemoryError:
            return {"error": ImageTooBig.__name__, "detail": "The image needs too much memory."}

    def do(self, job: dict[str, Any]) -> dict[str, Any]:
        """What was found. Raises NotBase64, ImageError."""
        content = self.shared[: job["bytes"]]
        if job["base64"]:
            content = decode_base64(content)
            if len(content) > job["max_bytes"]:
                return {"error": "TooManyBytes"}
        if job["do"] == "decode":
            return {"shape": decode(content, self.pixels).shape}
        header = read_header(content)
        found: dict[str, Any] = {"format": header.format, "width": header.width, "height": header.height}
        found["memory"] = header.memory
        if header.pixels <= job["decode_up_to"]:
            found["shape"] = decode(content, self.pixels).shape
        return found

    def limit(self, memory: int, seconds: float) -> None:
        """Let the kernel end a job that takes more than so many bytes, or seconds of processor time."""
        spent = resource.getrusage(resource.RUSAGE_SELF)
        end = math.ceil(spent.ru_utime + spent.ru_stime + seconds) + SPARE_SECONDS
        set_soft_limit(resource.RLIMIT_CPU, end)
        if size := self.address_space():
            set_soft_limit(resource.RLIMIT_AS, size + memory + SPARE_BYTES)

    def pixels(self, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
        """Where pixels are written: the beginning of the shared memory, from which the file has been copied."""
        if math.prod(shape) > len(self.shared):
            raise ImageTooBig(f"{shape[1]} × {shape[0]} pixels are too many.", (shape[1], shape[0]))
        return np.frombuffer(self.shared, np.uint8, math.prod(shape)).reshape(shape)


def set_soft_limit(what: int, value: int) -> None:
    """Set a soft limit, within the hard one that the process was started with: only root may raise that."""
    _, hard = resource.getrlimit(what)
    resource.setrlimit(what, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


if __name__ == "__main__":
    main()
