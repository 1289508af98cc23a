"""The transfer against a real HTTP server on loopback that can be told to misbehave."""

from __future__ import annotations

import errno
import os
import random
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from model.zoo import errors
from model.zoo.download import download
from model.zoo.errors import (
    BrokenOffError,
    DamagedWeightsError,
    DiskFullError,
    FolderError,
    RefusedError,
    UnreachableError,
    WeightsError,
)
from model.zoo.partial import Partial
from tests.model.zoo.origin import CONTENT, MEBIBYTE, Fetch, Origin, official_name, partial_of, sha256_of

ROOT = Path(__file__).resolve().parents[3]


# Fetching


def test_fresh_download_leaves_exactly_the_file(fetch: Fetch, origin: Origin) -> None:
    path = fetch(origin)
    assert path.read_bytes() == CONTENT
    assert fetch.left() == {path.name}


def test_progress_runs_from_nothing_to_the_announced_end(fetch: Fetch, origin: Origin) -> None:
    fetch(origin)
    assert fetch.progress[0] == (0, len(CONTENT))
    assert fetch.progress[-1] == (len(CONTENT), len(CONTENT))
    assert fetch.progress == sorted(fetch.progress)


def test_the_eight_digits_of_the_official_name_suffice(fetch: Fetch, origin: Origin) -> None:
    destination = fetch.path(origin)
    download(origin.url, destination, sha256_of(CONTENT)[:8])
    assert destination.read_bytes() == CONTENT


def test_file_that_is_there_is_not_asked_for_again(fetch: Fetch, origin: Origin) -> None:
    fetch(origin)
    fetch(origin)
    assert len(origin.requests) == 1


def test_file_in_a_read_only_place_needs_no_lock(fetch: Fetch, origin: Origin) -> None:
    path = fetch(origin)
    lock = path.with_name(f"{path.name}.lock")
    lock.unlink()
    fetch(origin)
    assert not lock.exists()


def test_damaged_file_is_replaced(fetch: Fetch, origin: Origin) -> None:
    fetch.folder.mkdir()
    fetch.path(origin).write_bytes(CONTENT[:-1] + b"?")
    assert fetch(origin).read_bytes() == CONTENT
    assert fetch.lines == [f"{fetch.path(origin)} is damaged and will be replaced"]


def test_redirect_is_followed(fetch: Fetch, origin: Origin) -> None:
    origin.location = "/elsewhere"
    assert fetch(origin).read_bytes() == CONTENT
    assert [request.status for request in origin.requests] == [302, 200]


# Resuming


def test_cut_connection_is_resumed_and_nothing_is_sent_twice(fetch: Fetch, origin: Origin) -> None:
    origin.cuts = [123_456]
    assert fetch(origin).read_bytes() == CONTENT
    first, second = origin.requests
    assert (first.range, second.range, second.if_range) == (None, "bytes=123456-", '"one"')
    assert origin.sent == len(CONTENT)
    assert fetch.pauses == [1.0]


def test_later_process_resumes_what_an_earlier_one_gave_up(fetch: Fetch, origin: Origin) -> None:
    origin.cuts = [200_000]
    with pytest.raises(BrokenOffError, match="200,000 bytes so far are kept"):
        fetch(origin, attempts=1)
    fetch.progress.clear()
    assert fetch(origin).read_bytes() == CONTENT
    assert origin.sent == len(CONTENT)
    assert fetch.progress[0] == (200_000, len(CONTENT))
    assert fetch.left() == {fetch.path(origin).name}


def test_interrupt_from_the_keyboard_keeps_what_arrived_and_frees_the_lock(
    fetch: Fetch, origin: Origin
) -> None:
    def interrupt(done: int, _total: int | None) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(origin, progress=interrupt)
    kept = Partial(fetch.path(origin)).size
    assert kept > 0
    assert fetch(origin).read_bytes() == CONTENT
    assert origin.requests[1].range == f"bytes={kept}-"


def test_last_modified_stands_in_for_a_weak_etag(fetch: Fetch, origin: Origin) -> None:
    origin.etag, origin.last_modified, origin.cuts = 'W/"one"', "Mon, 01 Jun 2026 10:00:00 GMT", [1000]
    fetch(origin)
    assert origin.requests[1].if_range == "Mon, 01 Jun 2026 10:00:00 GMT"


def test_silent_server_is_tried_again(fetch: Fetch, origin: Origin) -> None:
    origin.stalls = [100_000]
    with httpx.Client(timeout=httpx.Timeout(5.0, read=0.1)) as client:
        assert fetch(origin, client=client).read_bytes() == CONTENT
    assert [request.range for request in origin.requests] == [None, "bytes=100000-"]


def test_server_that_ignores_range_sends_the_whole_file_again(fetch: Fetch, origin: Origin) -> None:
    origin.honours_range, origin.cuts = False, [150_000]
    assert fetch(origin).read_bytes() == CONTENT
    assert [request.status for request in origin.requests] == [200, 200]


def test_other_version_on_the_server_restarts_from_nothing(fetch: Fetch, origin: Origin) -> None:
    partial_of(fetch, origin, b"old" * 1000, '"zero"')
    assert fetch(origin).read_bytes() == CONTENT
    (request,) = origin.requests
    assert (request.range, request.if_range, request.status) == ("bytes=3000-", '"zero"', 200)


def test_continuation_of_another_version_is_not_appended(fetch: Fetch, origin: Origin) -> None:
    origin.honours_if_range = False
    partial_of(fetch, origin, b"old" * 1000, '"zero"')
    assert fetch(origin).read_bytes() == CONTENT
    assert [(request.status, request.range) for request in origin.requests] == [
        (206, "bytes=3000-"),
        (200, None),
    ]
    assert fetch.lines == []  # found out by the ETag of the answer, not by the sha256 of a spliced file


def test_pieces_that_do_not_fit_are_fetched_anew_once(fetch: Fetch, origin: Origin) -> None:
    origin.etag = None  # nothing tells the versions apart but the sha256 in the end
    partial_of(fetch, origin, b"old" * 1000, None)
    assert fetch(origin).read_bytes() == CONTENT
    assert [request.range for request in origin.requests] == ["bytes=3000-", None]
    assert "do not fit together" in fetch.lines[0]


def test_partial_that_was_whole_already_costs_no_bytes(fetch: Fetch, origin: Origin) -> None:
    partial_of(fetch, origin, CONTENT, '"one"')
    assert fetch(origin).read_bytes() == CONTENT
    assert (origin.requests[0].status, origin.sent) == (416, 0)


def test_partial_that_is_longer_than_the_file_is_thrown_away(fetch: Fetch, origin: Origin) -> None:
    partial_of(fetch, origin, CONTENT + b"more", '"one"')
    assert fetch(origin).read_bytes() == CONTENT
    assert [request.status for request in origin.requests] == [416, 200]


def test_validator_that_a_crash_left_as_zeros_is_not_sent(fetch: Fetch, origin: Origin) -> None:
    partial = partial_of(fetch, origin, CONTENT[:1000], '"one"')
    partial.validator_path.write_bytes(bytes(5))
    assert fetch(origin).read_bytes() == CONTENT
    assert (origin.requests[0].range, origin.requests[0].if_range) == ("bytes=1000-", None)


# Trying again


def test_busy_server_is_tried_again_with_growing_pauses(fetch: Fetch, origin: Origin) -> None:
    origin.statuses = [503, 429, 500]
    assert fetch(origin).read_bytes() == CONTENT
    assert fetch.pauses == [1.0, 2.0, 4.0]
    assert "503" in fetch.lines[0]


def test_server_that_stays_broken_is_given_up_after_five_attempts(fetch: Fetch, origin: Origin) -> None:
    origin.statuses = [502] * 9
    with pytest.raises(BrokenOffError, match=r"5 times in a row \(the server answers 502 Bad Gateway"):
        fetch(origin)
    assert len(origin.requests) == 5
    assert fetch.pauses == [1.0, 2.0, 4.0, 8.0]


def test_connection_that_keeps_breaking_is_not_given_up_while_it_brings_something(
    fetch: Fetch, origin: Origin
) -> None:
    origin.content = random.Random(2).randbytes(4 * MEBIBYTE)
    origin.cuts = [MEBIBYTE] * 3
    assert fetch(origin, attempts=2).read_bytes() == origin.content
    assert fetch.pauses == [1.0, 1.0, 1.0]


def test_beginning_that_is_sent_again_and_again_counts_as_nothing_new(fetch: Fetch, origin: Origin) -> None:
    origin.content = random.Random(2).randbytes(3 * MEBIBYTE)
    origin.honours_range, origin.cuts = False, [2 * MEBIBYTE] * 99
    with pytest.raises(BrokenOffError):
        fetch(origin, attempts=3)
    assert len(origin.requests) == 3


# Refusing


def test_wrong_content_is_removed_and_the_error_names_both_hashes(fetch: Fetch, origin: Origin) -> None:
    url, destination = origin.url, fetch.path(origin)
    origin.content, origin.content_type = b"<html>please log in</html>", "text/html"
    with pytest.raises(DamagedWeightsError) as raised:
        download(url, destination, sha256_of(CONTENT))
    message = str(raised.value)
    assert "26 bytes of text/html" in message
    assert sha256_of(CONTENT)[:16] in message
    assert sha256_of(origin.content)[:16] in message
    assert fetch.left() == set()


def test_wrong_content_never_replaces_what_is_there(fetch: Fetch, origin: Origin) -> None:
    url, destination = origin.url, fetch.path(origin)
    fetch.folder.mkdir()
    destination.write_bytes(b"damaged, but perhaps all there is")
    origin.content = b"wrong"
    with pytest.raises(DamagedWeightsError):
        download(url, destination, sha256_of(CONTENT))
    assert destination.read_bytes() == b"damaged, but perhaps all there is"


@pytest.mark.parametrize("status", [401, 403, 404, 407, 410])
def test_refusal_of_the_server_is_final(fetch: Fetch, origin: Origin, status: int) -> None:
    origin.statuses = [status]
    with pytest.raises(RefusedError, match=f"the server answers {status}"):
        fetch(origin)
    assert (len(origin.requests), fetch.pauses) == (1, [])


def test_no_network_is_told_at_once_with_what_to_do(fetch: Fetch, origin: Origin, closed_port: int) -> None:
    url = f"http://127.0.0.1:{closed_port}/{official_name(CONTENT)}"
    with pytest.raises(UnreachableError) as raised:
        fetch(origin, url)
    for needed in (url, "HTTPS_PROXY", str(fetch.folder), "by hand"):
        assert needed in str(raised.value)
    assert fetch.pauses == []


def test_connection_refused_after_a_first_answer_is_tried_again(fetch: Fetch, origin: Origin) -> None:
    class Restarting(httpx.HTTPTransport):  # a real server cannot restart between two requests without a race
        requests = 0

        def handle_request(self, request: httpx.Request) -> httpx.Response:
            self.requests += 1
            if self.requests == 2:
                raise httpx.ConnectError("refused")
            return super().handle_request(request)

    origin.cuts = [100_000]
    with httpx.Client(transport=Restarting()) as client:
        assert fetch(origin, client=client).read_bytes() == CONTENT
    assert fetch.pauses == [1.0, 2.0]


def test_name_that_does_not_resolve_is_one_clear_error(
    fetch: Fetch, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unresolved(*_: object, **__: object) -> None:  # asking a real resolver would leave the machine
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unresolved)
    with pytest.raises(UnreachableError, match="Name or service not known"):
        fetch(origin, "https://weights.invalid/file.pth")


def test_failed_tls_is_one_clear_error(fetch: Fetch, origin: Origin) -> None:
    with pytest.raises(UnreachableError, match=r"SSL.*SSL_CERT_FILE"):
        fetch(origin, origin.url.replace("http:", "https:"))


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/file.pth", "http://127.0.0.1:port/file.pth", "no-address"])
def test_address_that_is_none_is_one_clear_error(fetch: Fetch, origin: Origin, url: str) -> None:
    with pytest.raises(UnreachableError):
        fetch(origin, url)


def test_passwords_of_a_mirror_are_never_shown(fetch: Fetch, origin: Origin) -> None:
    origin.statuses = [404]
    with pytest.raises(WeightsError) as raised:
        fetch(origin, origin.url.replace("://", "://user:secret@"))
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "provoke",
    [
        pytest.param({"statuses": [404]}, id="refused"),
        pytest.param({"statuses": [500] * 5}, id="broken"),
        pytest.param({"announced": 10**15}, id="disk full"),
    ],
)
def test_every_error_is_a_single_line(fetch: Fetch, origin: Origin, provoke: dict[str, Any]) -> None:
    for name, value in provoke.items():
        setattr(origin, name, value)
    with pytest.raises(WeightsError) as raised:
        fetch(origin)
    assert len(str(raised.value).splitlines()) == 1


# Proxies


def test_proxy_of_the_environment_is_used(
    fetch: Fetch, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{origin.port}")
    url = f"http://weights.invalid/models/{official_name(CONTENT)}"  # a host that only the proxy could know
    assert fetch(origin, url).read_bytes() == CONTENT
    assert [request.target for request in origin.requests] == [url]


def test_dead_proxy_is_told_at_once(
    fetch: Fetch, origin: Origin, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{closed_port}")
    with pytest.raises(UnreachableError, match="HTTPS_PROXY"):
        fetch(origin)
    assert origin.requests == []


def test_proxy_setting_that_cannot_be_read_is_one_clear_error(
    fetch: Fetch, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "gopher://127.0.0.1:1")
    with pytest.raises(UnreachableError, match="proxy or certificate settings"):
        fetch(origin)


# The disk


def test_disk_that_is_too_small_is_found_out_before_anything_is_written(fetch: Fetch, origin: Origin) -> None:
    origin.announced = 10**15
    with pytest.raises(DiskFullError, match=r"needs 1,000,000,000,000,000 more bytes where .* free"):
        fetch(origin)
    assert Partial(fetch.path(origin)).size == 0
    assert len(origin.requests) == 1


LIMITED = """
import resource, sys
from pathlib import Path
from model.zoo.download import download
from model.zoo.errors import WeightsError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    download(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
except WeightsError as error:
    print(type(error).__name__, error)
"""


def test_disk_that_fills_up_meanwhile_keeps_what_arrived(fetch: Fetch, origin: Origin) -> None:
    # The kernel's own refusal to let the file grow, by the limit on file sizes of a child process.
    result = subprocess.run(
        child(LIMITED, fetch, origin), cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith(f"DiskFullError {official_name(CONTENT)} needs 200,000 more bytes where ")
    assert os.strerror(errno.EFBIG) in result.stdout
    assert fetch(origin).read_bytes() == CONTENT
    assert origin.requests[1].range == "bytes=100000-"


def test_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path, origin: Origin) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(FolderError, match="choose another folder"):
        download(origin.url, tmp_path / "file" / "weights" / "net.pth", sha256_of(CONTENT))
    assert origin.requests == []


# Two at once

CHILD = """
import sys
from pathlib import Path
from model.zoo.download import download
say = lambda *words: print(*words, flush=True)
download(sys.argv[1], Path(sys.argv[2]), sys.argv[3], progress=lambda done, _: say(done), tell=say)
say("done")
"""


def child(script: str, fetch: Fetch, origin: Origin) -> list[str]:
    return [sys.executable, "-c", script, origin.url, str(fetch.path(origin)), sha256_of(origin.content)]


def test_second_process_waits_and_uses_the_file_of_the_first(fetch: Fetch, origin: Origin) -> None:
    origin.stalls = [100_000]
    arguments = child(CHILD, fetch, origin)
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True) as first:
        assert origin.stalled.wait(30)
        with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True) as second:
            assert second.stdout is not None
            assert "another process fetches" in second.stdout.readline()
            origin.gate.set()
            rest = second.stdout.read()
        assert first.stdout is not None
        assert first.stdout.read().endswith("done\n")
    assert (first.returncode, second.returncode, rest) == (0, 0, "done\n")
    assert (len(origin.requests), origin.sent) == (1, len(CONTENT))
    assert fetch.path(origin).read_bytes() == CONTENT


def test_killed_process_leaves_a_partial_that_the_next_one_resumes(fetch: Fetch, origin: Origin) -> None:
    origin.stalls = [100_000]
    arguments = child(CHILD, fetch, origin)
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        while first.stdout.readline() != "100000\n":
            assert first.poll() is None
        first.kill()
    assert fetch(origin).read_bytes() == CONTENT
    assert origin.requests[1].range == "bytes=100000-"


def test_every_error_has_its_place_in_the_tree_of_the_docstring() -> None:
    assert errors.__doc__ is not None
    for error in WeightsError.__subclasses__():
        assert f" {error.__name__} " in errors.__doc__
