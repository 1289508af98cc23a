"""Random requests from hypothesis: query, headers and body. Each gets an answer of the contract."""

from __future__ import annotations

import asyncio
from urllib.parse import quote

import httpx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.app.fakes import PHOTO, serving

# Bytes that HTTP lets a header's value have (RFC 9110, section 5.5).
VALUES = st.binary(max_size=40).map(
    lambda raw: bytes(byte for byte in raw if byte >= 0x20 and byte != 0x7F).strip()
)
BOUNDARY = "boundary"


def near(*usual: str) -> st.SearchStrategy[bytes]:
    """Usual values, usual ones with a piece cut out or put in, and anything."""
    known = st.sampled_from([value.encode() for value in usual])
    spoilt = st.tuples(known, st.integers(0, 30), VALUES).map(
        lambda t: t[0][: t[1]] + t[2] + t[0][t[1] + 2 :]
    )
    return st.one_of(known, spoilt.map(bytes.strip), VALUES)


HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "content-type": near(
            "image/png",
            "application/json",
            f"multipart/form-data; boundary={BOUNDARY}",
            "multipart/mixed",
            "text/plain",
        ),
        "accept": near("image/png", "image/jpeg;q=0.5, */*;q=0.1", "application/json", "text/html"),
        "content-encoding": near("identity", "gzip"),
        "x-request-id": near("an-id", "a" * 129),
        "x-request-timeout-ms": near("1", "60000", "0", "-1", "1e9"),
        "traceparent": near("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        "authorization": near("Bearer key", "Basic dTpw"),
        "expect": near("100-continue"),
    },
)
FORM = (
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'.encode()
    + PHOTO
    + f"\r\n--{BOUNDARY}--\r\n".encode()
)
BODIES = st.one_of(
    st.sampled_from(
        [PHOTO, FORM, b'{"image": "iVBORw0KGgo="}', b'{"url": "https://a.b/c"}', b"", b"[" * 5000]
    ),
    st.tuples(st.sampled_from([PHOTO, FORM]), st.integers(0, 200), st.binary(max_size=20)).map(
        lambda t: t[0][: t[1]] + t[2] + t[0][t[1] + 1 :]
    ),
    st.binary(max_size=100),
)
QUERIES = st.one_of(
    st.text(max_size=30),
    st.dictionaries(
        st.sampled_from(["score_threshold", "max_instances", "categories", "masks", "other"]),
        st.one_of(st.sampled_from(["0.3", "1", "dog", "none", "rle", "101", "nan"]), st.text(max_size=10)),
        max_size=3,
    ).map(lambda pairs: str(httpx.QueryParams(pairs))),
)


@given(st.lists(st.tuples(QUERIES, HEADERS, BODIES), min_size=20, max_size=20))
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_request_gets_an_answer_of_the_contract(
    requests: list[tuple[str, dict[str, bytes], bytes]],
) -> None:
    async def run() -> None:
        async with serving() as (client, app):
            for query, headers, body in requests:
                url = f"http://maskserve/segment?{quote(query, safe='&=,.%+;', errors='replace')}"
                raw = [(name.encode(), value) for name, value in headers.items()]
                check(await client.post(url, headers=raw, content=body))
            assert app.state.service.admission.requests == app.state.service.admission.bytes == 0

    asyncio.run(run())


def check(response: httpx.Response) -> None:
    """An answer, or a problem of the client's."""
    assert response.headers["x-request-id"]
    if response.status_code == 200:
        assert response.headers["content-type"] in ("application/json", "image/png", "image/jpeg")
        return
    assert response.status_code in (400, 413, 415, 422, 429, 504), response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == response.status_code
    assert problem["type"].startswith("urn:maskserve:problem:")
