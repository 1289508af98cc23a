"""The table as Markdown: a row for each peer, and ours against the best other one of each precision."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from bench.peers.results import CLIENTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.peers.results import Result

ENGINE_HEADINGS = ("engine", "precision", "photos/s", "p50 ms", "p99 ms", "memory MB", "answer", "wrong")
SERVER_HEADINGS = (
    "server", "precision", *(f"photos/s, {clients}" for clients in CLIENTS),
    *(f"p50 / p99 ms, {clients}" for clients in CLIENTS), "memory MB", "answer", "wrong",
)  # fmt: skip


def tables(results: Sequence[Result]) -> str:
    """Both tables, each with its comparisons below."""
    parts = []
    engines = [result for result in results if not result.peer.is_server]
    servers = [result for result in results if result.peer.is_server]
    if engines:
        parts += [
            markdown(ENGINE_HEADINGS, [engine_row(result) for result in engines]),
            comparisons(engines, 1),
        ]
    if servers:
        parts.append(markdown(SERVER_HEADINGS, [server_row(result) for result in servers]))
        parts += [comparisons(servers, clients) for clients in CLIENTS]
    return "\n\n".join(part for part in parts if part)


def engine_row(result: Result) -> list[str]:
    times = (
        [milliseconds(result.median("p50")), milliseconds(result.median("p99"))] if measured(result) else []
    )
    return row(result, [rate(result.median("rate")), *times] if measured(result) else [], 3)


def server_row(result: Result) -> list[str]:
    if not measured(result):
        return row(result, [], 2 * len(CLIENTS))
    rates = [rate(result.median("rate", clients)) for clients in CLIENTS]
    times = [
        f"{milliseconds(result.median('p50', clients))} / {milliseconds(result.median('p99', clients))}"
        for clients in CLIENTS
    ]
    return row(result, [*rates, *times], 2 * len(CLIENTS))


def row(result: Result, figures: list[str], width: int) -> list[str]:
    """The cells that engines and servers share around their figures, or the reason why there are none."""
    first = [result.peer.title, result.peer.precision]
    if not figures:
        return [*first, *["–"] * width, "–", f"fails: {result.failure}", "–"]
    return [
        *first,
        *figures,
        f"{result.peak_bytes / 1e6:.0f}",
        str(result.agreement),
        str(result.total("wrong")),
    ]


def measured(result: Result) -> bool:
    return not result.failure


def rate(value: float) -> str:
    """Three digits that count."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f}" if seconds >= 0.1 else f"{1000 * seconds:.1f}"


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """With columns of equal width, to be read as it is too."""
    lines = [list(headings), *([cell.replace("|", "/") for cell in cells] for cells in rows)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(headings))]
    texts = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    texts.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(texts)


def comparisons(results: Sequence[Result], clients: int) -> str:
    """A line for each precision of ours: against the fastest other of the same, or of float32 where there is none."""
    lines = []
    for ours in results:
        if not ours.peer.is_ours or not measured(ours):
            continue
        others = [result for result in results if not result.peer.is_ours and measured(result)]
        same = [result for result in others if result.peer.precision == ours.peer.precision] or others
        if same:
            best = max(same, key=lambda result: result.median("rate", clients))
            lines.append("- " + comparison(ours, best, clients))
    return "\n".join(lines)


def comparison(ours: Result, other: Result, clients: int) -> str:
    """The ratio of what both did in the same rounds."""
    ratios = sorted(a / b for a, b in zip(ours.rates(clients), other.rates(clients), strict=True))
    names = [f"{result.peer.title} {result.peer.precision}" for result in (ours, other)]
    asked = f", {clients} client{'s' * (clients > 1)}" if ours.peer.is_server else ""
    rounds = f"{len(ratios)} round{'s' * (len(ratios) > 1)}"
    found = f"{median(ratios):.2f} × ({ratios[0]:.2f} to {ratios[-1]:.2f} in {rounds})"
    return f"{names[0]} against {names[1]}{asked}: {found}; its answer: {other.agreement}"
