"""The command `maskserve`, and `python -m maskserve`: the same."""

from __future__ import annotations

import sys

from maskserve.server import MissingExtraError, make_importable


def main() -> None:
    """Run the command line. Without the extra `serve`, say in one line how to get it."""
    try:
        make_importable()
    except MissingExtraError as error:
        sys.exit(f"maskserve: the command needs more than the client; {error}")
    from app.cli.main import main as run  # noqa: PLC0415 - not importable before

    run()


if __name__ == "__main__":
    main()
