"""API keys: who may ask, if the service is told to care. A key itself is stored nowhere, only its SHA-256."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from typing import TYPE_CHECKING

from app.problems import Unauthorized

if TYPE_CHECKING:
    from pathlib import Path

LINE = re.compile(r"(?P<digest>[0-9a-fA-F]{64})(?:\s+(?P<name>\S.{0,63}))?")
BEARER = re.compile(r"bearer +(\S+) *", re.IGNORECASE)


class KeysError(Exception):
    """The file of keys cannot be used; the message says which line is wrong, and what a line looks like."""


class Keys:
    """The keys that open the service, by the SHA-256 of each.

    A hash made for speed is right here: keys are 256 random bits, which nobody finds by trying.
    """

    def __init__(self, names: dict[bytes, str]) -> None:
        self._names = names  # SHA-256 → whose key it is

    @classmethod
    def load(cls, path: Path) -> Keys:
        """The keys in a file: a line for each, its SHA-256 in hexadecimal digits and then a name; # begins a comment.

        Raises KeysError.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise KeysError(f"the API keys in {path} cannot be read: {error}") from None
        names: dict[bytes, str] = {}
        for number, line in enumerate(lines, 1):
            text = line.partition("#")[0].strip()
            if not text:
                continue
            match = LINE.fullmatch(text)
            if match is None:
                raise KeysError(
                    f"line {number} of {path} is no API key: a line is the SHA-256 of a key in 64 hexadecimal digits, "
                    "and a name; `maskserve key NAME` makes both"
                )
            names[bytes.fromhex(match["digest"])] = match["name"] or f"line {number}"
        if not names:
            raise KeysError(f"there is no API key in {path}; `maskserve key NAME` makes one")
        return cls(names)

    def owner(self, authorization: str) -> str:
        """The name that belongs to the key in an Authorization header (RFC 6750, section 2.1).

        Every key is compared, in constant time, so that the time taken tells nothing. Raises Unauthorized.
        """
        match = BEARER.fullmatch(authorization)
        if match is None:
            raise Unauthorized("This service wants an API key: send the header Authorization: Bearer <key>.")
        given = digest(match[1])
        found = [name for known, name in self._names.items() if hmac.compare_digest(known, given)]
        if not found:
            raise Unauthorized("The API key is not known here.")
        return found[0]


def digest(key: str) -> bytes:
    """What is stored of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def new_key() -> str:
    """256 random bits, in characters that need no quoting anywhere."""
    return secrets.token_urlsafe(32)
