"""The catalogue of weights: those that come with maskserve, and those that can be downloaded.

Also the folder that downloads lie in, and whether they are genuine. The transfer itself is download.py's.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from model.messages import did_you_mean
from model.zoo.errors import DamagedWeightsError, FolderError, MissingWeightsError, UnknownWeightsError
from model.zoo.partial import Partial, digest, shorten

if TYPE_CHECKING:
    from collections.abc import Mapping

    import httpx

    from model.zoo.download import Progress, Tell

State = Literal["verified", "partial", "missing", "damaged"]

PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Bundled:
    """A model that comes with maskserve. Its AP is in the file itself, see model_file.py."""

    name: str
    # As the object of a sentence.
    finds: str
    # That it was trained on.
    dataset: str
    # Of the file as it was committed, hexadecimal.
    sha256: str
    # As Model has it, for a file that was written before.
    object_extent: float = 0.0

    @property
    def path(self) -> Path:
        """Where the file lies."""
        return bundled_folder() / f"{self.name}.safetensors"


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights that can be downloaded: an entry of the catalogue."""

    name: str
    url: str
    # Bytes.
    size: int
    # Of the file, hexadecimal; begins with the hash in the official file name.
    sha256: str
    parameters: int
    # What the network was trained on and names its categories by.
    dataset: str
    # Published AP@[.5:.95] on the dataset's val2017, percent. None: it has no such branch.
    box_ap: float
    mask_ap: float | None
    # By the similarity of keypoints (OKS).
    keypoint_ap: float | None = None

    @property
    def file(self) -> str:
        """The official file name."""
        return self.url.rpartition("/")[2]

    def path(self, folder: Path) -> Path:
        """Where the file belongs."""
        return folder / self.file


def checkout() -> Path | None:
    """The root of the source checkout that this code runs from; None when it is installed."""
    root = PACKAGE.parent
    return root if (root / "pyproject.toml").is_file() and (root / "weights").is_dir() else None


def bundled_folder() -> Path:
    """Where the files lie that come with maskserve: the catalogue and the bundled models."""
    root = checkout()
    return PACKAGE / "weights" if root is None else root / "weights"


def default_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where downloaded weights belong by default.

    The `weights/` of a checkout, else `maskserve/weights` in the user's cache folder (XDG Base Directory
    Specification 0.8: $XDG_CACHE_HOME if it is absolute, else ~/.cache).
    """
    root = checkout()
    if root is not None:
        return root / "weights"
    cache = Path(environment.get("XDG_CACHE_HOME", ""))
    return (cache if cache.is_absolute() else Path.home() / ".cache") / "maskserve" / "weights"


def catalogue() -> tuple[Weights, ...]:
    """All weights that can be fetched, the best first: by published mask AP, then box AP."""
    document = json.loads((bundled_folder() / "catalogue.json").read_text(encoding="utf-8"))
    entries = (Weights(**entry) for entry in document["weights"])
    return tuple(sorted(entries, key=lambda entry: (entry.mask_ap or 0, entry.box_ap), reverse=True))


def bundled() -> dict[str, Bundled]:
    """The models that come with maskserve, by name. The first is the one that `auto` means without COCO weights."""
    document = json.loads((bundled_folder() / "catalogue.json").read_text(encoding="utf-8"))
    return {entry["name"]: Bundled(**entry) for entry in document["bundled"]}


def find(name: str) -> Weights:
    """The entry of that name. Raises UnknownWeightsError."""
    entries = {entry.name: entry for entry in catalogue()}
    if name not in entries:
        hint = did_you_mean(name, entries) or f"there are {', '.join(entries)}"
        raise UnknownWeightsError(f"no weights are called {name!r}: {hint}")
    return entries[name]


def path(name: str, folder: Path) -> Path:
    """Where the file of those weights belongs, whether it is there or not. Raises UnknownWeightsError."""
    return find(name).path(folder)


def verify(file: Path, sha256: str) -> str:
    """The sha256 of a file that must begin with those hexadecimal digits; reads all of it, every time.

    No verdict is remembered. 178 MB take 0.16 s to hash on an idle core and 0.45 s on a busy one, where
    importing torch takes seconds; whoever loads the file reads it anyway, and finds it in the page cache; and
    a verdict remembered by size and time would miss what it is there to find: a bad copy that kept its time,
    or a failing disk.
    Raises MissingWeightsError, FolderError if it cannot be read, DamagedWeightsError.
    """
    try:
        found = digest(file)
    except FileNotFoundError as error:
        raise MissingWeightsError(f"{file} is not there") from error
    except OSError as error:
        raise FolderError(f"{file} cannot be read ({error.strerror})") from error
    if not found.startswith(sha256):
        raise DamagedWeightsError(
            f"{file} is damaged: its sha256 is {shorten(found)} where {shorten(sha256)} was expected"
        )
    return found


def state(weights: Weights, folder: Path) -> State:
    """What the folder has of those weights; "partial" is a download to continue. Raises FolderError."""
    try:
        verify(weights.path(folder), weights.sha256)
    except DamagedWeightsError:
        return "damaged"
    except MissingWeightsError:
        return "partial" if Partial(weights.path(folder)).size else "missing"
    return "verified"


def available(folder: Path) -> tuple[Weights, ...]:
    """The weights in the folder that are whole and genuine, the best first."""
    return tuple(entry for entry in catalogue() if state(entry, folder) == "verified")


def best(folder: Path, dataset: str = "COCO") -> Weights | None:
    """The best of the weights for that dataset that are whole and genuine in the folder: what `auto` serves.

    Stops at the first that is, so a folder with both COCO models costs one file's hash.
    """
    entries = (entry for entry in catalogue() if entry.dataset == dataset)
    return next((entry for entry in entries if state(entry, folder) == "verified"), None)


def fetch(
    name: str,
    folder: Path,
    *,
    base_url: str | None = None,
    progress: Progress = lambda _done, _total: None,
    tell: Tell = lambda _line: None,
    client: httpx.Client | None = None,
) -> Path:
    """Bring those weights into the folder, unless they are there, and return the verified file's path.

    Args:
        name: of the catalogue.
        folder: where weights belong.
        base_url: a mirror that has the file under its official name.
        progress: called with the bytes so far and the bytes in the end (None if unknown).
        tell: called with a line whenever it takes longer, which says why.
        client: as for download.

    Raises a subclass of WeightsError.
    """
    from model.zoo.download import download  # noqa: PLC0415 - imports httpx, which serving what is there does without

    weights = find(name)
    url = weights.url if base_url is None else f"{base_url.rstrip('/')}/{weights.file}"
    file = weights.path(folder)
    download(url, file, weights.sha256, progress=progress, tell=tell, client=client)
    return file
