"""`maskserve healthcheck`: is the service beside this process well? For a container's HEALTHCHECK, which has no curl.

It asks over HTTP, as a gateway would. Only the standard library is used, because it runs every few seconds.
"""

from __future__ import annotations

import http.client
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.settings import Settings

HEALTHY, UNHEALTHY = 0, 1  # exit codes, Docker's
LOCAL = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - listens everywhere, so it is asked here


def check(settings: Settings, path: str, seconds: float) -> tuple[int, str]:
    """Exit code and one line that says why.

    settings: those of the service, for its address. path: /healthz or /readyz. seconds: limit of the time until
    the answer; a service that takes longer is not well.
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
        return UNHEALTHY, f"{address}: what answers is no HTTP ({error!r})"
    finally:
        connection.close()
    if response.status == 200:
        return HEALTHY, f"{address}: ok"
    return UNHEALTHY, f"{address}: {response.status} {reason(body) or response.reason}"


def reason(body: bytes) -> str:
    """What a problem document says went wrong; nothing if the body is none."""
    try:
        document = json.loads(body)
    except ValueError:
        return ""
    return str(document.get("detail", "")) if isinstance(document, dict) else ""
