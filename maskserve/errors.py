"""What can go wrong with a call. The hierarchy:

MaskserveError
├── ServiceError      the service answered with a problem: what was refused, and why
├── AnswerError       what came back is no answer of a maskserve service
├── UnreachableError  no connection could be made, or every connection broke
└── DeadlineError     the deadline passed before there was an answer
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

# Characters of a gateway's page that an error repeats.
QUOTED = 200


class MaskserveError(Exception):
    """No result came. Its subclasses say why."""


class ServiceError(MaskserveError):
    """The service answered with a problem (RFC 9457): its fields are the attributes."""

    def __init__(self, status: int, problem: Mapping[str, Any], retry_after: float | None = None) -> None:
        """retry_after: seconds after which the service wants to be asked again; None if it does not say."""
        self.status = status
        self.retry_after = retry_after
        self.type = str(problem.get("type", "about:blank"))
        self.title = str(problem.get("title", ""))
        self.detail = str(problem.get("detail", ""))
        self.request_id = str(problem.get("request_id", ""))
        super().__init__(f"{status} {self.title}: {self.detail}".rstrip(": "))

    @classmethod
    def from_answer(
        cls, status: int, reason: str, headers: Mapping[str, str], body: bytes, retry_after: float | None
    ) -> ServiceError:
        """From any answer that is no success, also a gateway's page.

        Args:
            status: of the HTTP response.
            reason: its reason phrase, the title where the body is no problem document.
            headers: its headers.
            body: its first bytes.
            retry_after: seconds, from its Retry-After.
        """
        try:
            problem = json.loads(body)
        except (ValueError, RecursionError):
            problem = None
        if not isinstance(problem, dict):
            problem = {"title": reason, "detail": body.decode(errors="replace")[:QUOTED]}
        return cls(status, {"request_id": headers.get("x-request-id", ""), **problem}, retry_after)


class AnswerError(MaskserveError, ValueError):
    """What came back is no answer of a maskserve service: no JSON, too large, fields or masks that do not fit."""


class UnreachableError(MaskserveError):
    """No connection could be made, or every connection broke."""


class DeadlineError(MaskserveError):
    """The deadline passed before there was an answer."""
