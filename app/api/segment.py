"""POST /segment: reads an image, segments it, and encodes its instances. streaming.py does the same for several."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Header, Query
from fastapi.routing import APIRoute
from pydantic import BeforeValidator
from starlette.requests import Request  # noqa: TC002 - FastAPI reads the annotations
from starlette.responses import Response

from app.api import openapi, responses
from app.api.auth import require_api_key
from app.api.query import (
    JPEG,
    JSON,
    MAX_TIMEOUT_MS,
    NDJSON,
    TIMEOUT_HEADER,
    SegmentQuery,
    choose_media_type,
    read_parameters,
    require_digits,
)
from app.api.schemas import Answer
from app.api.streaming import BufferedUpload, NdjsonResponse
from app.api.tiles import count_input_pixels, segment_tiles
from app.http.deadline import Deadline
from app.http.disconnect import cancel_on_disconnect
from app.http.request_context import Timings
from app.intake.decoder_child import ImageFile
from app.intake.uploads import Upload, read_uploads
from app.problems import ImageTooLarge, MalformedRequest, UndecodableImage, UnsupportedFormat
from model.images.formats import MAX_JPEG_SIDE
from model.inference.tiled import TiledImage
from model.instances import MOST_INSTANCES

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    import numpy as np
    from numpy.typing import NDArray

    from app.api.query import SegmentParams
    from app.batching.admission import BodyBytes
    from app.service import Service
    from model.instances import Instances

    Encode = Callable[[NDArray[np.uint8], Instances], bytes]


class SegmentRoute(APIRoute):
    """A route whose parameters FastAPI documents, and read_parameters reads."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers a request."""

        async def handle(request: Request) -> Response:
            await require_api_key(request, None)
            engine = request.app.state.service.engine_if_loaded
            most = MOST_INSTANCES if engine is None else engine.model.max_instances
            return await segment(request, *read_parameters(request, most))

        return handle


router = APIRouter(route_class=SegmentRoute)

# Pixels of an image that is decoded when its header is read, before it is admitted: some 10 ms of a processor. Only
# while there is room; under overload most images are refused, and then they should cost nothing.
DECODED_AT_ONCE = 1 << 20


@router.post(
    "/segment",
    dependencies=[Depends(require_api_key)],
    response_model=Answer,
    responses=openapi.SEGMENT,
    openapi_extra={**openapi.SECURITY, "requestBody": openapi.SEGMENT_BODY},
)
async def segment(
    request: Request,
    query: Annotated[SegmentQuery, Query()],
    timeout_ms: Annotated[
        int,
        Header(
            alias=TIMEOUT_HEADER,
            ge=1,
            le=MAX_TIMEOUT_MS,
            description="Milliseconds that the client will wait, from the header of its request to the answer. The "
            "service refuses at once what cannot be ready by then (429), and gives up what is not ready by then (504).",
        ),
        BeforeValidator(require_digits),
    ] = MAX_TIMEOUT_MS,
) -> Response:
    """Find the instances in an image, or in each of several. All forms of the body get the same answer."""
    service: Service = request.app.state.service
    timings: Timings = request.state.timings
    model = service.engine.model
    params = query.params(model)
    media_type = choose_media_type(request.headers.get("accept", ""))

    def seconds_left() -> float:
        return timeout_ms / 1000 - timings.total()

    with service.admission.count_body() as body:
        with timings.stage("read"):
            async with Deadline(seconds_left(), "The body did not arrive", service.settings.body_timeout):
                uploads = await read_uploads(
                    request.headers,
                    request.receive,
                    max_bytes=service.settings.max_upload_bytes,
                    seconds=service.settings.body_timeout,
                    arrived=body.add,
                    max_images=service.settings.max_images,
                    max_form_bytes=service.settings.max_queue_bytes // 2,
                )
        body.accept()
        if media_type == NDJSON or (len(uploads) > 1 and media_type == JSON):
            return stream(request, params, uploads, body, seconds_left)
        if len(uploads) > 1:
            raise MalformedRequest(
                f"A picture is the answer for one image; for several it is {NDJSON}, a line of JSON each."
            )
        upload = uploads.pop()
        if upload.url:
            with timings.stage("fetch"):
                fetching = fetch(service, upload.url, body, seconds_left())
                upload = await cancel_on_disconnect(request.receive, fetching)
        encode = partial(
            responses.encode, media_type, request.state.id, model, mask_format=params.mask_format
        )
        work = answer(
            SegmentRequest(service, timings, request.state.record, params, encode, media_type),
            upload,
            body,
            min(service.settings.request_timeout, seconds_left()),
        )
        # `answer` frees the file once it is decoded; this would be a second reference.
        del upload
        content = await cancel_on_disconnect(request.receive, work)
    return Response(content, headers={"Vary": "Accept"}, media_type=media_type)


def stream(
    request: Request,
    params: SegmentParams,
    uploads: list[Upload],
    body: BodyBytes,
    seconds_left: Callable[[], float],
) -> NdjsonResponse:
    """The response to a request for several images: one line of JSON for each.

    Args:
        request: its body has been read.
        params: what every image is asked for.
        uploads: the images.
        body: accounts for the bytes of all of them.
        seconds_left: until the client gives up.
    """
    service: Service = request.app.state.service
    held = [BufferedUpload(body, upload) for upload in uploads]

    async def line(index: int) -> bytes:
        upload = held[index].upload
        if upload.url:
            upload = await fetch(service, upload.url, held[index], seconds_left())
        encode = partial(
            responses.line, index, request.state.id, service.engine.model, mask_format=params.mask_format
        )
        work = answer(
            SegmentRequest(service, Timings(), {}, params, encode, progress=held[index].count_tiles),
            upload,
            held[index],
            min(service.settings.request_timeout, seconds_left()),
        )
        del upload
        return await work

    # The batch that runs, and the next one.
    at_once = 2 * service.settings.max_batch_size
    progress = params.tiling is not None
    return NdjsonResponse(line, held, at_once, request.state.id, request.state.record, progress=progress)


async def fetch(service: Service, url: str, body: BodyBytes, seconds: float) -> Upload:
    """The image at an address.

    Raises MalformedRequest where the service fetches nothing, DeadlineExceeded, and what Fetcher.get raises.

    Args:
        service: has the fetcher.
        url: the address, as the client wrote it.
        body: accounts for the bytes of the file.
        seconds: until the client gives up.
    """
    if service.fetcher is None:
        raise MalformedRequest('Addresses are not fetched here; send the image itself, as "image".')
    async with Deadline(seconds, "The image did not arrive from its address"):
        return Upload(await service.fetcher.get(url, body.add), "Is there an image at that address?")


@dataclass(frozen=True, slots=True)
class SegmentRequest:
    """What one image is segmented for, and where its timings and its log fields go."""

    service: Service
    timings: Timings
    # Fields of the request's line in the log.
    record: dict[str, Any]
    params: SegmentParams
    encode: Encode
    # Media type of the answer.
    media_type: str = JSON
    # Called after each tile with the number of tiles that are done, and of all tiles.
    progress: Callable[[int, int], None] = lambda _done, _all: None


async def answer(work: SegmentRequest, upload: Upload, body: BodyBytes, seconds: float) -> bytes:
    """The body of the answer.

    Raises UnsupportedFormat, UndecodableImage, ImageTooLarge, DeadlineExceeded, and what admission and worker raise.

    Args:
        work: what the image is segmented for.
        upload: the image file.
        body: accounts for the bytes of the file; released once the image is decoded.
        seconds: that the answer may take.
    """
    service, timings, advice = work.service, work.timings, upload.advice
    expires = time.monotonic() + seconds
    loop = asyncio.get_running_loop()
    decoders, admission = service.decoders, service.admission
    file = ImageFile(upload.content, upload.base64)
    del upload
    try:
        async with Deadline(seconds, "The answer was not ready"):
            admission.raise_unless_decoded_within(seconds, decoders.expected_wait())
            started = timings.total()
            at_once = min(DECODED_AT_ONCE, service.settings.max_image_pixels)
            if not admission.has_room(at_once, seconds):
                at_once = 0
            found = await decoders.inspect(file, decode_up_to=at_once)
            work.record.update({"format": found.format, "width": found.width, "height": found.height})
            if found.pixels > service.settings.max_image_pixels:
                raise ImageTooLarge(
                    f"The image has {found.width} × {found.height} = {found.pixels} pixels; "
                    f"at most {service.settings.max_image_pixels} are accepted."
                )
            if work.media_type == JPEG and max(found.height, found.width) > MAX_JPEG_SIDE:
                raise ImageTooLarge(
                    f"The image has {found.width} × {found.height} pixels, and a JPEG has at most {MAX_JPEG_SIDE} "
                    "a side; ask for image/png."
                )
            layout = work.params.cut(found.height, found.width, service.engine.model)
            input_pixels = math.prod(service.engine.padded_shape(found.height, found.width))
            if layout is not None:
                input_pixels = sum(count_input_pixels(service.engine, layout))
                work.record["tiles"] = len(layout.tiles)
            seconds_left = expires - time.monotonic() - decoders.expected_wait()
            with admission.admit(
                found.pixels,
                seconds_left,
                input_pixels=input_pixels,
                accepted=body.accepted,
            ) as permit:
                image = found.decoded
                if image is None:
                    image = await decoders.decode(file, found)
                timings.add_stage("decode", timings.total() - started)
                del file
                body.release()
                if layout is None:
                    segmented = await service.worker.segment(permit, image, work.params, expires)
                else:
                    tiles = TiledImage(layout, work.params)
                    segmented = await segment_tiles(
                        service, permit, image, tiles, expires=expires, progress=work.progress
                    )
                timings.add_stage("queue", segmented.queue_seconds, ago=segmented.forward_seconds)
                timings.add_stage("forward", segmented.forward_seconds)
                work.record.update({"batch": segmented.batch_size, "instances": len(segmented.instances)})
                with timings.stage("encode"):
                    return await loop.run_in_executor(
                        service.encoders, work.encode, image, segmented.instances
                    )
    except (UnsupportedFormat, UndecodableImage) as problem:
        raise type(problem)(f"{problem.detail} {advice}".rstrip()) from None
