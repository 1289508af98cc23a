"""The process around the application, where it ends before it serves."""

from __future__ import annotations

import pytest

from app import server
from app.settings import Settings


@pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".example"])
def test_a_host_that_cannot_be_a_name_is_one_clear_error(
    host: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def end(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(server.logs, "configure_logging", lambda _: None)
    monkeypatch.setattr(server, "end_process", end)
    with pytest.raises(SystemExit) as ended:
        server.serve(Settings(host=host))
    assert ended.value.code == 1
    assert "MASKSERVE_HOST must be an IP address, or a name" in caplog.text
    assert "codec" not in caplog.text
