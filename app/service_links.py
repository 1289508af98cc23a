"""The variables with which Kubernetes announces a Service called maskserve, told apart from misspelt settings.

In every pod beside such a Service (or one called maskserve-gateway) it sets MASKSERVE_SERVICE_HOST=10.0.0.7,
MASKSERVE_SERVICE_PORT=8000, MASKSERVE_PORT=tcp://10.0.0.7:8000, MASKSERVE_PORT_8000_TCP_ADDR=10.0.0.7 and so on:
https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
"""

from __future__ import annotations

import ipaddress
import os
import re
from typing import TYPE_CHECKING, Any

from pydantic_settings import EnvSettingsSource

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic.fields import FieldInfo


def is_cluster_address(value: str) -> bool:
    """Whether this is an IP address that a Service can have."""
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        return False
    return not address.is_unspecified and not address.is_loopback


def is_endpoint(value: str) -> bool:
    """Whether this is a URL like tcp://10.0.0.7:8000."""
    return re.fullmatch(r"(tcp|udp|sctp)://\S+", value) is not None


def is_protocol(value: str) -> bool:
    """Whether this is a protocol that a Service can have."""
    return value in ("tcp", "udp", "sctp")


SERVICE = r"MASKSERVE(_\w+)?"
PORT = rf"{SERVICE}_PORT_\d+_(TCP|UDP|SCTP)"
# What the value of a variable must be for each pattern of names.
LINKS = (
    (re.compile(rf"{SERVICE}_SERVICE_HOST"), is_cluster_address),
    (re.compile(rf"{SERVICE}_PORT"), is_endpoint),
    (re.compile(PORT), is_endpoint),
    (re.compile(rf"{PORT}_PROTO"), is_protocol),
    (re.compile(rf"{PORT}_PORT"), str.isdecimal),
    (re.compile(rf"{PORT}_ADDR"), is_cluster_address),
)
SERVICE_PORT = re.compile(rf"(?P<service>{SERVICE})_SERVICE_PORT(_\w+)?")


def is_service_link(name: str, value: str, environment: Mapping[str, str]) -> bool:
    """Whether Kubernetes has set this variable; both its name and its value must fit.

    MASKSERVE_SERVICE_PORT=8000 alone is more likely a misspelt MASKSERVE_PORT. Kubernetes sets the Service's host too,
    so this port counts only beside it.

    Args:
        name: of the variable, upper case.
        value: of the variable.
        environment: all variables.
    """
    if any(pattern.fullmatch(name) and fits(value) for pattern, fits in LINKS):
        return True
    match = SERVICE_PORT.fullmatch(name)
    return (
        match is not None
        and value.isdecimal()
        and is_cluster_address(environment.get(f"{match['service']}_SERVICE_HOST", ""))
    )


class EnvironmentWithoutLinks(EnvSettingsSource):
    """The environment as a source of settings, without the variables of service links."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """The value of a setting's variable, or None if it is not set; see EnvSettingsSource."""
        value, key, is_complex = super().get_field_value(field, field_name)
        name = f"{self.env_prefix}{field_name}".upper()
        if value is not None and is_service_link(name, value, os.environ):
            value = None
        return value, key, is_complex
