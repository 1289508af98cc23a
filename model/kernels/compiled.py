"""What the kernels in C have in common: how hatch_build.py's results are checked, and the threads that they run on."""

from __future__ import annotations

import ctypes
import logging
import zlib
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from model.errors import EngineError
from model.kernels.openmp import library as openmp_library

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

log = logging.getLogger(__name__)


def first_usable(variants: Mapping[Path, tuple[str, ...]], cost: str) -> Path | None:
    """The first of compiled files that this processor runs; None if there is none, or it is missing.

    Args:
        variants: what the processor must have for each.
        cost: of its being missing, for the log.
    """
    has = torch.cpu.get_capabilities()
    for path, needs in variants.items():
        if all(has.get(need) for need in needs):
            if path.exists():
                return path
            log.warning("%s is not there: %s", path, cost)
    return None


def load(path: Path, source: Path, work: type[ctypes.Structure]) -> Any:
    """The library, of ctypes.

    Args:
        path: of the compiled file.
        source: the file that it was compiled from.
        work: the structure that it takes.

    Raises EngineError if there is no way to load it, or it is of another version.
    """
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise EngineError(f"{path} cannot be loaded: {error}") from None
    try:
        version = [ctypes.c_int64.in_dll(library, name).value for name in ("source", "work_bytes")]
    # It has no such name.
    except ValueError:
        version = []
    if version != [zlib.crc32(source.read_bytes()), ctypes.sizeof(work)]:
        raise EngineError(
            f"{path} was compiled from another version's {source.name}: install the package again"
        )
    return library


def load_first(
    source: Path, variants: Mapping[str, tuple[str, ...]], work: type[ctypes.Structure], cost: str
) -> Any | None:
    """The library of the first variant of a source that this processor runs; None where there is none.

    Args:
        source: the C file.
        variants: what each needs of the processor, by its name; the fastest first.
        work: the structure that the library takes.
        cost: what is lost without it, for the log.
    """
    paths = {source.with_name(f"{source.stem}_{name}.so"): needs for name, needs in variants.items()}
    path = first_usable(paths, cost)
    return None if path is None else load(path, source, work)


@cache
def openmp_functions() -> tuple[int, int] | None:
    """Addresses of OpenMP's functions that run another on several threads, and number these. They are the ones that
    torch calls: the threads of two pools would wait for one another.
    """
    library: Any = openmp_library()
    try:
        found = library.GOMP_parallel, library.omp_get_thread_num
    except AttributeError:
        return None
    parallel, thread_number = (ctypes.cast(function, ctypes.c_void_p).value or 0 for function in found)
    return parallel, thread_number
