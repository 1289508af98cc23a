"""POST /segment: images in, their instances out, by the stages of DESIGN.md, section 2. See streaming.py for many."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Header, Query
from pydantic import BeforeValidator
from starlette.requests import Request  # noqa: TC002 - FastAPI reads the annotations
from starlette.responses import Response

from app.api import openapi, responses
from app.api.auth import require_api_key
from app.api.query import (
    JSON,
    MAX_TIMEOUT_MS,
    NDJSON,
    TIMEOUT_HEADER,
    SegmentQuery,
    choose_media_type,
    refuse_repeated,
    require_digits,
)
from app.api.schemas import Answer
from app.api.streaming import BufferedUpload, NdjsonResponse
from app.http.disconnect import cancel_on_disconnect
from app.http.request_context import Timings
from app.intake.uploads import Upload, read_uploads
from app.problems import (
    DeadlineExceeded,
    ImageTooLarge,
    MalformedRequest,
    Problem,
    UndecodableImage,
    UnsupportedFormat,
)
from model.images.decode import ImageError, ImageTooBig, UnsupportedImage, decode, read_header

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from app.api.query import SegmentParams
    from app.batching.admission import Body
    from app.service import Service
    from model.instances import Instances

    Encode = Callable[[NDArray[np.uint8], Instances], bytes]

router = APIRouter()


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
    refuse_repeated(request.query_params)
    params = query.params(model.categories)
    media_type = choose_media_type(request.headers.get("accept", ""))
    client_timeout = timeout_ms / 1000
    with service.admission.body() as body:
        with timings.stage("read"):
            uploads = await read_uploads(
                request.headers,
                request.receive,
                max_bytes=service.settings.max_upload_bytes,
                seconds=service.settings.body_timeout,
                arrived=body.arrived,
                max_images=service.settings.max_images,
                max_form_bytes=service.settings.max_queue_bytes // 2,
            )
        if media_type == NDJSON or (len(uploads) > 1 and media_type == JSON):
            return several(request, params, uploads, body, client_timeout)
        if len(uploads) > 1:
            raise MalformedRequest(
                f"A picture is the answer for one image; for several it is {NDJSON}, a line of JSON each."
            )
        upload = uploads.pop()
        if upload.url:
            with timings.stage("fetch"):
                upload = await cancel_on_disconnect(request.receive, fetched(service, upload.url, body))
        seconds = min(service.settings.request_timeout, client_timeout - timings.total())
        encode = partial(
            responses.encode, media_type, request.state.id, model, mask_format=params.mask_format
        )
        asked = SegmentRequest(service, timings, request.state.record, params, encode)
        work = answer(asked, upload, body, seconds)
        del upload  # `answer` lets go of the file once it is decoded
        content = await cancel_on_disconnect(request.receive, work)
    return Response(content, headers={"Vary": "Accept"}, media_type=media_type)


def several(
    request: Request, params: SegmentParams, uploads: list[Upload], body: Body, client_timeout: float
) -> NdjsonResponse:
    """The answer to a request for several images: a line for each."""
    service: Service = request.app.state.service
    passed = request.state.timings.total
    held = [BufferedUpload(body, upload) for upload in uploads]

    async def line(index: int) -> bytes:
        upload = held[index].upload
        if upload.url:
            upload = await fetched(service, upload.url, held[index])
        encode = partial(
            responses.line, index, request.state.id, service.engine.model, mask_format=params.mask_format
        )
        seconds = min(service.settings.request_timeout, client_timeout - passed())
        work = answer(SegmentRequest(service, Timings(), {}, params, encode), upload, held[index], seconds)
        del upload
        return await work

    at_once = 2 * service.settings.max_batch_size  # a batch that runs, and the next one
    return NdjsonResponse(line, held, at_once, request.state.id, request.state.record)


async def fetched(service: Service, url: str, body: Body) -> Upload:
    """The image at an address. Raises MalformedRequest where that is not offered, and what Fetcher.get raises."""
    if service.fetcher is None:
        raise MalformedRequest('Addresses are not fetched here; send the image itself, as "image".')
    return Upload(await service.fetcher.get(url, body.arrived), "Is there an image at that address?")


@dataclass(frozen=True, slots=True)
class SegmentRequest:
    """What an image is wanted for, and where what happens to it is told."""

    service: Service
    timings: Timings
    record: dict[str, Any]  # what the log says of it
    params: SegmentParams
    encode: Encode


async def answer(asked: SegmentRequest, upload: Upload, body: Body, seconds: float) -> bytes:
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
                segmented = await service.worker.segment(ticket, image, asked.params, deadline)
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
