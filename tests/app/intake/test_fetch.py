"""Images by address: a real HTTPS server on loopback, and everything that must not be asked."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from app.intake.fetch import Fetcher, Hosts, HostsError, is_public
from app.problems import BodyTooLarge, QueueFull, UnusableUrl

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

FILE = bytes(range(256)) * 40
# Seconds; reached only when something hangs.
PATIENCE = 30


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),  # the metadata service of every cloud
        ("100.64.0.1", False),  # carrier-grade NAT
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:93.184.216.34", True),
        ("64:ff9b::a00:1", False),  # 10.0.0.1 behind NAT64
        ("2002:7f00:1::", False),  # 127.0.0.1 in 6to4
        ("2001:0:7f00:1::", False),  # Teredo
        ("2001:db8::1", False),
        ("3fff::1", False),
        ("fec0::1", False),  # site-local
        ("::7f00:1", False),  # 127.0.0.1, "IPv4-compatible"
        ("::ffff:0:7f00:1", False),  # 127.0.0.1, translated (RFC 2765)
        ("64:ff9b:1::a00:1", False),  # 10.0.0.1 behind a NAT64 of one's own
        ("4000::1", False),  # given to nobody
        ("5f00::1", False),  # segment routing
    ],
)
def test_only_addresses_of_the_public_internet_are_public(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


@pytest.mark.parametrize(
    ("names", "host", "port", "allowed"),
    [
        ("", "a.com", 443, False),
        ("a.com", "a.com", 443, True),
        ("a.com", "A.COM.", 443, True),
        ("a.com", "b.a.com", 443, False),
        ("a.com", "nota.com", 443, False),
        ("*.a.com", "b.a.com", 443, True),
        ("*.a.com", "c.b.a.com", 443, True),
        ("*.a.com", "a.com", 443, False),
        ("*.a.com", "nota.com", 443, False),
        ("a.com", "a.com", 8443, False),
        ("b.com, a.com:8443", "a.com", 8443, True),
        ("a.com:8443", "a.com", 443, False),
        ("*", "any.org", 443, True),
        ("*", "any.org", 22, False),
    ],
)
def test_hosts_are_those_that_the_operator_named(names: str, host: str, port: int, allowed: bool) -> None:
    assert Hosts(names).allow(host, port) is allowed


@pytest.mark.parametrize(
    "names",
    [
        "https://a.com",
        "a.com/photos",
        "a:b",
        "a.com:0",
        "a.com:65536",
        "[::1]",
        "a..b",
        "*a.com",
        "-a.com",
        "a.com,b c",
    ],
)
def test_what_is_no_host_is_refused_at_the_start(names: str) -> None:
    with pytest.raises(HostsError, match="is no host to fetch images from"):
        Hosts(names)


@pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".com", ".a", "a-.b", "a." * 130 + "b", "a b"])
def test_an_address_whose_host_is_no_name_is_refused(host: str) -> None:
    with pytest.raises(UnusableUrl):
        Fetcher(Hosts("*"), max_bytes=1, seconds=1).check(f"https://{host}/")


@asynccontextmanager
async def https(
    answer: bytes | Callable[[str], bytes],
) -> AsyncIterator[tuple[int, ssl.SSLContext, list[str]]]:
    """A server on loopback that answers so; its port, who trusts it, and the request lines that it got."""
    authority = trustme.CA()
    ours, theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(ours)
    authority.configure_trust(theirs)
    asked: list[str] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        asked.extend(lines[:1])
        writer.write(answer if isinstance(answer, bytes) else answer(lines[0].split()[1]))
        writer.close()
        with contextlib.suppress(OSError, ssl.SSLError):
            await writer.wait_closed()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=ours)
    async with server:
        yield server.sockets[0].getsockname()[1], theirs, asked


def ok(content: bytes = FILE) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content)


def redirect(location: str) -> bytes:
    return f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()


def get(
    answer: bytes | Callable[[str], bytes],
    url: str = "https://localhost:{port}/photo.jpg",
    arrived: Callable[[int], None] = lambda _: None,
    hosts: str = "localhost:{port}",
    **more: Any,
) -> tuple[bytes, list[str]]:
    """What the fetcher brings, and what the server was asked for."""

    async def run() -> tuple[bytes, list[str]]:
        async with https(answer) as (port, context, asked):
            settings = {
                "max_bytes": 20_000,
                "seconds": 10.0,
                "acceptable": lambda _: True,
                "context": context,
            }
            fetcher = Fetcher(Hosts(hosts.format(port=port)), **(settings | more))
            try:
                return await fetcher.get(url.format(port=port), arrived), asked
            except Exception as error:
                error.add_note(f"asked: {asked}")
                raise

    return asyncio.run(run())


def test_a_file_is_fetched_and_its_bytes_are_counted_as_they_come() -> None:
    counted: list[int] = []
    content, asked = get(ok(), arrived=counted.append)
    assert content == FILE
    assert sum(counted) == len(FILE)
    assert asked == ["GET /photo.jpg HTTP/1.1"]


def test_a_redirect_to_an_allowed_host_is_followed() -> None:
    content, asked = get(lambda path: ok() if path == "/b" else redirect("/b"))
    assert content == FILE
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (redirect("https://elsewhere.org/"), "not fetched from this host"),
        (redirect("http://localhost/"), "must begin with https"),
        (redirect("file:///etc/passwd"), "must begin with https"),
        (redirect("/photo.jpg"), "redirects more than 3 times"),
        (redirect("https://[::1/"), "redirects to what is no address"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "status 404"),
        (b"nonsense\r\n\r\n", "could not be reached"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\ncut short", "could not be reached"),
    ],
)
def test_what_brings_no_file_is_said_so(answer: bytes, says: str) -> None:
    with pytest.raises(UnusableUrl, match=says):
        get(answer)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://localhost:{port}/", "must begin with https"),
        ("localhost", "must begin with https"),
        ("https://user:secret@localhost:{port}/", "user name"),
        ("https://127.0.0.1:{port}/", "not fetched from this host"),
        ("https://localhost/", "not fetched from this host"),
        ("https://", "not fetched from this host"),
        ("https://[::1/", "not an address"),
        ("https://localhost:99999/", "not an address"),
        ("https://lo\u0441alhost:{port}/", "not an address"),
        ("https://localhost:{port}/a b\r\nX: y", "could not be reached"),
    ],
)
def test_what_may_not_be_asked_is_not_asked(url: str, says: str) -> None:
    with pytest.raises(UnusableUrl, match=says) as caught:
        get(ok(), url=url)
    assert caught.value.__notes__ == ["asked: []"]


def test_a_name_with_one_address_that_is_not_public_is_not_asked_at_all() -> None:
    with pytest.raises(UnusableUrl, match="could not be reached") as caught:
        get(ok(), acceptable=is_public)
    assert caught.value.__notes__ == ["asked: []"]


def test_the_address_that_was_checked_is_the_one_that_is_asked() -> None:
    checked: list[str] = []

    def acceptable(address: Any) -> bool:
        checked.append(str(address))
        return True

    get(ok(), acceptable=acceptable)
    assert "127.0.0.1" in checked


def test_the_next_address_of_a_name_is_asked_where_one_cannot_be_reached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    look_up = socket.getaddrinfo

    def with_one_more(host: str, port: int, *more: Any, **options: Any) -> list[Any]:
        found = look_up(host, port, *more, **options)
        # Nothing listens at the second address of loopback.
        return [(*entry[:4], ("127.0.0.2", port)) for entry in found if entry[4][0] == "127.0.0.1"] + found

    monkeypatch.setattr(socket, "getaddrinfo", with_one_more)
    content, asked = get(ok())
    assert (content, len(asked)) == (FILE, 1)


def test_a_certificate_that_nobody_vouches_for_is_refused() -> None:
    with pytest.raises(UnusableUrl, match="could not be reached"):
        get(ok(), context=ssl.create_default_context())


def test_a_file_beyond_the_limit_is_cut_off() -> None:
    with pytest.raises(BodyTooLarge):
        get(b"HTTP/1.1 200 OK\r\n\r\n" + FILE * 3)


def test_a_file_that_memory_has_no_room_for_is_cut_off() -> None:
    def full(_: int) -> None:
        raise QueueFull

    with pytest.raises(QueueFull):
        get(ok(), arrived=full)


def test_names_that_are_looked_up_for_long_hold_no_thread_that_others_need(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hanging, asked = threading.Event(), threading.Semaphore(0)

    def never_found(*_: object, **__: object) -> list[Any]:
        asked.release()
        hanging.wait(2 * PATIENCE)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", never_found)

    async def run() -> None:
        fetcher = Fetcher(Hosts("*"), max_bytes=1, seconds=2 * PATIENCE, context=ssl.create_default_context())
        fetching = [
            asyncio.create_task(fetcher.get(f"https://slow{number}.example/", lambda _: None))
            for number in range(64)
        ]
        try:
            async with asyncio.timeout(PATIENCE):
                while not asked.acquire(blocking=False):
                    await asyncio.sleep(0)
                assert await asyncio.to_thread(lambda: "free") == "free"
        finally:
            hanging.set()
        results = await asyncio.gather(*fetching, return_exceptions=True)
        assert {type(result) for result in results} == {UnusableUrl}

    asyncio.run(run())


def test_a_server_that_does_not_go_on_is_given_up() -> None:
    with pytest.raises(UnusableUrl, match=r"did not arrive within 0\.2 seconds"):
        asyncio.run(silent())


async def silent() -> bytes:
    """Ask a server that accepts and says nothing."""
    reached, left = asyncio.Event(), asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.set()
        await reader.read()
        writer.close()
        left.set()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        fetcher = Fetcher(Hosts(f"localhost:{port}"), max_bytes=1, seconds=0.2, acceptable=lambda _: True)
        try:
            return await fetcher.get(f"https://localhost:{port}/", lambda _: None)
        finally:
            # On a machine that is busy enough the time is over before there is a connection.
            if reached.is_set():
                await left.wait()
