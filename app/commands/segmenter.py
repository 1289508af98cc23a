"""What segments the images of `maskserve segment`, and what comes of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, Unpack

from maskserve import MaskserveError, Result

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from maskserve.requests import SegmentOptions

Outcome = Result | MaskserveError | OSError


class Segmenter(Protocol):
    """What finds the instances: a client of a service, or an engine in this process."""

    def segment_many(self, images: Iterable[Path], **options: Unpack[SegmentOptions]) -> Iterator[Outcome]:
        """The outcome for each image, in their order."""

    def model(self) -> Mapping[str, Any]:
        """Which model answers, with its categories."""
