"""The client of maskserve: ask a service, get typed results, hand them on. It needs no torch.

from maskserve import Client

with Client("http://localhost:8000") as client:
    for instance in client.segment("photo.jpg").instances:
        print(instance.category, instance.score, instance.mask.sum())

`maskserve.engine` is the engine of the service, for use without one.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskserve.client import AsyncClient, Client
    from maskserve.errors import AnswerError, DeadlineError, MaskserveError, ServiceError, UnreachableError
    from maskserve.results import Instance, Result

__all__ = [
    "AnswerError",
    "AsyncClient",
    "Client",
    "DeadlineError",
    "Instance",
    "MaskserveError",
    "Result",
    "ServiceError",
    "UnreachableError",
]

# Imported when they are used (PEP 562): the command `maskserve` begins with this package, and starts without httpx.
_MODULES = {
    "maskserve.client": ("AsyncClient", "Client"),
    "maskserve.errors": (
        "AnswerError",
        "DeadlineError",
        "MaskserveError",
        "ServiceError",
        "UnreachableError",
    ),
    "maskserve.results": ("Instance", "Result"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'maskserve' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
