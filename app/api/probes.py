"""/healthz, /livez, /readyz, /metrics and /model: how the service is and what it serves. Nothing waits here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
from fastapi import APIRouter, Depends
from starlette.requests import Request  # noqa: TC002 - FastAPI reads the annotations
from starlette.responses import Response

from app.api import openapi
from app.api.auth import require_api_key
from app.observability.metrics import CONTENT_TYPE
from app.problems import NotReady

if TYPE_CHECKING:
    from app.service import Segmenting, Service

router = APIRouter()


@router.get("/healthz", **openapi.HEALTHZ)
@router.get("/livez", **openapi.LIVEZ)
async def healthz(request: Request) -> Response:
    """Whether the process is worth keeping."""
    service: Service = request.app.state.service
    if not service.is_alive():
        raise NotReady(service.failure or "The device gives no sign of life.", retry_after=5)
    return fresh({"status": "ok"})


@router.get("/readyz", **openapi.READYZ)
async def readyz(request: Request) -> Response:
    """Whether requests are taken."""
    service: Service = request.app.state.service
    if trouble := service.not_ready_reason():
        raise trouble
    return fresh({"status": "ready"})


@router.get("/metrics", dependencies=[Depends(require_api_key)], **openapi.METRICS)
async def metrics(request: Request) -> Response:
    """What is counted and measured, for Prometheus."""
    service: Service = request.app.state.service
    return Response(service.metrics.text(), media_type=CONTENT_TYPE, headers={"Cache-Control": "no-store"})


@router.get("/model", dependencies=[Depends(require_api_key)], **openapi.MODEL)
async def model(request: Request) -> Response:
    """What answers here."""
    service: Service = request.app.state.service
    return fresh(describe(service.engine))


def describe(engine: Segmenting) -> dict[str, Any]:
    """The model, and how it runs here, for people and for programs that check what they talk to."""
    model = engine.model
    return {
        "name": model.name,
        "notice": model.notice,
        "architecture": model.architecture.to_dict(),
        "categories": [{"id": category.id, "name": category.name} for category in model.categories],
        "sha256": model.sha256,
        "ap": model.ap,
        "ap_source": model.ap_source,
        "device": str(engine.device),
        "precision": engine.precision,
        "input_size": {
            "shorter_side": model.architecture.min_size,
            "longer_side_at_most": model.architecture.max_size,
        },
    }


def fresh(document: dict[str, Any]) -> Response:
    """A JSON answer that no cache keeps."""
    return Response(
        orjson.dumps(document), headers={"Cache-Control": "no-store"}, media_type="application/json"
    )
