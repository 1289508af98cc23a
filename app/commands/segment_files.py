"""`maskserve segment` without --url: an engine in this process segments, and answers as the service does."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Unpack

import typer

from app.api import query, responses
from app.commands.segment import CannotStart
from app.commands.terminal import BAD_FILE, BAD_USAGE
from app.problems import InvalidParameter
from app.runtime.loading import LOAD_ERRORS, load_engine
from maskserve import AnswerError, Result
from model.errors import EngineError, OutOfDeviceMemory
from model.images.decode import ImageError, decode
from model.inference.tiled import segment_tiled
from model.inference.tiling import TilingError
from model.messages import first_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from app.commands.segmenter import Outcome
    from app.settings import Settings
    from maskserve.requests import SegmentOptions
    from model.inference.engine import Engine


class LocalSegmenter:
    """An engine with the interface of a client."""

    def __init__(self, engine: Engine, params: query.SegmentParams) -> None:
        self.engine, self.params = engine, params

    def segment_many(self, images: Iterable[Path], **_options: Unpack[SegmentOptions]) -> Iterator[Outcome]:
        """The outcome for each image, one after the other. The options are those that `params` was made of."""
        for path in images:
            try:
                yield self._segment(path)
            except OSError as error:
                yield error
            except (ImageError, TilingError) as error:
                yield AnswerError(str(error))
            # The failure of this image alone, as the service's worker takes it, unless the device is lost.
            except (EngineError, OutOfDeviceMemory, RuntimeError) as error:
                yield AnswerError(f"the model failed on it: {first_line(error)}")

    def model(self) -> Mapping[str, Any]:
        """Which model it is, with its categories and keypoints."""
        model = self.engine.model
        return {
            "name": model.name,
            "sha256": model.sha256,
            "categories": responses.describe_categories(model),
            "keypoints": responses.describe_keypoints(model),
        }

    def _segment(self, path: Path) -> Result:
        image = decode(path.read_bytes())
        start = time.perf_counter()
        if self.params.tiling is None:
            (instances,) = self.engine.segment([image], [self.params])
        else:
            instances = segment_tiled(self.engine, image, self.params, self.params.tiling)
        milliseconds = (time.perf_counter() - start) * 1000
        document = responses.document(self.engine.model, instances, self.params.mask_format)
        return Result.from_document({"id": str(path), **document}, {"total": milliseconds})


def load_segmenter(
    settings: Settings, parameters: Mapping[str, Any]
) -> AbstractContextManager[LocalSegmenter]:
    """Load the model of the settings. parameters: of POST /segment, None where not given. Raises CannotStart."""
    try:
        engine = load_engine(settings)
        given = {name: value for name, value in parameters.items() if value is not None}
        params = query.parse(given, engine.model)
    except LOAD_ERRORS as error:
        raise CannotStart(str(error), BAD_FILE) from error
    except InvalidParameter as problem:
        raise CannotStart(problem.detail, BAD_USAGE) from problem
    if engine.model.notice:
        typer.echo(engine.model.notice, err=True)
    return nullcontext(LocalSegmenter(engine, params))
