"""The origins of web pages that may read this service's answers (CORS), as the setting cors_origins lists them."""

from __future__ import annotations

import re

# RFC 6454, section 6.2: scheme, host and port, and nothing behind them.
ORIGIN = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9.-]+)(:\d{1,5})?", re.ASCII)


def parse_origins(text: str) -> list[str]:
    """The origins between commas, as browsers send them. Raises ValueError for anything else."""
    origins = [item.strip().lower() for item in text.split(",") if item.strip()]
    for origin in origins:
        if origin != "*" and not ORIGIN.fullmatch(origin):
            raise ValueError(
                f'"{origin}" is no origin: write * or scheme, host and, where it is not the usual one, the port, '
                "as in https://app.example.com or http://localhost:3000, without a path"
            )
    return origins


def check_origins(text: str) -> str:
    """The text itself. Raises ValueError where `parse_origins` does."""
    parse_origins(text)
    return text
