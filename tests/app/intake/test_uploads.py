"""Three body forms bring the same bytes; whatever else arrives is refused for its own reason."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect

from app.intake import uploads
from app.intake.base64_text import NotBase64, decode_base64
from app.intake.uploads import Upload, read_uploads
from app.problems import BodyTooLarge, BodyTooSlow, MalformedRequest, Problem, UnsupportedFormat

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Message, Receive

PHOTO = bytes(range(256)) * 8  # uploads never look inside, so any bytes will do
BASE64 = base64.b64encode(PHOTO).decode()
LIMIT = 4096


def messages(*chunks: bytes, complete: bool = True) -> Receive:
    """A client that sends these chunks, and then either is done or says nothing more."""
    events: list[Message] = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    if complete:
        events.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> Message:
        if events:
            return events.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    return receive


def read(body: bytes, kind: str | None, *, step: int = 1000, limit: int = LIMIT, **headers: str) -> Upload:
    """What an upload of `body` gives, arriving in chunks of `step` bytes."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if kind is not None:
        named["content-type"] = kind
    receive = messages(*(body[i : i + step] for i in range(0, len(body), step)))
    (upload,) = asyncio.run(read_uploads(Headers(named), receive, max_bytes=limit, seconds=5))
    if not upload.base64:
        return upload
    # A decoder process does this.
    try:
        return dataclasses.replace(upload, content=decode_base64(upload.content), base64=False)
    except NotBase64 as error:
        raise MalformedRequest(str(error)) from None


def form(*parts: tuple[str, bytes], end: str = "--") -> bytes:
    """A multipart body with boundary B of parts given as (headers, content)."""
    body = b"".join(f"--B\r\n{head}\r\n\r\n".encode() + content + b"\r\n" for head, content in parts)
    return body + f"--B{end}\r\n".encode()


FORM = "multipart/form-data; boundary=B"
FILE = 'Content-Disposition: form-data; name="image"; filename="a.jpg"\r\nContent-Type: image/jpeg'
FIELD = 'Content-Disposition: form-data; name="image"'


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("image/jpeg", id="image"),
        pytest.param("IMAGE/PNG; q=1", id="upper case and parameters"),
        pytest.param("application/octet-stream", id="octets"),
        pytest.param(None, id="no content type"),
        pytest.param("", id="empty content type"),
        pytest.param("application/x-www-form-urlencoded", id="what curl --data-binary says"),
        pytest.param("binary/octet-stream", id="what object stores say"),
    ],
)
def test_a_raw_body_is_the_image(kind: str | None) -> None:
    assert read(PHOTO, kind).content == PHOTO


@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_a_form_brings_the_image_however_it_is_cut(step: int) -> None:
    assert read(form((FILE, PHOTO)), FORM, step=step) == Upload(PHOTO)


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8"])
def test_json_brings_the_image(kind: str) -> None:
    assert read(json.dumps({"image": BASE64}).encode(), kind) == Upload(PHOTO)


def test_json_may_escape_slashes_and_carry_a_data_url() -> None:
    body = json.dumps({"image": f"data:image/jpeg;base64,{BASE64}"}).replace("/", "\\/")
    assert read(body.encode(), "application/json").content == PHOTO


@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
def test_json_may_break_the_image_into_lines(line_break: str) -> None:
    lines = base64.encodebytes(PHOTO).decode().replace("\n", line_break)
    assert line_break in lines
    assert read(json.dumps({"image": lines}).encode(), "application/json") == Upload(PHOTO)


@pytest.mark.parametrize(
    "kind",
    [
        "application/json", "application/vnd.photo+json", "text/plain", "text/json", "application/octet-stream", None,
        "application/x-www-form-urlencoded", "image/jpeg",
    ],
)  # fmt: skip
@pytest.mark.parametrize("before", ["", "data:image/png;base64,", "DATA:IMAGE/PNG;BASE64,"])
@pytest.mark.parametrize("unpadded", [False, True])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_json_is_read_under_other_types_and_base64_of_every_kind(
    kind: str | None, before: str, unpadded: bool, encode: Callable[[bytes], bytes]
) -> None:
    content = PHOTO + b"\xff\xfe\xfb\xf0"
    text = encode(content).decode()
    body = json.dumps({"image": before + (text.rstrip("=") if unpadded else text)}, indent=2)
    assert read(body.encode(), kind).content == content


def test_json_may_begin_with_a_byte_order_mark() -> None:
    body = b"\xef\xbb\xbf" + json.dumps({"image": BASE64}).encode()
    assert read(body, "application/json").content == PHOTO


def test_image_that_is_called_json_is_an_image() -> None:
    image = b"\x89PNG\r\n\x1a\n" + PHOTO
    assert read(image, "application/json") == Upload(image)
    with pytest.raises(BodyTooLarge):
        read(image, "application/json", limit=len(image) - 1)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("A" * 5, "it has 5 characters, so it is cut short"),
        ("AAAA@AAA", "character 5 is @, which base64 does not have"),
        ("AA=AAAAA", "character 3 is =, which base64 does not have there"),
    ],
)
def test_what_is_no_base64_is_told_by_its_place(text: str, says: str) -> None:
    with pytest.raises(NotBase64, match=says):
        decode_base64(text.encode())


def test_text_that_is_no_json_is_taken_for_the_image() -> None:
    assert read(PHOTO, "text/plain").content == PHOTO


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":' + b"[" + b"[]," * 3_000_000 + b"[]]}",
        b"{" + b",".join(b'"%d":0' % number for number in range(300_000)) + b"}",
        b'{"image":"' + b'","image":"' * 900_000 + b'"}',
        b'{"image":' + b" " * 9_000_000 + b'""}',
        b"[" * 9_000_000,
    ],
    ids=["lists", "keys", "the key again and again", "blanks", "depth"],
)
def test_a_large_body_of_another_form_is_refused_without_being_parsed(body: bytes) -> None:
    started = time.process_time()
    with pytest.raises(MalformedRequest, match="one key"):
        read(body, "application/json", step=1 << 20, limit=1 << 24)
    assert time.process_time() - started < 0.5


# No image begins as JSON does.
@given(content=st.binary(max_size=300).map(b"\x89".__add__), step=st.integers(1, 50))
def test_all_three_forms_bring_the_same_bytes(content: bytes, step: int) -> None:
    encoded = json.dumps({"image": base64.b64encode(content).decode()}).encode()
    raw = read(content, "image/png", step=step).content
    assert raw == content
    assert read(encoded, "application/json", step=step).content == content
    if b"\r\n--B" not in content:
        assert read(form((FILE, content)), FORM, step=step).content == content


REFUSED = [
    pytest.param(
        b"", "image/jpeg", MalformedRequest, "There is no image.*curl -F image=@photo.jpg", id="empty"
    ),
    pytest.param(b"", None, MalformedRequest, "There is no image", id="empty, no type"),
    pytest.param(b"", "application/json", MalformedRequest, "There is no image", id="empty JSON body"),
    pytest.param(b"{}", "application/json", MalformedRequest, "There is no image", id="empty JSON object"),
    pytest.param(
        b'{"image":""}', "application/json", MalformedRequest, "There is no image", id="empty string"
    ),
    pytest.param(form((FILE, b"")), FORM, MalformedRequest, "There is no image", id="empty part"),
    pytest.param(
        b"image=photo.jpg", "application/x-www-form-urlencoded", MalformedRequest, "HTML form", id="form"
    ),
    pytest.param(b"{", "application/json", MalformedRequest, "not valid JSON", id="broken JSON"),
    pytest.param(b"\xff\xfe", "application/json", MalformedRequest, "not valid JSON", id="not UTF-8"),
    pytest.param(b"[" * 4000, "application/json", MalformedRequest, "not valid JSON", id="deep JSON"),
    pytest.param(b"[]", "application/json", MalformedRequest, "must be an object", id="JSON list"),
    pytest.param(
        b'{"img":"AA=="}', "application/json", MalformedRequest, 'with the key "image"', id="other key"
    ),
    pytest.param(
        b'{"image":"AA==","masks":"none"}',
        "application/json",
        MalformedRequest,
        'key "masks".*address',
        id="option",
    ),
    pytest.param(b'{"image":5}', "application/json", MalformedRequest, "must be a string", id="number"),
    pytest.param(
        b'{"image":"A"}', "application/json", MalformedRequest, "not valid base64", id="short base64"
    ),
    pytest.param(
        b'{"image":"AA ="}', "application/json", MalformedRequest, "blanks or percent signs", id="blank"
    ),
    pytest.param(
        b'{"image":"AA%3D"}', "application/json", MalformedRequest, "percent signs", id="encoded twice"
    ),
    pytest.param(b'{"image":"AA\\q"}', "application/json", MalformedRequest, "escape", id="unknown escape"),
    pytest.param(
        '{"image":"ä"}'.encode(), "application/json", MalformedRequest, "not valid base64", id="umlaut"
    ),
    pytest.param(
        b'{"image":"data:image/png,AA=="}',
        "application/json",
        MalformedRequest,
        "not one in base64",
        id="data URL",
    ),
    pytest.param(
        b'{"image":"https://a/b.jpg"}',
        "application/json",
        MalformedRequest,
        "an address goes under",
        id="address",
    ),
    pytest.param(b"x", "multipart/form-data", MalformedRequest, "boundary", id="no boundary"),
    pytest.param(b"x", FORM + "B" * 300, MalformedRequest, "boundary", id="long boundary"),
    pytest.param(b"x", FORM, MalformedRequest, "form cannot be read", id="no form at all"),
    pytest.param(b"x", "multipart/mixed; boundary=B", MalformedRequest, "multipart/mixed is not", id="mixed"),
    pytest.param(form(), FORM, MalformedRequest, "no part named image|cannot be read", id="no part"),
    pytest.param(form((FILE, PHOTO), end=""), FORM, MalformedRequest, "breaks off", id="no closing boundary"),
    pytest.param(
        form((FILE, PHOTO), (FILE, PHOTO)), FORM, BodyTooLarge, "at most 1 image here", id="two images"
    ),
    pytest.param(
        form((FIELD.replace("image", "file"), PHOTO)), FORM, MalformedRequest, 'part "file"', id="other part"
    ),
    pytest.param(form(("X-Nothing: 1", PHOTO)), FORM, MalformedRequest, 'part ""', id="part without a name"),
    pytest.param(
        form((FILE + "\r\nContent-Transfer-Encoding: base64", BASE64.encode())),
        FORM,
        MalformedRequest,
        "Content-Transfer-Encoding base64",
        id="encoded part",
    ),
    pytest.param(
        form((FILE + "\r\nX-Long: " + "x" * 9000, PHOTO)),
        FORM,
        MalformedRequest,
        "headers of a part|header size",
        id="long part header",
    ),
    pytest.param(b"x" * (LIMIT + 1), "image/png", BodyTooLarge, f"{LIMIT} bytes", id="large raw body"),
    pytest.param(form((FILE, b"x" * (LIMIT + 1))), FORM, BodyTooLarge, f"{LIMIT} bytes", id="large part"),
]


@pytest.mark.parametrize(("body", "kind", "problem", "says"), REFUSED)
def test_what_is_no_upload_is_refused_for_its_own_reason(
    body: bytes, kind: str | None, problem: type[Problem], says: str
) -> None:
    with pytest.raises(problem, match=f"(?s){says}"):
        read(body, kind)


def test_a_body_of_exactly_the_limit_is_accepted_in_every_form() -> None:
    content = b"\xff" * LIMIT
    encoded = json.dumps({"image": base64.b64encode(content).decode()}).encode()
    assert read(content, "image/png").content == content
    assert read(form((FILE, content)), FORM).content == content
    assert read(encoded, "application/json").content == content


def test_a_compressed_body_is_refused() -> None:
    with pytest.raises(UnsupportedFormat, match="Content-Encoding"):
        read(PHOTO, "image/png", content_encoding="gzip")


def test_an_announced_length_beyond_the_limit_is_refused_before_anything_is_read() -> None:
    async def receive() -> Any:
        raise AssertionError("read although the length was already too much")

    headers = Headers({"content-type": "image/png", "content-length": str(LIMIT + 1)})
    with pytest.raises(BodyTooLarge):
        asyncio.run(read_uploads(headers, receive, max_bytes=LIMIT, seconds=5))


@pytest.mark.parametrize("kind", ["image/png", "application/json"])
def test_an_endless_body_is_cut_off_while_it_arrives(kind: str) -> None:
    received = 0

    async def receive() -> Message:
        nonlocal received
        received += 1000
        return {"type": "http.request", "body": b"x" * 1000, "more_body": True}

    with pytest.raises(BodyTooLarge):
        asyncio.run(read_uploads(Headers({"content-type": kind}), receive, max_bytes=LIMIT, seconds=5))
    assert received < 2 * LIMIT + (64 << 10)


def test_an_endless_form_is_cut_off_at_the_images_limit() -> None:
    received = 0
    head = form((FILE, b"")).removesuffix(b"\r\n--B--\r\n")

    async def receive() -> Message:
        nonlocal received
        received += 1000
        return {"type": "http.request", "body": head if received == 1000 else b"x" * 1000, "more_body": True}

    with pytest.raises(BodyTooLarge):
        asyncio.run(read_uploads(Headers({"content-type": FORM}), receive, max_bytes=LIMIT, seconds=5))
    assert received < LIMIT + 3000


def test_a_body_that_stalls_is_given_up() -> None:
    receive = messages(PHOTO, complete=False)
    with pytest.raises(BodyTooSlow, match=r"within 0\.02 seconds"):
        asyncio.run(
            read_uploads(Headers({"content-type": "image/png"}), receive, max_bytes=LIMIT, seconds=0.02)
        )


def test_a_body_of_which_nothing_comes_any_more_is_given_up_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "STALL_SECONDS", 0.02)
    receive = messages(PHOTO, complete=False)
    with pytest.raises(BodyTooSlow, match=r"Nothing of the body arrived for 0\.02 seconds"):
        asyncio.run(
            read_uploads(Headers({"content-type": "image/png"}), receive, max_bytes=LIMIT, seconds=20)
        )


@pytest.mark.parametrize("kind", ["image/png", FORM, "application/json"])
def test_a_client_that_leaves_is_no_error_of_the_service(kind: str) -> None:
    events: list[Message] = [
        {"type": "http.request", "body": form((FILE, PHOTO))[:200], "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Message:
        return events.pop(0)

    with pytest.raises(ClientDisconnect):
        asyncio.run(read_uploads(Headers({"content-type": kind}), receive, max_bytes=LIMIT, seconds=5))


def test_a_form_field_without_a_file_brings_advice() -> None:
    assert "image=@FILE" in read(form((FIELD, b"photo.jpg")), FORM).advice


@pytest.mark.parametrize("name", ["filename*=UTF-8''%E7%8C%AB.png", "FileName* = x"])
def test_a_file_that_is_named_in_the_extended_form_is_a_file(name: str) -> None:
    """RFC 5987: what some libraries send where a name is not ASCII."""
    assert read(form((f"{FIELD}; {name}", PHOTO)), FORM).advice == ""


def test_an_unnamed_body_brings_advice() -> None:
    assert "--data-binary" in read(PHOTO, "application/x-www-form-urlencoded").advice
