"""Where the service's code lies, and whether the extra `serve` that it needs is installed.

In a checkout `app/` and `model/` are importable as they are. The wheel keeps them in `maskserve/_server/`, so that
it claims no other name than `maskserve` where it is installed; what uses them makes them importable first.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

SERVER = Path(__file__).parent / "_server"
# Packages of the extra `serve`; the others come with them.
REQUIRED = ("fastapi", "torch", "torchvision", "typer", "uvicorn")


class MissingExtraError(ImportError):
    """The extra `serve` is not installed."""


def make_importable() -> None:
    """Make `app` and `model` importable, here and in the Python processes that this one starts.

    Raises MissingExtraError, and ImportError where a module `model` of somebody else is loaded already.
    """
    missing = [name for name in REQUIRED if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"{missing[0]} is not installed, which the extra `serve` brings: pip install '.[serve]' in the checkout"
        )
    # In a checkout both can be imported already.
    if not SERVER.is_dir() or str(SERVER) in sys.path:
        return
    for name in ("app", "model"):
        if name in sys.modules:
            raise ImportError(
                f"a module called {name!r} is loaded already, from {sys.modules[name].__file__}. maskserve's engine "
                f"has parts of that name: import maskserve.engine first, or call the engine in another process"
            )
    sys.path.insert(0, str(SERVER))
    inherited = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(SERVER), *([inherited] if inherited else [])])
