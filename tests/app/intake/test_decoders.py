"""Decoder processes: the same pixels as in this process, and no image that harms more than its own request."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import os
import re
import resource
import signal
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from app.intake import decoder_accounts, decoder_process
from app.intake import decoders as module
from app.intake.decoder_accounts import MemoryBudget, TurnTimes
from app.intake.decoder_child import ImageFile
from app.intake.decoders import Decoders
from app.problems import (
    BodyTooLarge,
    ImageTooLarge,
    MalformedRequest,
    NotReady,
    Problem,
    UndecodableImage,
    UnsupportedFormat,
)
from model.images.decode import decode
from tests.app.fakes import png_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

PATIENCE = 30  # seconds, for what takes fractions of one; met only when something hangs


def file_of(image: Image.Image, form: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def scene(width: int = 64, height: int = 48) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 255, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height))


def scans(width: int, height: int, count: int) -> bytes:
    """A progressive JPEG whose last scan, which brings nothing new, comes again and again."""
    content = file_of(Image.new("L", (width, height)), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * count + content[-2:]


PHOTO = file_of(scene())
SLOW = scans(3000, 3000, 3000)


@asynccontextmanager
async def pool(turns: int = 1, **limits: int) -> AsyncIterator[Decoders]:
    decoders = Decoders(
        turns, **{"max_bytes": 1 << 22, "max_pixels": 20_000_000, "max_text": 1 << 23, **limits}
    )
    try:
        yield decoders
    finally:
        await decoders.stop()


async def pixels(decoders: Decoders, content: bytes) -> np.ndarray:
    file = ImageFile(content)
    return await decoders.decode(file, await decoders.inspect(file))


def run(work: Callable[[], Coroutine[None, None, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE):
            await work()

    asyncio.run(bounded())


FILES = {
    "jpeg": PHOTO,
    "turned": file_of(
        scene(), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    ),
    "cmyk": file_of(scene().convert("CMYK")),
    "png": file_of(scene(), "PNG"),
    "palette": file_of(scene().quantize(16), "PNG", transparency=3),
    "webp": file_of(scene(), "WEBP", lossless=True),
    "gif": file_of(scene(), "GIF"),
    "bmp": file_of(scene(), "BMP"),
    "tiff": file_of(scene(), "TIFF", compression="tiff_lzw"),
    "tiff in JPEG": file_of(scene(), "TIFF", compression="jpeg"),
    "lab": file_of(Image.new("LAB", (4, 4), (136, 208, 195)), "TIFF"),
    "float": file_of(Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)), "TIFF"),
    "grey16": file_of(Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)), "PNG"),
    "large": file_of(scene(1600, 1400), "PNG"),
}


def test_the_pixels_are_those_of_decoding_here() -> None:
    async def work() -> None:
        async with pool() as decoders:
            for name, content in FILES.items():
                np.testing.assert_array_equal(await pixels(decoders, content), decode(content), name)

    run(work)


def test_small_images_are_decoded_when_they_are_inspected() -> None:
    async def work() -> None:
        async with pool() as decoders:
            file = ImageFile(PHOTO)
            found = await decoders.inspect(file, decode_up_to=64 * 48)
            np.testing.assert_array_equal(found.decoded, decode(PHOTO))
            assert (await decoders.inspect(file, decode_up_to=64 * 48 - 1)).decoded is None
            with pytest.raises(UndecodableImage, match="truncated"):
                await decoders.inspect(ImageFile(PHOTO[:-200]), decode_up_to=64 * 48)
            async with decoders.memory.hold(decoders.memory.limit):
                assert (await decoders.inspect(file, decode_up_to=64 * 48)).decoded is None
            assert decoders.memory.used == 0

    run(work)


def test_base64_is_decoded_there() -> None:
    async def work() -> None:
        async with pool(max_bytes=len(PHOTO)) as decoders:
            file = ImageFile(base64.b64encode(PHOTO), base64=True)
            found = await decoders.inspect(file)
            assert (found.format, found.width, found.height, found.pixels) == ("JPEG", 64, 48, 64 * 48)
            np.testing.assert_array_equal(await decoders.decode(file, found), decode(PHOTO))
            with pytest.raises(MalformedRequest, match="not valid base64"):
                await decoders.inspect(ImageFile(b"A", base64=True))
            with pytest.raises(BodyTooLarge, match=f"{len(PHOTO)} bytes"):
                await decoders.inspect(ImageFile(base64.b64encode(PHOTO + b"123"), base64=True))

    run(work)


def test_each_kind_of_bad_image_has_its_problem() -> None:
    async def work() -> None:
        async with pool() as decoders:
            with pytest.raises(UnsupportedFormat, match="This file is not accepted"):
                await decoders.inspect(ImageFile(b"no image"))
            with pytest.raises(UndecodableImage, match="truncated"):
                await pixels(decoders, PHOTO[:-200])
            with pytest.raises(ImageTooLarge, match="at most 65535 a side"):
                await decoders.inspect(ImageFile(png_of(70_000, 1)))
            assert (await pixels(decoders, PHOTO)).shape == (48, 64, 3)

    run(work)


def test_an_image_that_takes_too_long_is_ended_and_nobody_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decoder_accounts, "MIN_SECONDS", 0.5)
    monkeypatch.setattr(decoder_accounts, "PIXELS_PER_SECOND", 1e9)

    async def work() -> None:
        async with pool() as decoders:
            await pixels(decoders, PHOTO)
            slow = [asyncio.create_task(pixels(decoders, SLOW)) for _ in range(2)]
            await asyncio.sleep(0)
            started = time.monotonic()
            for _ in range(3):
                assert (await pixels(decoders, PHOTO)).shape == (48, 64, 3)
            assert time.monotonic() - started < 5
            for result in await asyncio.gather(*slow, return_exceptions=True):
                assert isinstance(result, UndecodableImage)
                assert "seconds of processor time" in result.detail
            assert decoders.killed == {"time": 2}
            assert (decoders.memory.used, decoders.expected_wait()) == (0, 0.0)

    run(work)


@pytest.mark.parametrize(
    ("number", "problem", "reason"),
    [
        (signal.SIGSEGV, UndecodableImage, "crash"),
        # As the kernel does where memory is short: another replica may have some.
        (signal.SIGKILL, NotReady, "outside"),
    ],
)
def test_a_process_that_dies_is_replaced(number: signal.Signals, problem: type[Problem], reason: str) -> None:
    async def work() -> None:
        async with pool() as decoders:
            await pixels(decoders, PHOTO)
            slow = asyncio.create_task(pixels(decoders, SLOW))
            while not decoders.processes(busy=True):
                await asyncio.sleep(0.01)
            for process in decoders.processes(busy=True):
                os.kill(process, number)
            with pytest.raises(problem, match=r"gave up|from outside"):
                await slow
            assert decoders.killed == {reason: 1}
            assert (await pixels(decoders, PHOTO)).shape == (48, 64, 3)

    run(work)


def test_signals_to_the_whole_process_group_end_no_decoder() -> None:
    """As `kill -TERM -PGID` and systemd send them: images that were accepted are still decoded."""

    async def work() -> None:
        async with pool() as decoders:
            await pixels(decoders, PHOTO)
            (process,) = decoders.processes(busy=False)
            for number in (signal.SIGTERM, signal.SIGINT):
                os.kill(process, number)
            assert (await pixels(decoders, PHOTO)).shape == (48, 64, 3)
            assert decoders.processes(busy=False) == [process]

    run(work)


def test_a_process_that_died_while_it_had_nothing_to_do_costs_no_job() -> None:
    async def work() -> None:
        async with pool() as decoders:
            await pixels(decoders, PHOTO)
            (process,) = decoders.processes(busy=False)
            os.kill(process, signal.SIGKILL)
            (child,) = decoders._idle
            while not child.is_lost:
                await asyncio.sleep(0.01)
            assert (await pixels(decoders, PHOTO)).shape == (48, 64, 3)
            assert decoders.killed == {}

    run(work)


@pytest.mark.parametrize("error", [BlockingIOError(), RuntimeError("can't start new thread")])
def test_processes_that_cannot_be_started_are_tried_again_after_a_pause(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    tries: list[float] = []
    start = module.Child

    def fail_twice(shared_bytes: int) -> Any:
        tries.append(time.monotonic())
        if len(tries) <= 2:
            raise error
        return start(shared_bytes)

    monkeypatch.setattr(module, "Child", fail_twice)
    monkeypatch.setattr(decoder_accounts, "RETRY_SECONDS", 0.1)

    async def work() -> None:
        async with pool() as decoders:
            jobs = [asyncio.create_task(pixels(decoders, PHOTO)) for _ in range(5)]
            assert len(await asyncio.gather(*jobs)) == 5

    run(work)
    # No job begins a try of its own, and the pause doubles. On a busy machine a slow job has another process started.
    first, second = (after - before for before, after in itertools.pairwise(tries[:3]))
    assert first >= 0.1
    assert second >= 0.2


@pytest.mark.parametrize(("hard", "expected"), [(resource.RLIM_INFINITY, 70), (100, 70), (50, 50)])
def test_a_limit_stays_within_the_one_that_the_process_was_started_with(
    monkeypatch: pytest.MonkeyPatch, hard: int, expected: int
) -> None:
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (hard, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: limits.append(pair))
    decoder_process.set_soft_limit(resource.RLIMIT_AS, 70)
    assert limits == [(expected, hard)]


def test_what_nobody_waits_for_any_more_is_ended_once_it_is_slow() -> None:
    async def work() -> None:
        async with pool() as decoders:
            file = ImageFile(SLOW)
            slow = asyncio.create_task(decoders.decode(file, await decoders.inspect(file)))
            while not decoders.processes(busy=True):
                await asyncio.sleep(0.01)
            slow.cancel()
            while decoders.processes(busy=True):
                await asyncio.sleep(0.01)
            assert decoders.killed == {"abandoned": 1}
            assert decoders.memory.used == 0

    run(work)


def test_memory_beyond_what_a_header_states_is_refused_by_the_kernel() -> None:
    async def work() -> None:
        async with pool() as decoders:
            content = file_of(scene(4000, 4000), "PNG")
            file = ImageFile(content)
            found = await decoders.inspect(file)
            modest = type(found)(found.format, found.width, found.height, memory=1 << 20)
            with pytest.raises(ImageTooLarge, match="memory"):
                await decoders.decode(file, modest)
            assert (await decoders.decode(file, found)).shape == (4000, 4000, 3)

    run(work)


def test_a_decoder_process_can_open_nothing() -> None:
    async def work() -> None:
        async with pool() as decoders:
            await pixels(decoders, PHOTO)
            (process,) = decoders.processes(busy=False)
            about = Path(f"/proc/{process}")
            limits = about.joinpath("limits").read_text()
            for what in ("Max open files", "Max processes", "Max file size", "Max core file size"):
                assert re.search(rf"^{what} +0 +0 ", limits, re.MULTILINE), what
            environment = about.joinpath("environ").read_bytes()
            assert b"HOME=" not in environment

    run(work)


def test_the_memory_of_small_images_is_kept_and_that_of_large_ones_returned() -> None:
    """Page faults of a process are the tenth field of its stat, counted from 1 (proc(5))."""
    small, large = file_of(scene(640, 480)), file_of(scene(3000, 2000))

    async def work() -> None:
        async with pool() as decoders:
            for _ in range(3):
                await decoders.inspect(ImageFile(small), decode_up_to=1 << 20)
            (process,) = decoders.processes(busy=False)
            about = Path(f"/proc/{process}")

            def faults() -> int:
                return int(about.joinpath("stat").read_text().rpartition(")")[2].split()[7])

            def resident() -> int:
                return int(about.joinpath("statm").read_text().split()[1]) * resource.getpagesize()

            before = faults()
            for _ in range(5):
                await decoders.inspect(ImageFile(small), decode_up_to=1 << 20)
            assert faults() - before < 640 * 480 * 3 // resource.getpagesize()
            kept = resident()
            await pixels(decoders, large)
            assert decoders.processes(busy=False) == [process]
            assert resident() < kept + (8 << 20)

    run(work)


def test_nothing_that_a_library_prints_gets_between_the_lines_of_the_log() -> None:
    """libtiff prints what it finds wrong, on stderr: here a pipe, as a process that may write no files can fill one."""
    damaged = bytearray(FILES["tiff"])
    damaged[22:62] = b"\xff" * 40

    async def work() -> None:
        async with pool() as decoders:
            with pytest.raises(UndecodableImage, match="decoder error"):
                await pixels(decoders, bytes(damaged))

    stderr = os.dup(2)
    readable, writable = os.pipe()
    os.dup2(writable, 2)
    try:
        run(work)
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(writable)
    with os.fdopen(readable, "rb") as pipe:
        assert pipe.read() == b""


def test_jobs_that_wait_are_cancelled_without_a_trace() -> None:
    async def work() -> None:
        async with pool() as decoders:
            jobs = [asyncio.create_task(pixels(decoders, PHOTO)) for _ in range(20)]
            await asyncio.sleep(0.01)
            for job in jobs[::2]:
                job.cancel()
            results = await asyncio.gather(*jobs, return_exceptions=True)
            assert sum(isinstance(result, np.ndarray) for result in results) == 10
            assert (decoders.memory.used, decoders.expected_wait()) == (0, 0.0)

    run(work)


# --- the accounts


def test_who_does_not_fit_waits_and_smaller_ones_pass() -> None:
    async def work() -> None:
        memory, order = MemoryBudget(100), []

        async def job(name: str, size: int) -> None:
            async with memory.hold(size):
                order.append(name)
                await asyncio.sleep(0)

        await asyncio.gather(job("first", 60), job("large", 90), job("small", 30))
        assert order == ["first", "small", "large"]
        assert memory.used == 0

    run(work)


def test_a_cancelled_job_holds_no_memory() -> None:
    async def work() -> None:
        memory = MemoryBudget(100)
        async with memory.hold(100):
            waiting = asyncio.create_task(memory.hold(50).__aenter__())
            await asyncio.sleep(0)
            waiting.cancel()
        assert memory.used == 0

    run(work)


def test_what_pending_jobs_will_take_is_told_by_the_turns_of_late() -> None:
    times = TurnTimes()
    with times.count_pending():
        assert times.expected_seconds() == 0
        times.add(2.0)
        with times.count_pending():
            assert times.expected_seconds() == pytest.approx(4.0)
    for _ in range(100):
        times.add(1.0)
    with times.count_pending():
        assert times.expected_seconds() == pytest.approx(1.0, rel=0.01)
    assert times.expected_seconds() == 0
