"""API keys, if the service requires them. No key itself is stored, only its SHA-256."""

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
    """The file of keys cannot be used; the message says which line is wrong and what a line must look like."""


class Keys:
    """The keys that the service accepts, by their SHA-256.

    A fast hash is enough, because keys have 256 random bits, which cannot be found by trial.
    """

    def __init__(self, names: dict[bytes, str]) -> None:
        # SHA-256 of a key → the name of its owner.
        self._names = names

    @classmethod
    def load(cls, path: Path) -> Keys:
        """Read a file of keys. Each line has the SHA-256 of a key in hexadecimal digits and a name; # begins a comment.

        Raises KeysError.
        """
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
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
                    f"line {number} of {path} is not an API key: a line is the SHA-256 of a key in 64 hexadecimal "
                    "digits, and a name; `maskserve key NAME` prints both"
                )
            names[bytes.fromhex(match["digest"])] = match["name"] or f"line {number}"
        if not names:
            raise KeysError(f"there is no API key in {path}; `maskserve key NAME` makes one")
        return cls(names)

    def owner(self, authorization: str) -> str:
        """The owner's name of the key in an Authorization header (RFC 6750, section 2.1).

        It is compared with every key in constant time, so the duration reveals nothing. Raises Unauthorized.
        """
        match = BEARER.fullmatch(authorization)
        if match is None:
            raise Unauthorized(
                "This service requires an API key: send the header Authorization: Bearer <key>."
            )
        given = hash_key(match[1])
        found = [name for known, name in self._names.items() if hmac.compare_digest(known, given)]
        if not found:
            raise Unauthorized("The API key is unknown.")
        return found[0]


def hash_key(key: str) -> bytes:
    """The SHA-256 of a key, which is what is stored."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def generate_key() -> str:
    """256 random bits, in characters that need no quoting in a shell, a URL or a header."""
    return secrets.token_urlsafe(32)
