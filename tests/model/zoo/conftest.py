"""A good model file, and a server to download from."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

import pytest

from model.zoo import model_file
from tests.model.zoo.models import DESCRIPTION, network
from tests.model.zoo.origin import Fetch, Handler, Origin, OriginServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good file; tests that damage it take a copy."""
    path: Path = tmp_path_factory.mktemp("zoo") / "whole.safetensors"
    model_file.save(path, network(), DESCRIPTION, half=True)
    return path


@pytest.fixture(autouse=True)
def no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def origin() -> Iterator[Origin]:
    with OriginServer(("127.0.0.1", 0), Handler) as server:
        server.origin = Origin(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.origin
        server.origin.gate.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def fetch(tmp_path: Path) -> Fetch:
    return Fetch(tmp_path / "weights")
