"""The table as bars: photos a second of each peer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.peers.results import CLIENTS
from bench.peers.table import rate

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bench.peers.results import Result

OURS, OTHERS = "#1b6ca8", "#a9b4c0"
# Inches, for each bar and around them.
BAR, FRAME, WIDTH = 0.3, 1.2, 8.0
# Of a reason that stands where a bar would.
MOST_CHARACTERS = 70


def draw(path: Path, results: Sequence[Result], title: str) -> None:
    """A panel for engines, one for servers; three bars for each server, one for each number of clients."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    panels = [
        (heading, [result for result in results if result.peer.is_server is server], clients)
        for heading, server, clients in (("engines", False, (1,)), ("servers", True, CLIENTS))
    ]
    panels = [panel for panel in panels if panel[1]]
    heights = [len(rows) * max(1, 0.6 * len(clients)) * BAR + FRAME for _, rows, clients in panels]
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(WIDTH, sum(heights)), squeeze=False, layout="constrained",
        gridspec_kw={"height_ratios": heights},
    )  # fmt: skip
    for axis, (heading, rows, clients) in zip(axes[:, 0], panels, strict=True):
        bars(axis, rows, clients)
        axis.set(title=heading if clients == (1,) else f"{heading}, {', '.join(map(str, clients))} clients")
    axes[-1, 0].set(xlabel="photos a second")
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def bars(axis, rows: Sequence[Result], clients: Sequence[int]) -> None:
    """The first row on top. The more clients, the darker."""
    thick = 0.8 / len(clients)
    for place, result in enumerate(rows):
        if result.failure:
            short = result.failure[:MOST_CHARACTERS] + "…" * (len(result.failure) > MOST_CHARACTERS)
            axis.text(0, place, f" fails: {short}", va="center", fontsize=7, color="#a03030")
            continue
        for n, count in enumerate(clients):
            value, height = result.median("rate", count), place + (n - (len(clients) - 1) / 2) * thick
            color, strength = (
                OURS if result.peer.is_ours else OTHERS,
                (n + 1 + len(clients)) / (2 * len(clients)),
            )
            axis.barh(height, value, thick * 0.9, color=color, alpha=strength)
            axis.text(value, height, f" {rate(value)}", va="center", fontsize=7)
    axis.set_yticks(range(len(rows)), [f"{r.peer.title}, {r.peer.precision}" for r in rows], fontsize=8)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.margins(x=0.12)
    axis.spines[["top", "right"]].set_visible(False)
