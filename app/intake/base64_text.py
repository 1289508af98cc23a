"""The image in a JSON body: a string of base64, as clients write it. Runs in a decoder process only."""

from __future__ import annotations

import base64
import binascii
import json
import re

# RFC 4648's other alphabet (section 5) to the usual one.
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_DATA_URL = b"data:"
_OTHER = re.compile(rb"[^A-Za-z0-9+/]")


class NotBase64(ValueError):  # noqa: N818 - says what the text is not
    """The text cannot be read as base64; the message says why, in a sentence fit for the client."""


def decode_base64(text: bytes) -> bytes:
    """The bytes of an image file.

    text: what stands between the quotes of the JSON string, with or without a data: URL around the base64, which may be
    of either alphabet, with line breaks, and without its padding. Raises NotBase64.
    """
    if b"\\" in text:
        try:
            text = json.loads(b'"' + text + b'"', strict=False).encode()
        except (ValueError, UnicodeEncodeError):
            raise NotBase64(
                "The body is not valid JSON: a string has an escape that JSON does not know."
            ) from None
    if text[:5].lower() == _DATA_URL:
        scheme, comma, text = text.partition(b",")
        if not comma or not scheme.lower().replace(b" ", b"").endswith(b";base64"):
            raise NotBase64('"image" is a data: URL, but not one in base64 (data:image/png;base64,…).')
    elif text[:8].lower().startswith((b"http://", b"https://")):
        raise NotBase64('"image" must be the image file in base64; an address goes under "url".')
    # `base64 FILE` and e-mail break it into lines (RFC 2045, section 6.8).
    text = text.translate(None, b"\r\n\t").strip()
    if b" " in text or b"%" in text:
        raise NotBase64(
            '"image" is not valid base64: it has blanks or percent signs, as "+" turns into when text is encoded or '
            "decoded for a URL once too often. Send the base64 text as it is."
        )
    text = text.rstrip(b"=").translate(_URL_SAFE)
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        other = _OTHER.search(text)
        if other is None:
            reason = f"it has {len(text)} characters, so it is cut short, or one is too many"
        else:
            shown = other[0].decode("ascii", "backslashreplace")
            reason = f"character {other.start() + 1} is {shown}, which base64 does not have there"
        raise NotBase64(f'"image" is not valid base64 (RFC 4648): {reason}.') from None
