"""Options that make a training run quick, and how they are typed."""

from __future__ import annotations

from typing import Any

QUICK = {"steps": 2, "batch_size": 2, "workers": 0, "precision": "float32", "sizes": ["64"], "warmup": 1}


def as_arguments(options: dict[str, Any]) -> list[str]:
    """Options of run_training as command-line arguments."""
    words: list[str] = []
    for name, value in options.items():
        for item in value if isinstance(value, list) else [value]:
            words += [f"--{name.replace('_', '-')}", str(item)]
    return words
