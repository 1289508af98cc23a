"""Which answers are compressed, and for whom."""

from __future__ import annotations

import asyncio
import gzip
from typing import TYPE_CHECKING, Any

import pytest
import torch

from app.http.compression import MINIMUM_BYTES
from model.instances import Instances
from tests.app.fakes import PHOTO, FakeEngine, serving

if TYPE_CHECKING:
    import httpx


class ManyEngine(FakeEngine):
    """Finds a hundred instances, so that the answer is long."""

    def instances(self, image: Any, wanted: Any) -> Instances:
        found = super().instances(image, wanted)
        chosen = torch.zeros(100, dtype=torch.int64)
        return Instances(
            found.size,
            found.boxes[chosen],
            found.scores[chosen],
            found.labels[chosen],
            found.probabilities[chosen],
        )


def post(
    accept_encoding: str, engine: FakeEngine | None = None, **headers: str
) -> tuple[httpx.Response, bytes]:
    """The response, and its body as it was sent."""

    async def run() -> tuple[httpx.Response, bytes]:
        async with serving(engine or ManyEngine()) as (client, _):
            request = client.build_request(
                "POST", "/segment", content=PHOTO, headers={"Accept-Encoding": accept_encoding, **headers}
            )
            response = await client.send(request, stream=True)
            raw = b"".join([chunk async for chunk in response.aiter_raw()])
            await response.aclose()
            return response, raw

    return asyncio.run(run())


def test_a_long_answer_is_compressed_for_who_accepts_it() -> None:
    plain, content = post("identity", **{"X-Request-ID": "the-id"})
    assert "content-encoding" not in plain.headers
    assert plain.headers["vary"] == "Accept, Accept-Encoding"
    compressed, sent = post("deflate, gzip", **{"X-Request-ID": "the-id"})
    assert compressed.headers["content-encoding"] == "gzip"
    assert compressed.headers["vary"] == "Accept, Accept-Encoding"
    assert int(compressed.headers["content-length"]) == len(sent) < len(content) / 2
    assert gzip.decompress(sent) == content


@pytest.mark.parametrize("accept_encoding", ["GZIP", "br;q=1, gzip;q=0.001", "*", "*;q=0, gzip"])
def test_every_way_to_accept_it_is_understood(accept_encoding: str) -> None:
    response, _ = post(accept_encoding)
    assert response.headers["content-encoding"] == "gzip"


@pytest.mark.parametrize("accept_encoding", ["gzip;q=0", "identity, gzip; q=0.0", "*, gzip;q=0", "br", ""])
def test_it_is_not_for_who_does_not(accept_encoding: str) -> None:
    response, content = post(accept_encoding)
    assert "content-encoding" not in response.headers
    assert response.headers["vary"] == "Accept, Accept-Encoding"
    assert len(content) == int(response.headers["content-length"]) > MINIMUM_BYTES


@pytest.mark.parametrize("accept", ["image/png", "image/jpeg", "application/x-ndjson"])
def test_pictures_and_streams_stay_as_they_are(accept: str) -> None:
    response, _ = post("gzip", Accept=accept)
    assert response.headers["content-type"] == accept
    assert "content-encoding" not in response.headers


def test_a_short_answer_stays_as_it_is() -> None:
    response, content = post("gzip", FakeEngine())
    assert "content-encoding" not in response.headers
    assert len(content) < MINIMUM_BYTES
