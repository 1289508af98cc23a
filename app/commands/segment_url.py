"""`maskserve segment --url`: a running service segments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from maskserve import Client

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class RemoteService:
    """The service to ask, and how."""

    url: str
    api_key_file: Path | None
    # Seconds that one image may take, over all attempts.
    deadline: float
    # Requests that are open at the same time.
    concurrency: int

    def open_client(self) -> Client:
        """A client for the service. Raises OSError if the file of the API key cannot be read."""
        key = None
        if self.api_key_file is not None:
            key = self.api_key_file.read_text(encoding="ascii").partition("\n")[0].strip()
        return Client(self.url, api_key=key, deadline=self.deadline, concurrency=self.concurrency)
