"""One file from a URL into a folder: resumed, verified, in place all at once. It knows nothing of models."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx

from model.zoo.errors import (
    BrokenOffError,
    DamagedWeightsError,
    DiskFullError,
    FolderError,
    RefusedError,
    UnreachableError,
    WeightsError,
)
from model.zoo.partial import Partial, digest, lock_file, shorten

if TYPE_CHECKING:
    from pathlib import Path

# (bytes so far, bytes in the end if the server says).
Progress = Callable[[int, int | None], None]
# Takes one line for a person or a log: waiting, trying again, starting over.
Tell = Callable[[str], None]

# Failures in a row that brought less than MEBIBYTE; the pauses between them are 1, 2, 4 and 8 s.
ATTEMPTS = 5
MEBIBYTE = 1 << 20
# Seconds; a server that is silent for longer is tried again.
TIMEOUT = httpx.Timeout(10.0, read=30.0)
# Disk full, quota used up, process's limit on file size.
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# RFC 9110, section 14.4.
CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")
# And all from 500: the server may answer otherwise in a moment.
PASSING_STATUS = {408, 429}
PASSING = (httpx.NetworkError, httpx.TimeoutException, httpx.RemoteProtocolError, httpx.ProxyError)
NO_CONNECTION = (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError)


def download(
    url: str,
    destination: Path,
    sha256: str,
    *,
    progress: Progress = lambda _done, _total: None,
    tell: Tell = lambda _line: None,
    client: httpx.Client | None = None,
    attempts: int = ATTEMPTS,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Make `destination` the file at `url` whose sha256 begins with the hexadecimal digits `sha256`.

    Nothing is sent if it is there already. A partial download is continued, whichever process began it; one
    process downloads at a time, the others wait and use its file. The environment says which proxy to take
    (HTTPS_PROXY, HTTP_PROXY, NO_PROXY) and which further certificates to trust (SSL_CERT_FILE).

    Args:
        url: of the file.
        destination: where it belongs.
        sha256: hexadecimal, or the beginning of it.
        progress: called with the bytes so far and the bytes in the end (None if unknown).
        tell: called with a line whenever it takes longer, which says why.
        client: used instead of a new one, and left open.
        attempts: failures in a row that brought nothing new.
        sleep: takes the seconds between them.

    Raises a subclass of WeightsError.
    """
    partial = Partial(destination)
    transfer = None
    try:
        if destination.exists() and digest(destination).startswith(sha256):
            return
        destination.parent.mkdir(parents=True, exist_ok=True)
        with lock_file(
            destination, lambda: tell(f"another process fetches {destination.name}; waiting for it")
        ):
            if destination.exists():
                if digest(destination).startswith(sha256):
                    return
                tell(f"{destination} is damaged and will be replaced")
            with contextlib.nullcontext(client) if client else new_client() as session:
                transfer = Transfer(session, url, partial, progress, tell, attempts, sleep)
                found = transfer.run()
                if transfer.continued and not found.startswith(sha256):
                    # Where a server gives no validator, the pieces can be of different versions.
                    tell(f"the pieces of {destination.name} do not fit together; starting over")
                    partial.discard()
                    found = transfer.run()
            if not found.startswith(sha256):
                size = partial.size
                partial.discard()
                raise DamagedWeightsError(
                    f"{without_credentials(url)} brought {size:,} bytes of {transfer.content_type} with the sha256 "
                    f"{shorten(found)} where {shorten(sha256)} was expected, and nothing of it was kept: "
                    f"look whether a proxy answers in the server's place, or {manual_fix(destination)}"
                )
            partial.finish()
    # The folder's: httpx's errors are no OSErrors.
    except OSError as error:
        raise folder_error(error, partial, transfer.total if transfer else None) from error


@dataclass
class Transfer:
    """The requests that bring one partial file to its end."""

    session: httpx.Client
    url: str
    partial: Partial
    progress: Progress
    tell: Tell
    attempts: int
    sleep: Callable[[float], None]
    # Bytes in the end, as the server last said.
    total: int | None = None
    content_type: str = "unknown type"
    # Whether the last answer continued what an earlier one began.
    continued: bool = False

    def run(self) -> str:
        """Receive until the file is whole, and return its sha256."""
        failures = 0
        # The furthest any attempt came: what is received again is no progress.
        reached = self.partial.size
        connected = False
        while True:
            try:
                self.receive()
                return digest(self.partial.path)
            except httpx.HTTPStatusError as error:
                status = error.response.status_code
                reason = f"the server answers {status} {error.response.reason_phrase}".strip()
                if status not in PASSING_STATUS and status < 500:
                    raise RefusedError(
                        f"{without_credentials(self.url)} cannot be fetched ({reason}): look at the address and at the "
                        f"proxy, or {manual_fix(self.partial.destination)}"
                    ) from error
                connected = True
            except (httpx.RequestError, httpx.InvalidURL) as error:
                reason = one_line(error)
                # Before the first answer, waiting heals neither a missing network nor a wrong proxy setting.
                connected = connected or not isinstance(error, NO_CONNECTION)
                if not connected or not isinstance(error, PASSING):
                    raise UnreachableError(
                        f"{without_credentials(self.url)} cannot be reached ({reason}): behind a proxy set "
                        "HTTPS_PROXY, and SSL_CERT_FILE if it has a certificate of its own, or "
                        f"{manual_fix(self.partial.destination)}"
                    ) from error
            size = self.partial.size
            failures = 1 if size >= reached + MEBIBYTE else failures + 1
            reached = max(reached, size)
            if failures >= self.attempts:
                raise BrokenOffError(
                    f"{without_credentials(self.url)} failed {failures} times in a row ({reason}): the {size:,} bytes "
                    "so far are kept and will be continued, so try again later, or "
                    f"{manual_fix(self.partial.destination)}"
                )
            pause = 2.0 ** (failures - 1)
            self.tell(f"{reason}; trying again from byte {size:,} in {pause:g} s")
            self.sleep(pause)

    def receive(self) -> None:
        """Ask for what the partial file lacks and append it; raises httpx's errors if not all of it came."""
        partial = self.partial
        offset = partial.size
        # Offsets and the sha256 count the file's own bytes.
        headers = {"Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if partial.validator is not None:
                headers["If-Range"] = partial.validator
        with self.session.stream("GET", self.url, headers=headers) as response:
            start, total = content_range(response)
            validator = fit_validator(response)
            partial_answer = response.status_code == httpx.codes.PARTIAL_CONTENT
            unsatisfiable = response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE
            other_version = None not in (validator, partial.validator) and validator != partial.validator
            self.continued = offset > 0
            if offset and unsatisfiable and total == offset:
                # It was whole already.
                return
            if offset and partial_answer and start == offset and not other_version:
                self.append(response, total)
                return
            if not (offset and (partial_answer or unsatisfiable)):
                response.raise_for_status()
                self.continued = False
                partial.restart(validator)
                length = response.headers.get("Content-Length", "")
                self.append(response, int(length) if length.isdecimal() else None)
                return
        # Neither what is missing nor the whole file: ask for the whole file.
        partial.discard()
        self.receive()

    def append(self, response: httpx.Response, total: int | None) -> None:
        """Write the answer's body to the end of the partial file, if there is room for all of it."""
        done = self.partial.size
        self.total = total
        self.content_type = response.headers.get("Content-Type", self.content_type)
        if total is not None and total - done > shutil.disk_usage(self.partial.path.parent).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with self.partial.path.open("ab") as file:
            self.progress(done, total)
            # As it arrives, and flushed each time, so that nothing that came before a cut is sent again.
            for block in response.iter_raw():
                file.write(block)
                file.flush()
                done += len(block)
                self.progress(done, total)


def new_client() -> httpx.Client:
    """A client that follows the environment's proxy and certificate settings."""
    try:
        return httpx.Client(follow_redirects=True, timeout=TIMEOUT)
    except (ValueError, ImportError, OSError, httpx.InvalidURL) as error:
        raise UnreachableError(
            f"the environment's proxy or certificate settings cannot be used ({one_line(error)}): look at "
            "HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY and SSL_CERT_FILE"
        ) from error


def content_range(response: httpx.Response) -> tuple[int | None, int | None]:
    """(first byte of this answer, bytes of the whole file), each None where the server does not say."""
    match = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if match is None:
        return None, None
    start, total = match.groups()
    return (None if start is None else int(start)), (None if total == "*" else int(total))


def fit_validator(response: httpx.Response) -> str | None:
    """What If-Range may carry for this answer: no weak ETag (RFC 9110, section 13.1.5), and ASCII only."""
    etag: str = response.headers.get("ETag", "")
    validator: str = etag if etag.startswith('"') else response.headers.get("Last-Modified", "")
    return validator if validator and validator.isascii() else None


def folder_error(error: OSError, partial: Partial, total: int | None) -> WeightsError:
    """The file system's error as one that says what to do.

    Args:
        error: of the file system.
        partial: the file that was to be written.
        total: bytes of the whole file, if known.
    """
    folder = partial.destination.parent
    if error.errno not in NO_ROOM:
        return FolderError(f"{folder} cannot be used ({error.strerror or error}): choose another folder")
    free = shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.exists())).free
    lacking = "more" if total is None else f"{total - partial.size:,} more"
    kept = f"; the {partial.size:,} bytes so far are kept" if partial.size else ""
    return DiskFullError(
        f"{partial.destination.name} needs {lacking} bytes where {folder} has {free:,} free "
        f"({error.strerror}): make room and try again, or choose another folder{kept}"
    )


def manual_fix(destination: Path) -> str:
    """What helps whatever the network does."""
    return f"put the file into {destination.parent} by hand"


def one_line(error: Exception) -> str:
    """What another library says of its error, as part of a sentence."""
    return " ".join(str(error).split()) or type(error).__name__


def without_credentials(url: str) -> str:
    """The URL without the user name and password that a mirror's may have."""
    return re.sub(r"(?<=//)[^/@]*@", "", url)
