"""Whether a request carries an API key, for the routes that ask for one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from fastapi import Depends
from fastapi.security import HTTPBearer
from starlette.requests import Request  # noqa: TC002 - FastAPI reads the annotations

if TYPE_CHECKING:
    from app.service import Service

# Only for the OpenAPI document: what a wrong header is answered with, says Keys.owner.
BEARER = HTTPBearer(
    scheme_name="key", description="An API key, where the service asks for one.", auto_error=False
)


async def require_api_key(request: Request, _: Annotated[object, Depends(BEARER)]) -> None:
    """Let the request in if the service asks for no key or this is one; its owner's name goes into the log.

    Raises Unauthorized, before anything of the body is read.
    """
    service: Service = request.app.state.service
    if service.keys is not None:
        request.state.record["client"] = service.keys.owner(request.headers.get("authorization", ""))
