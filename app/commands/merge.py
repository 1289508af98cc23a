"""`maskserve merge`: the answers of all shards in one file, as if one command had segmented all images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from app.commands.journal import Answers, entries, model_label
from app.commands.label_ids import LabelIds
from app.commands.shard import Shard, find_shards
from app.commands.terminal import BAD_FILE, BAD_USAGE, complain, file_error
from maskserve import MaskserveError
from model.data import DatasetError

if TYPE_CHECKING:
    from collections.abc import Collection

    from app.commands.results_file import ResultsFile

# Numbers of missing shards that a message names.
NAMED = 8


class Shards:
    """The answers in the files of all shards of one job."""

    def __init__(self, out: Path) -> None:
        """Read where the answers are. out: the file of all results.

        Raises:
            ValueError: shards are missing, or do not belong together.
            OSError: a file cannot be read.
        """
        found = find_shards(out)
        check_complete(found, out)
        self.options: dict[str, Any] = {}
        self.categories: list[dict[str, Any]] = []
        # Image → why it has no answer.
        self.failures: dict[str, str] = {}
        # Shards of earlier versions do not say it.
        self._model: dict[str, str | None] = {}
        self._places: dict[str, tuple[Path, int]] = {}
        for shard in sorted(found, key=lambda shard: shard.number):
            self._read(shard, found[shard])

    def _read(self, shard: Shard, file: Path) -> None:
        for offset, entry in entries(file):
            if "options" in entry:
                if entry.get("shard") != str(shard):
                    raise ValueError(f"{file} has the answers of shard {entry.get('shard')}")
                self.options = self.options or entry["options"]
                if self.options != entry["options"]:
                    raise ValueError(f"{file} was made with other options than the shards before it")
            elif "model" in entry:
                self._model = self._model or entry["model"]
                if self._model != entry["model"]:
                    raise ValueError(
                        f"{file} was made with another model, {model_label(entry['model'])}, than the shards "
                        f"before it, {model_label(self._model)}"
                    )
            elif "categories" in entry:
                self.categories = self.categories or entry["categories"]
                if self.categories != entry["categories"]:
                    raise ValueError(f"{file} was made with another model than the shards before it")
            elif "image" not in entry:
                raise ValueError(f"{file} has a line that is no answer")
            elif not shard.has(entry["image"]):
                raise ValueError(f"{file}: {entry['image']} does not belong to this shard")
            elif "answer" in entry:
                self._places[entry["image"]] = (file, offset)
                self.failures.pop(entry["image"], None)
            else:
                self._places.pop(entry["image"], None)
                self.failures[entry["image"]] = entry["error"]

    def answers(self) -> Answers[Path]:
        """The answers by image, in the order in which one command finds the images of a folder."""
        paths = sorted(map(Path, self._places))
        return Answers({path: self._places[path.as_posix()] for path in paths})


def check_complete(found: Collection[Shard], out: Path) -> None:
    """Raise ValueError unless these are all shards of one job."""
    counts = sorted({shard.count for shard in found})
    if not counts:
        raise ValueError(
            f"{Shard(1, 16).file(out)} and the like are not there: no shard of {out} is complete"
        )
    if len(counts) > 1:
        raise ValueError(
            f"beside {out} are shards of several jobs, in {' and in '.join(map(str, counts))} parts; "
            "delete those of one"
        )
    [count] = counts
    missing = sorted({*range(1, count + 1)} - {shard.number for shard in found})
    if missing:
        named = ", ".join(map(str, missing[:NAMED])) + (", …" if len(missing) > NAMED else "")
        raise ValueError(f"{len(missing)} of {count} shards of {out} are not complete: {named}")


def merge(results: ResultsFile) -> int:
    """Write the file of all results; return the exit code. The files of the shards stay."""
    try:
        shards = Shards(results.path)
        results.check(shards.options)
        labels = None if results.ids is None else LabelIds.read(results.ids)
        answers = shards.answers()
        if labels is not None and (missing := labels.describe_missing(shards.categories)) is not None:
            typer.echo(f"maskserve: {missing}", err=True)
        results.write(answers, dict.fromkeys(answers, Path()), shards.categories, labels)
    except (ValueError, DatasetError) as error:
        return complain(str(error), BAD_USAGE)
    except MaskserveError as error:
        return complain(str(error), BAD_FILE)
    except OSError as error:
        return complain(file_error(error), BAD_FILE)
    for image, reason in sorted(shards.failures.items()):
        typer.echo(f"maskserve: {image}: {reason}", err=True)
    typer.echo(f"maskserve: the results of {len(answers)} images are in {results.path}", err=True)
    if shards.failures:
        count = len(answers) + len(shards.failures)
        return complain(f"{len(shards.failures)} of {count} images have no result", BAD_FILE)
    return 0
