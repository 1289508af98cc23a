"""An image by its address: {"url": "https://…"}, from hosts that the operator has named, never from internal ones.

This prevents server-side request forgery (SSRF), in which a client makes this process contact what only it can reach:
addresses of the local network, a cloud's metadata service, names that resolve to something else the second time (DNS
rebinding).
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

import httpcore

from app.problems import BodyTooLarge, UnusableUrl

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from concurrent.futures import Executor

    Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Image hosts need one or two.
REDIRECTS = 3
CONNECT_SECONDS = 5.0
# Threads that ask for the addresses of names, which nothing else shares: a name server may take long.
LOOKUP_THREADS = 4
# All IPv6 addresses that are given to networks of the internet (IANA, IPv6 Global Unicast Address Assignments). Within
# it: 6to4 (RFC 3056) and Teredo (RFC 4380), which wrap an IPv4 address that may be a private one, and ranges for
# documentation, benchmarks and identifiers, none of which is a host.
GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
NO_HOSTS = tuple(map(ipaddress.IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")))
# Names as DNS has them: labels of letters, digits and inner hyphens, or underscores, of at most 63 characters.
_LABEL = r"(?!-)[a-z0-9_-]{1,63}(?<!-)"
_HOST = re.compile(rf"(\*|(\*\.)?{_LABEL}(\.{_LABEL})*)(:([0-9]{{1,5}}))?")


class HostsError(ValueError):
    """MASKSERVE_URL_HOSTS has something that is no host; the message says which."""


def is_public(address: Address) -> bool:
    """Whether an address is one of the public internet, and nothing else in disguise."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address not in GLOBAL_UNICAST or any(address in network for network in NO_HOSTS):
            return False
    return address.is_global and not address.is_multicast


def is_host_name(host: str) -> bool:
    """Whether a name can be looked up: 253 characters at most, in labels of 63 at most."""
    return len(host) <= 253 and re.fullmatch(rf"{_LABEL}(\.{_LABEL})*\.?", host.lower()) is not None


def is_address(host: str) -> bool:
    """Whether it is an IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class Hosts:
    """The hosts that images may come from: `photos.example.com`, `*.example.com`, `cdn.example.com:8443`, or `*`."""

    def __init__(self, names: str) -> None:
        """names: separated by commas. Where no port is given, 443 is meant. Raises HostsError."""
        self._names = tuple(name.strip().lower() for name in names.split(",") if name.strip())
        for name in self._names:
            found = _HOST.fullmatch(name)
            if found is None or not 0 < int(found[5] or 443) < 65536:
                raise HostsError(
                    f"{name[:80]} is no host to fetch images from; write photos.example.com, *.example.com, "
                    "cdn.example.com:8443 or *, without https://, a path or brackets"
                )

    def __bool__(self) -> bool:
        return bool(self._names)

    def allow(self, host: str, port: int) -> bool:
        """Whether the operator has named this host and port."""
        return any(self._matches(name, host.lower().rstrip("."), port) for name in self._names)

    @staticmethod
    def _matches(name: str, host: str, port: int) -> bool:
        wanted, _, number = name.partition(":")
        if port != int(number or 443):
            return False
        if wanted.startswith("*."):
            return host.endswith(wanted[1:]) and host != wanted[1:]
        return wanted in ("*", host)


class PinnedBackend(httpcore.AsyncNetworkBackend):
    """Connects to a name's addresses, once each of them was found to be public, and to no others."""

    def __init__(self, acceptable: Callable[[Address], bool], lookups: Executor) -> None:
        self._acceptable = acceptable
        self._lookups = lookups
        self._backend = httpcore.AnyIOBackend()
        self._streams: list[httpcore.AsyncNetworkStream] = []

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """A connection to the host. Raises httpcore.ConnectError, which tells no more than that it failed."""
        try:
            look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
            found = await asyncio.get_running_loop().run_in_executor(self._lookups, look_up)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(str(error)) from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if not addresses or not all(self._acceptable(ipaddress.ip_address(a)) for a in addresses):
            raise httpcore.ConnectError("the name has an address that is not public")
        failure: Exception | None = None
        for address in addresses:
            try:
                stream = await self._backend.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
                continue
            self._streams.append(stream)
            return stream
        raise httpcore.ConnectError("none of the name's addresses can be reached") from failure

    async def __aenter__(self) -> PinnedBackend:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close whatever was opened: httpcore leaves a connection open that is cancelled in its TLS handshake."""
        for stream in self._streams:
            with suppress(Exception):
                await stream.aclose()

    async def sleep(self, seconds: float) -> None:
        """Wait, as httpcore does between attempts."""
        await asyncio.sleep(seconds)


class Fetcher:
    """Gets image files over HTTPS, never through a proxy; redirects must follow the same rules."""

    def __init__(
        self,
        hosts: Hosts,
        *,
        max_bytes: int,
        seconds: float,
        acceptable: Callable[[Address], bool] = is_public,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._hosts = hosts
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._acceptable = acceptable
        # Once: it reads the authorities' certificates, which takes 50 ms. Without hosts nothing is fetched.
        self._context = context or (ssl.create_default_context() if hosts else None)
        self._lookups = ThreadPoolExecutor(LOOKUP_THREADS, "maskserve-lookup")

    async def get(self, url: str, arrived: Callable[[int], None]) -> bytes:
        """The file at an address, all of it within the time that a body may take.

        arrived: told of bytes as they come; may raise. Raises UnusableUrl, BodyTooLarge.
        """
        try:
            async with asyncio.timeout(self._seconds):
                return await self._get(url, arrived)
        except TimeoutError:
            raise UnusableUrl(f"The file did not arrive within {self._seconds:g} seconds.") from None
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, ssl.SSLError):
            # The cause would disclose the network around this service.
            raise UnusableUrl("The address could not be reached, or does not speak HTTPS.") from None

    async def _get(self, url: str, arrived: Callable[[int], None]) -> bytes:
        for _ in range(REDIRECTS + 1):
            self.check(url)
            async with self._answer(url) as response:
                headers = {name.lower(): value for name, value in response.headers}
                if response.status in (301, 302, 303, 307, 308) and b"location" in headers:
                    try:
                        url = urljoin(url, headers[b"location"].decode("latin-1"))
                    except ValueError:
                        raise UnusableUrl("The address redirects to what is no address.") from None
                    continue
                if response.status != 200:
                    raise UnusableUrl(f"The address answers with status {response.status}, not with a file.")
                content = bytearray()
                async for chunk in response.aiter_stream():
                    arrived(len(chunk))
                    content += chunk
                    if len(content) > self._max_bytes:
                        raise BodyTooLarge.beyond(self._max_bytes)
                return bytes(content)
        raise UnusableUrl(f"The address redirects more than {REDIRECTS} times.")

    def check(self, url: str) -> None:
        """Raise UnusableUrl for an address that is not to be asked."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port or 443
            url.encode("ascii")
        except (ValueError, UnicodeEncodeError):
            raise UnusableUrl('"url" is not an address; write it as a browser copies it.') from None
        if parts.scheme != "https":
            raise UnusableUrl('"url" must begin with https://.')
        if parts.username is not None:
            raise UnusableUrl('"url" must not carry a user name.')
        if not self._hosts.allow(host, port):
            raise UnusableUrl(
                "Images are not fetched from this host; the operator of the service names the hosts."
            )
        if not is_host_name(host) and not is_address(host):
            raise UnusableUrl(
                '"url" has a host that cannot be a name: parts of 1 to 63 letters, digits and hyphens.'
            )

    @asynccontextmanager
    async def _answer(self, url: str) -> AsyncIterator[httpcore.Response]:
        limits = {
            "connect": CONNECT_SECONDS,
            "read": self._seconds,
            "write": self._seconds,
            "pool": self._seconds,
        }
        backend = PinnedBackend(self._acceptable, self._lookups)
        async with (
            backend,
            httpcore.AsyncConnectionPool(
                ssl_context=self._context,
                network_backend=backend,
                max_keepalive_connections=0,
            ) as pool,
            pool.stream(
                "GET",
                url.partition("#")[0],
                # Not compressed: images are already, and a few bytes could become gigabytes.
                headers={"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "maskserve"},
                extensions={"timeout": limits},
            ) as response,
        ):
            yield response
