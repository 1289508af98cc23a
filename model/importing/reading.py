"""Files of weights → plain values and tensors. Nothing that a file holds is ever run.

A `.pth` or `.pkl` is a pickle, and a pickle is a program. Two readers are used, and both stop at the first name that is
not on a short list: torch's own (`weights_only=True`) for what `torch.save` wrote, and a restricted unpickler for the
plain pickles of Detectron2's model zoo, which hold numpy arrays.
"""

from __future__ import annotations

import argparse
import io
import pickle
import re
import zipfile
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from model.messages import first_line

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

AS_STATE_DICT = (
    "torch.save(torch.load('{name}', map_location='cpu', weights_only=False).state_dict(), 'weights.pth')"
)
FROM_TORCHSCRIPT = "torch.save(torch.jit.load('{name}', map_location='cpu').state_dict(), 'weights.pth')"
_GLOBAL = re.compile(r"(?:GLOBAL|function|class|type)\s+([A-Za-z_][\w.]*\.[\w.]+)")
_CODECS = ("latin1", "latin-1", "iso-8859-1")


class ReadingError(Exception):
    """The file cannot be read safely; the message is one line that says why, and what would be accepted."""


class Inert:
    """Stands for an object that files of weights carry along and nothing here needs, such as a log of losses."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _state: Any) -> None: ...


def _encode(text: str, codec: str = "latin1") -> bytes:
    """Bytes, which pickles of protocol 2 write as text: the one codec that they use and no other."""
    if codec not in _CODECS:
        raise pickle.UnpicklingError(f"_codecs.encode with {codec!r:.20}")
    return text.encode("latin1")


def _scalar(dtype: np.dtype[Any], value: bytes) -> Any:
    """A numpy scalar from its bytes."""
    if dtype.hasobject or not isinstance(value, bytes) or len(value) != dtype.itemsize:
        raise pickle.UnpicklingError("a numpy scalar that holds no number")
    return np.frombuffer(value, dtype)[0]


def _reconstruct(kind: type, shape: Any, code: Any) -> np.ndarray:
    """An empty array, which the pickle then fills."""
    if kind is not np.ndarray:
        raise pickle.UnpicklingError("an array of a class of its own")
    return np.ndarray.__new__(np.ndarray, shape, code)


def _frombuffer(values: bytes | bytearray, dtype: np.dtype[Any], shape: Any, order: str) -> np.ndarray:
    """An array from its bytes, as pickles of protocol 5 write them."""
    if dtype.hasobject or order not in ("C", "F"):
        raise pickle.UnpicklingError("an array that holds no numbers")
    return np.frombuffer(values, dtype).reshape(shape, order="F" if order == "F" else "C").copy()


_NUMPY: dict[str, Any] = {
    f"numpy.{core}.{name}": value
    for core in ("core", "_core")
    for name, value in (
        ("multiarray._reconstruct", _reconstruct),
        ("multiarray.scalar", _scalar),
        ("numeric._frombuffer", _frombuffer),
    )
} | {"numpy.ndarray": np.ndarray, "numpy.dtype": np.dtype, "_codecs.encode": _encode}
_PLAIN = _NUMPY | {"collections.OrderedDict": OrderedDict}
# Objects that training scripts put beside the weights: torchvision's arguments, MMEngine's logs and paths.
_BESIDE: dict[str, Any] = {"argparse.Namespace": argparse.Namespace} | dict.fromkeys(
    (
        "mmengine.logging.history_buffer.HistoryBuffer",
        "pathlib.PosixPath",
        "pathlib.WindowsPath",
        "pathlib._local.PosixPath",
        "pathlib._local.WindowsPath",
    ),
    Inert,
)


def read(path: Path) -> Any:
    """What a file of weights holds: nested plain values, torch tensors and numpy arrays, all on the CPU.

    Reads safetensors, what `torch.save` wrote, and plain pickles of numpy arrays.
    Raises ReadingError for what cannot be read, or not without running what it holds.
    """
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise ReadingError(f"{path}: {_reason(error)}") from None
    if path.suffix == ".safetensors" or head[8:10] == b'{"':
        return _attempt(path, lambda: load_file(path))
    if head.startswith(b"PK"):
        _refuse_archive(path)
        return _attempt(path, lambda: _torch(path))
    if head.startswith(b"\x80"):
        if _legacy_torch(path):
            return _attempt(path, lambda: _torch(path))
        return _attempt(path, lambda: _pickle(path))
    raise ReadingError(
        f"{path}: no file of weights: it is neither safetensors nor what torch.save or pickle wrote"
    )


def _attempt(path: Path, reader: Callable[[], Any]) -> Any:
    """What the reader returns; its errors as a ReadingError of one line."""
    try:
        return reader()
    except OSError as error:
        raise ReadingError(f"{path}: {_reason(error)}") from None
    except ReadingError:
        raise
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        foreign = _GLOBAL.search(str(error))
        if foreign is not None:
            raise ReadingError(_not_plain(path, foreign[1])) from None
        raise ReadingError(f"{path}: damaged, or no file of weights ({_reason(error)})") from None
    # A damaged pickle can fail in any of the calls that it makes on the few names that it may use.
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, MemoryError) as error:
        raise ReadingError(f"{path}: damaged, or no file of weights ({_reason(error)})") from None


def _torch(path: Path) -> Any:
    numpy_types = [getattr(np.dtypes, name) for name in np.dtypes.__all__]
    named = [(value, name) for name, value in (_NUMPY | _BESIDE).items()]
    with torch.serialization.safe_globals([*numpy_types, *named, np.ndarray, np.dtype, Inert]):
        return torch.load(path, map_location="cpu", weights_only=True)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """One of the names that an array is made of. Raises UnpicklingError for any other."""
        found = _PLAIN.get(f"{module}.{name}")
        if found is None:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return found

    def persistent_load(self, _: Any) -> Any:
        """Refused: plain pickles have none."""
        raise pickle.UnpicklingError("it refers to something outside of itself")


def _pickle(path: Path) -> Any:
    # latin1: the zoo's files were written by Python 2, whose strings are bytes.
    return _Unpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()


def _legacy_torch(path: Path) -> bool:
    """Whether it begins with the number by which torch.save marked its files before they were archives."""
    magic = torch.serialization.MAGIC_NUMBER.to_bytes(10, "little")
    with path.open("rb") as file:
        return magic in file.read(32)


def _refuse_archive(path: Path) -> None:
    """Refuse TorchScript, which is a program in an archive, and archives of something else."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise ReadingError(f"{path}: damaged: it begins as an archive ({_reason(error)})") from None
    inside = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inside or any(name.startswith("code/") for name in inside):
        raise ReadingError(
            f"{path}: TorchScript, a program, which is never run here. If you trust the file, write its weights out: "
            + FROM_TORCHSCRIPT.format(name=path.name)
        )
    if "data.pkl" not in inside:
        raise ReadingError(f"{path}: an archive, but none that torch.save wrote")


def _not_plain(path: Path, name: str) -> str:
    """What is said of a pickle that refers to a name that is not on the list."""
    return (
        f"{path}: not read, because it refers to {name:.100}, and only tensors, arrays and plain values are read: "
        "anything else could run code. If it is a whole model that you trust, write its weights out: "
        + AS_STATE_DICT.format(name=path.name)
    )


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return first_line(error)[:200]
