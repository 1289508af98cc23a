"""/healthz, /livez, /readyz, /metrics and /model: the state of the service and its model. No handler here waits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
from fastapi import APIRouter, Depends
from starlette.requests import Request  # noqa: TC002 - FastAPI reads the annotations
from starlette.responses import PlainTextResponse, Response

from app.api import openapi
from app.api.auth import require_api_key
from app.api.responses import describe_categories, describe_keypoints
from app.api.schemas import ModelDocument, StatusDocument
from app.observability.metrics import CONTENT_TYPE
from app.problems import NotReady
from model.inference.tiling import limit_overlap

if TYPE_CHECKING:
    from app.service import ServedEngine, Service

router = APIRouter()


@router.get("/livez", name="livez", response_model=StatusDocument, responses=openapi.HEALTHZ)
@router.get("/healthz", response_model=StatusDocument, responses=openapi.HEALTHZ)
async def healthz(request: Request) -> Response:
    """Liveness: green while the model loads and while the device gives signs of life, under any load."""
    service: Service = request.app.state.service
    if not service.is_alive():
        raise NotReady(service.failure or "The device does not respond.", retry_after=5)
    return uncached({"status": "ok"})


@router.get("/readyz", response_model=StatusDocument, responses=openapi.READYZ)
async def readyz(request: Request) -> Response:
    """Readiness: red while the model loads, while the service shuts down, and when the device has failed."""
    service: Service = request.app.state.service
    if problem := service.not_ready_reason():
        raise problem
    return uncached({"status": "ready"})


@router.get(
    "/metrics",
    dependencies=[Depends(require_api_key)],
    response_class=PlainTextResponse,
    responses=openapi.METRICS,
    openapi_extra=openapi.SECURITY,
)
async def metrics(request: Request) -> Response:
    """The metrics of this process, in Prometheus' text format."""
    service: Service = request.app.state.service
    return Response(service.metrics.text(), media_type=CONTENT_TYPE, headers={"Cache-Control": "no-store"})


@router.get(
    "/model",
    dependencies=[Depends(require_api_key)],
    response_model=ModelDocument,
    responses=openapi.MODEL,
    openapi_extra=openapi.SECURITY,
)
async def model(request: Request) -> Response:
    """The model's name, categories, checksum and accuracy, and the device and precision that it runs with."""
    service: Service = request.app.state.service
    return uncached(describe(service.engine))


def describe(engine: ServedEngine) -> ModelDocument:
    """The document of GET /model."""
    model = engine.model
    return {
        "name": model.name,
        "notice": model.notice,
        "architecture": model.architecture.to_dict(),
        "categories": describe_categories(model),
        "sha256": model.sha256,
        "ap": model.ap,
        "ap_source": model.ap_source,
        "origin": model.origin,
        "device": str(engine.device),
        "precision": engine.precision,
        "input_size": {
            "shorter_side": model.architecture.min_size,
            "longer_side_at_most": model.architecture.max_size,
        },
        "max_instances": model.max_instances,
        "tile_overlap": limit_overlap(model.object_extent),
        "keypoints": describe_keypoints(model),
    }


def uncached(document: StatusDocument | ModelDocument) -> Response:
    """A JSON response that no cache keeps."""
    return Response(
        orjson.dumps(document), headers={"Cache-Control": "no-store"}, media_type="application/json"
    )
