"""The client's side of maskserve: ask a service, get typed results, hand them on. It needs no torch.

from maskserve import Client

with Client("http://localhost:8000") as client:
    for instance in client.segment("photo.jpg").instances:
        print(instance.category, instance.score, instance.mask.sum())
"""

from maskserve.client import AsyncClient, Client
from maskserve.results import Instance, Result
from maskserve.retry import DeadlineError, MaskserveError, ServiceError, UnreachableError

__all__ = [
    "AsyncClient",
    "Client",
    "DeadlineError",
    "Instance",
    "MaskserveError",
    "Result",
    "ServiceError",
    "UnreachableError",
]
