"""An image by its address: {"url": "https://…"}, for hosts that the operator has named, and never from inside.

What is guarded against is a client who makes this process ask what only this process can reach (SSRF): addresses of the
local network, a cloud's metadata service, names that resolve to something else the second time (DNS rebinding).
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

import httpcore

from app.problems import BodyTooLarge, UnusableUrl

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    Address = ipaddress.IPv4Address | ipaddress.IPv6Address

REDIRECTS = 3  # image hosts need one or two
CONNECT_SECONDS = 5.0
# Both wrap an IPv4 address, which may be a private one: NAT64 (RFC 6052) and 6to4 (RFC 3056).
WRAPPED = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("2002::/16"))


def is_public(address: Address) -> bool:
    """Whether an address is one of the public internet, and nothing else in disguise."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if any(address in network for network in WRAPPED):
            return False
    return address.is_global and not address.is_multicast


class Hosts:
    """The hosts that images may come from: `photos.example.com`, `*.example.com`, `cdn.example.com:8443`, or `*`."""

    def __init__(self, names: str) -> None:
        """names: separated by commas. Where no port is given, 443 is meant."""
        self._names = tuple(name.strip().lower() for name in names.split(",") if name.strip())

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
    """Connects to an address only after every address of its name was found to be public, and to just that one."""

    def __init__(self, acceptable: Callable[[Address], bool]) -> None:
        self._acceptable = acceptable
        self._backend = httpcore.AnyIOBackend()
        self._opened: list[httpcore.AsyncNetworkStream] = []

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
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=1)  # 1: SOCK_STREAM
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from error
        addresses = [str(entry[4][0]) for entry in found]
        if not addresses or not all(self._acceptable(ipaddress.ip_address(a)) for a in addresses):
            raise httpcore.ConnectError("the name has an address that is not public")
        opened = await self._backend.connect_tcp(addresses[0], port, timeout, local_address, socket_options)
        self._opened.append(opened)
        return opened

    async def __aenter__(self) -> PinnedBackend:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close whatever was opened: httpcore leaves a connection open that is cancelled in its TLS handshake."""
        for stream in self._opened:
            with suppress(Exception):
                await stream.aclose()

    async def sleep(self, seconds: float) -> None:
        """Wait, as httpcore does between attempts."""
        await asyncio.sleep(seconds)


class Fetcher:
    """Gets image files over HTTPS, never through a proxy; every redirect is held against the same rules."""

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
        self._context = context

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
            # Whatever it was, it would tell of the network around this service.
            raise UnusableUrl("The address could not be reached, or does not speak HTTPS.") from None

    async def _get(self, url: str, arrived: Callable[[int], None]) -> bytes:
        for _ in range(REDIRECTS + 1):
            self.check(url)
            async with self._answer(url) as response:
                headers = {name.lower(): value for name, value in response.headers}
                if response.status in (301, 302, 303, 307, 308) and b"location" in headers:
                    url = urljoin(url, headers[b"location"].decode("latin-1"))
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
                "Images are not fetched from this host; whoever runs the service names the hosts."
            )

    @asynccontextmanager
    async def _answer(self, url: str) -> AsyncIterator[httpcore.Response]:
        limits = {
            "connect": CONNECT_SECONDS,
            "read": self._seconds,
            "write": self._seconds,
            "pool": self._seconds,
        }
        backend = PinnedBackend(self._acceptable)
        async with (
            backend,
            httpcore.AsyncConnectionPool(
                ssl_context=self._context or ssl.create_default_context(),
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
