"""What is sent for an image, and what an answer must be: checked before it costs memory."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from PIL import Image

from maskserve.errors import AnswerError
from maskserve.results import Result

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    Source = str | Path | bytes | NDArray[np.uint8] | Image.Image

# Most lists and objects, and most values, in a JSON answer. A thousand instances with dozens of polygons each have
# less; a document of nothing but brackets would take fifty times its size in memory.
MOST_CONTAINERS, MOST_VALUES = 1_000_000, 10_000_000


# Tags of TIFF 6.0 that say how samples are shown.
BITS_PER_SAMPLE, PHOTOMETRIC, DESCRIPTION, MAX_SAMPLE_VALUE = 258, 262, 270, 281


class SegmentOptions(TypedDict, total=False):
    """The parameters of POST /segment."""

    # 0 to 1
    score_threshold: float
    # 1 to the model's own number, `max_instances` of /model; with `tile` up to 100,000
    max_instances: int
    # names or ids
    categories: Iterable[str | int]
    # "rle", "polygon", "png", "none"
    masks: str
    # "coco", "none"
    keypoints: str
    # side of the tiles in pixels, or "auto"
    tile: int | str
    # of neighbouring tiles, as a share of their side; by default `tile_overlap` of /model
    overlap: float
    # whether the whole image is one more tile
    whole: bool


def segment_request(
    image: Source, options: SegmentOptions, accept: str = "application/json"
) -> dict[str, Any]:
    """The request for an image, as httpx's `build_request` takes it.

    Args:
        image: a path, a file's bytes, pixels [H, W, 3] uint8 RGB or [H, W] grey, or a PIL image.
        options: parameters; those that are None are left out.
        accept: media type of the answer.

    Raises OSError for a file that cannot be read, TypeError or ValueError for pixels that are none.
    """
    parameters = {name: value for name, value in options.items() if value is not None}
    if "categories" in parameters:
        # Each name is a parameter of its own, because names may have commas.
        parameters["categories"] = [str(category) for category in options["categories"]]
    return {
        "method": "POST",
        "url": "/segment",
        "params": parameters,
        "content": image_file(image),
        "headers": {"Accept": accept, "Content-Type": "application/octet-stream"},
    }


async def request_for(
    image: Source, options: SegmentOptions, accept: str = "application/json"
) -> dict[str, Any]:
    """As `segment_request`, which reads files and encodes pixels, here on a thread.

    Args:
        image: as for `segment_request`.
        options: parameters; those that are None are left out.
        accept: media type of the answer.
    """
    if isinstance(image, bytes):
        return segment_request(image, options, accept)
    return await asyncio.to_thread(segment_request, image, options, accept)


def image_file(image: Source) -> bytes:
    """An image's file; pixels become a PNG. Raises as `segment_request`."""
    match image:
        case bytes():
            return image
        case str() | Path():
            return Path(image).read_bytes()
        case Image.Image():
            return _encode(image)
    if image.dtype != np.uint8:
        raise TypeError(f"pixels are uint8 from 0 to 255, not {image.dtype}")
    if image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)) or not image.size:
        raise ValueError(f"pixels are an array [H, W, 3] or [H, W], not {list(image.shape)}")
    return encode_png(Image.fromarray(image))


def _encode(image: Image.Image) -> bytes:
    """The file of a Pillow image that the service reads as it would read the one that the image came from."""
    if image.mode == "F" or image.mode.startswith("I"):
        # More than 8 bits: the service scales them, by rules that depend on the format and on these tags of a TIFF.
        content = io.BytesIO()
        if image.format == "PNG":
            return encode_png(image)
        tags = getattr(image, "tag_v2", {})
        kept = {tag: tags[tag] for tag in (PHOTOMETRIC, DESCRIPTION, MAX_SAMPLE_VALUE) if tag in tags}
        bits = int(np.min(tags.get(BITS_PER_SAMPLE, 16)))
        if bits < 16:
            kept.setdefault(MAX_SAMPLE_VALUE, (1 << bits) - 1)
        # Compressed, Pillow 13 writes 1 as the greatest value.
        compression = None if MAX_SAMPLE_VALUE in kept else "tiff_adobe_deflate"
        image.save(content, "TIFF", compression=compression, tiffinfo=kept)
        return content.getvalue()
    if image.has_transparency_data:
        # Laid on white, as the service does it.
        transparent = image.convert("RGBA")
        image = Image.new("RGB", transparent.size, "white")
        image.paste(transparent, mask=transparent.getchannel("A"))
    return encode_png(image.convert("RGB"))


def encode_png(image: Image.Image) -> bytes:
    """A PNG file. On the fastest level: the service is waiting for it, and for most photos the size is the same."""
    content = io.BytesIO()
    image.save(content, "PNG", compress_level=1)
    return content.getvalue()


def parse_result(content: bytes, headers: Mapping[str, str]) -> Result:
    """The result in an answer, with the stages of its Server-Timing header. Raises AnswerError."""
    return Result.from_document(parse_json(content), parse_timings(headers.get("server-timing", "")))


def parse_json(content: bytes) -> dict[str, Any]:
    """The JSON object in an answer. Raises AnswerError."""
    if content.count(b"[") + content.count(b"{") > MOST_CONTAINERS or content.count(b",") > MOST_VALUES:
        raise AnswerError(f"a JSON answer of more than {MOST_VALUES:,} values")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        raise AnswerError(f"the answer is no JSON; it begins {content[:60]!r}") from None
    if not isinstance(document, dict):
        raise AnswerError(f"the answer is no JSON object; it begins {content[:60]!r}")
    return document


def parse_timings(header: str) -> dict[str, float]:
    """Stage → milliseconds of a Server-Timing header; what is no number is left out."""
    timings = {}
    for entry in header.split(","):
        name, _, duration = entry.strip().partition(";dur=")
        try:
            timings[name] = float(duration)
        except ValueError:
            continue
    return timings
