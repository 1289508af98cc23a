"""Checks the API key, on routes that require one where the service has a file of keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from fastapi import Depends
from fastapi.security import HTTPBearer
from starlette.requests import Request  # noqa: TC002 - FastAPI reads the annotations

if TYPE_CHECKING:
    from app.service import Service

# Only documents the scheme in /openapi.json; Keys.owner reads the header and refuses it.
BEARER = HTTPBearer(
    scheme_name="key", description="An API key, where the service requires one.", auto_error=False
)


async def require_api_key(request: Request, _: Annotated[object, Depends(BEARER)]) -> None:
    """Raise Unauthorized for a request without a valid key, before its body is read. The log gets the key's owner."""
    service: Service = request.app.state.service
    if service.keys is not None:
        request.state.record["client"] = service.keys.owner(request.headers.get("authorization", ""))
