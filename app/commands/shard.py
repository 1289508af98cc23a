"""One of the parts that a job of `maskserve segment` is divided into, by the names of the images."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# Bytes of the digest that are used; they have far more values than there may be shards.
DIGEST_BYTES = 8


@dataclass(frozen=True, slots=True)
class Shard:
    """Which images are segmented: those whose name falls on this number. The same on every machine."""

    # from 1 on
    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From "3/16". Raises ValueError."""
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError(
                f"a shard is its number and how many there are, from 1/16 to 16/16, not {text!r}"
            )
        return cls(int(found[1]), int(found[2]))

    def has(self, name: str) -> bool:
        """Whether an image belongs to this shard. name: relative to its folder, with slashes."""
        digest = hashlib.sha256(os.fsencode(name)).digest()[:DIGEST_BYTES]
        return int.from_bytes(digest) % self.count == self.number - 1

    def file(self, out: Path) -> Path:
        """The file of this shard's answers. out: the file of all results, which the shards are merged into."""
        return out.with_name(f"{out.stem}.{self.number}-of-{self.count}.jsonl")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def name_images(files: Mapping[Path, Path]) -> dict[Path, str]:
    """Image → its name below its folder. Raises ValueError if two have the same. files: image → its folder."""
    names = {path: path.relative_to(folder).as_posix() for path, folder in files.items()}
    paths: dict[str, Path] = {}
    for path, name in names.items():
        if name in paths:
            raise ValueError(
                f"{paths[name]} and {path} would have the same name in the results; name the folder that has both"
            )
        paths[name] = path
    return names


def find_shards(out: Path) -> dict[Shard, Path]:
    """The shards whose files are complete. out: the file of all results."""
    found = {}
    for file in out.parent.iterdir():
        numbers = file.name.removeprefix(f"{out.stem}.").removesuffix(".jsonl").replace("-of-", "/")
        try:
            shard = Shard.parse(numbers)
        except ValueError:
            continue
        if file == shard.file(out):
            found[shard] = file
    return found
