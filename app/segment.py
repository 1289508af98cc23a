"""POST /segment: one image in, its instances out, by the stages of DESIGN.md, section 2."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import APIRouter, Depends
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from app import openapi, options, responses
from app.authorise import authorised
from app.problems import (
    DeadlineExceeded,
    ImageTooLarge,
    MalformedRequest,
    Problem,
    UndecodableImage,
    UnsupportedFormat,
)
from app.uploads import Upload, read_upload
from model.image import ImageError, ImageTooBig, UnsupportedImage, decode, read_header

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    import numpy as np
    from numpy.typing import NDArray
    from starlette.types import Receive

    from app.admission import Body
    from app.exchange import Timings
    from app.service import Service
    from model.instances import Instances, Options

    Encode = Callable[[NDArray[np.uint8], Instances], bytes]

T = TypeVar("T")

router = APIRouter()


@router.post("/segment", dependencies=[Depends(authorised)], **openapi.SEGMENT)
async def segment(request: Request) -> Response:
    """Find the instances in one image."""
    service: Service = request.app.state.service
    timings: Timings = request.state.timings
    if trouble := service.trouble():
        raise trouble
    model = service.engine.model
    wanted = options.parse(request.url.query, model.categories)
    media_type = responses.preferred(request.headers.get("accept", ""))
    patience = options.time_limit(request.headers.get(options.TIME_LIMIT))
    encode = partial(responses.encode, media_type, request.state.id, model)
    service.admission.knock()
    with service.admission.body() as body:
        with timings.stage("read"):
            upload = await read_upload(
                request.headers,
                request.receive,
                max_bytes=service.settings.max_upload_bytes,
                seconds=service.settings.body_timeout,
                arrived=body.arrived,
            )
        if upload.url:
            with timings.stage("fetch"):
                upload = await unless_gone(request.receive, fetched(service, upload.url, body))
        seconds = min(service.settings.request_timeout, patience - timings.total())
        asked = Asked(service, timings, request.state.record, wanted, encode)
        work = answer(asked, upload, body, seconds)
        del upload  # `answer` lets go of the file once it is decoded
        content = await unless_gone(request.receive, work)
    return Response(content, headers={"Vary": "Accept"}, media_type=media_type)


async def fetched(service: Service, url: str, body: Body) -> Upload:
    """The image at an address. Raises MalformedRequest where that is not offered, and what Fetcher.get raises."""
    if service.fetcher is None:
        raise MalformedRequest('Addresses are not fetched here; send the image itself, as "image".')
    return Upload(await service.fetcher.get(url, body.arrived), "Is there an image at that address?")


@dataclass(frozen=True, slots=True)
class Asked:
    """What an image is wanted for, and where what happens to it is told."""

    service: Service
    timings: Timings
    record: dict[str, Any]  # what the log says of it
    wanted: Options
    encode: Encode


async def answer(asked: Asked, upload: Upload, body: Body, seconds: float) -> bytes:
    """The body of the answer, within `seconds` or not at all.

    body: is released once the image is decoded.
    Raises UnsupportedFormat, UndecodableImage, ImageTooLarge, DeadlineExceeded, and what admission and worker
    raise.
    """
    service, timings, advice = asked.service, asked.timings, upload.advice
    deadline = time.monotonic() + seconds
    loop = asyncio.get_running_loop()
    try:
        header = read_header(upload.content)
        asked.record.update({"format": header.format, "width": header.width, "height": header.height})
        if header.pixels > service.settings.max_image_pixels:
            raise ImageTooLarge(
                f"The image has {header.width} × {header.height} = {header.pixels} pixels; "
                f"at most {service.settings.max_image_pixels} are accepted."
            )
        async with asyncio.timeout(seconds):
            with service.admission.admit(header.pixels, seconds) as ticket:
                with timings.stage("decode"):
                    image = await loop.run_in_executor(service.decoders, decode, upload.content)
                del upload
                body.release()
                segmented = await service.worker.segment(ticket, image, asked.wanted, deadline)
                timings.passed("queue", segmented.queue_seconds, ago=segmented.forward_seconds)
                timings.passed("forward", segmented.forward_seconds)
                asked.record.update({"batch": segmented.batch_size, "instances": len(segmented.instances)})
                with timings.stage("encode"):
                    return await loop.run_in_executor(
                        service.encoders, asked.encode, image, segmented.instances
                    )
    except ImageError as error:
        raise refusal(error, advice) from None
    except TimeoutError:
        raise DeadlineExceeded(f"The answer was not ready within {max(seconds, 0):.3g} seconds.") from None


def refusal(error: ImageError, advice: str) -> Problem:
    """The problem that an image's error becomes, with the upload's advice on what may be its cause."""
    detail = f"{error} {advice}".rstrip()
    if isinstance(error, UnsupportedImage):
        return UnsupportedFormat(detail)
    if isinstance(error, ImageTooBig):
        return ImageTooLarge(detail)
    return UndecodableImage(detail)


async def unless_gone(receive: Receive, work: Coroutine[None, None, T]) -> T:
    """The work's result. If the client leaves first the work is cancelled, which frees its place.

    receive: of a request whose body was read, so that all it can still bring is the disconnect.
    Raises ClientDisconnect.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(gone(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        watch.cancel()
        if task.cancel():
            await asyncio.gather(task, return_exceptions=True)


async def gone(receive: Receive) -> None:
    """Return when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
