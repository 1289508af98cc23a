"""`maskserve healthcheck`: the health of the service on this machine, for the HEALTHCHECK of an image without curl.

It asks over HTTP, as a gateway does. It imports only the standard library, because it runs every few seconds.
"""

from __future__ import annotations

import http.client
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.settings import Settings

# Docker's exit codes.
HEALTHY, UNHEALTHY = 0, 1
# Where to ask a service that listens on every interface.
LOCAL = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - nothing is bound


def check(settings: Settings, path: str, seconds: float) -> tuple[int, str]:
    """The exit code, and one line that says why.

    Args:
        settings: those of the service, for its address.
        path: /healthz or /readyz.
        seconds: within which a healthy service answers.
    """
    host = LOCAL.get(settings.host, settings.host)
    address = f"http://{f'[{host}]' if ':' in host else host}:{settings.port}{path}"
    connection = http.client.HTTPConnection(host, settings.port, timeout=seconds)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read(1 << 16)
    except TimeoutError:
        return UNHEALTHY, f"{address}: no answer within {seconds:g} seconds"
    except OSError as error:
        return UNHEALTHY, f"{address}: {error.strerror or error}"
    except http.client.HTTPException as error:
        return UNHEALTHY, f"{address}: the answer is not HTTP ({error!r})"
    finally:
        connection.close()
    if response.status == 200:
        return HEALTHY, f"{address}: ok"
    return UNHEALTHY, f"{address}: {response.status} {problem_detail(body) or response.reason}"


def problem_detail(body: bytes) -> str:
    """The detail of a problem document; empty if the body is not one."""
    try:
        document = json.loads(body)
    except ValueError:
        return ""
    return str(document.get("detail", "")) if isinstance(document, dict) else ""
