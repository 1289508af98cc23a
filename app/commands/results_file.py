"""The results of many images in one file, in the format of the tool that reads them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from maskserve.export import coco_dataset, coco_results, cvat, image_ids, label_studio

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from app.commands.label_ids import LabelIds
    from maskserve import Result

FORMATS = ("coco", "coco-dataset", "cvat", "label-studio")
# Those that have no place for an instance of a box alone.
SHAPED = ("cvat", "label-studio")


class CannotWrite(ValueError):  # noqa: N818 - says what happened
    """The answers do not fit the format. The message is for the user."""


@dataclass(frozen=True, slots=True)
class ResultsFile:
    """A file of results that is written completely or not at all."""

    path: Path
    # One of FORMATS.
    file_format: str = "coco"
    # Label file whose image and category ids the results get.
    ids: Path | None = None

    @property
    def needs_categories(self) -> bool:
        """Whether the file has the model's categories."""
        return self.file_format != "coco"

    def check(self, options: Mapping[str, Any]) -> None:
        """Raise ValueError, with a message for the user, if this cannot be written. options: of the requests."""
        if self.file_format not in FORMATS:
            raise ValueError(f"--format must be one of {', '.join(FORMATS)}, not {self.file_format}")
        if self.file_format in SHAPED and options.get("masks") == options.get("keypoints") == "none":
            raise ValueError(f"--format {self.file_format} needs masks or keypoints")
        if self.ids is not None and self.file_format != "coco":
            raise ValueError("--ids needs --out, in the format coco")

    def check_answer(self, answer: Result) -> None:
        """Raise CannotWrite if an answer has instances that cannot be written."""
        if self.file_format in SHAPED and not all(
            instance.has_mask or instance.record.get("keypoints") for instance in answer.instances
        ):
            raise CannotWrite(
                f"--format {self.file_format} needs masks or keypoints, and the model's answers have neither"
            )

    def write(
        self,
        answers: Mapping[Path, Result],
        files: Mapping[Path, Path],
        categories: list[dict[str, Any]],
        labels: LabelIds | None = None,
    ) -> None:
        """Write all results. The format coco takes one answer after the other into memory, the others all.

        Args:
            answers: by image.
            files: image → the folder that its name in the results is relative to.
            categories: of the model, for all formats but "coco".
            labels: where ids of images and categories come from; by default they are counted, and the model's.

        Raises CannotWrite for answers that do not fit the format.
        """
        names = {path: path.relative_to(files[path]).as_posix() for path in answers}
        named = ((names[path], self._check(result)) for path, result in answers.items())
        ids: Mapping[str, Any] = image_ids(list(names.values()))
        match self.file_format:
            case "coco":
                if labels is not None:
                    ids = {names[path]: number for path, number in labels.image_ids(answers).items()}
                records = (record for item in named for record in coco_results([item], ids))
                pieces = as_json_list(records if labels is None else labels.rename(records))
            case "coco-dataset":
                pieces = iter([orjson.dumps(coco_dataset(named, ids, categories))])
            case "cvat":
                pieces = iter([cvat(named, categories).encode()])
            case _:
                pieces = iter([orjson.dumps(label_studio(named, categories=categories))])
        temporary = self.path.with_name(f"{self.path.name}.tmp")
        with temporary.open("wb") as file:
            file.writelines(pieces)
            file.flush()
            # The journal is deleted after it.
            os.fsync(file.fileno())
        temporary.replace(self.path)

    def _check(self, answer: Result) -> Result:
        self.check_answer(answer)
        return answer


def as_json_list(records: Iterable[Any]) -> Iterator[bytes]:
    """The JSON of a list, piece by piece."""
    before = b"["
    for record in records:
        yield before + orjson.dumps(record)
        before = b","
    yield b"[]" if before == b"[" else b"]"
