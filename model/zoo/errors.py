"""Every error that a person can meet with weights; each is one sentence that says what to do:

WeightsError
├── UnknownWeightsError   no such name in the catalogue
├── MissingWeightsError   the file is not in the folder
├── DamagedWeightsError   its sha256 is not the one that it must have
├── FolderError           the folder cannot be read or written
├── DiskFullError         the folder has no room for it
├── UnreachableError      no connection: no network, name resolution, TLS or proxy
├── RefusedError          the server answers, but does not give the file
└── BrokenOffError        the connection broke again and again; what arrived is kept
"""

from __future__ import annotations


class WeightsError(Exception):
    """Weights could not be found, fetched or trusted; the message is for the person who asked for them."""


class UnknownWeightsError(WeightsError):
    """The catalogue has no weights of this name."""


class MissingWeightsError(WeightsError):
    """The file is not in the folder."""


class DamagedWeightsError(WeightsError):
    """The file's sha256 is not the one that it must have."""


class FolderError(WeightsError):
    """The folder cannot be read or written."""


class DiskFullError(WeightsError):
    """The folder has no room for the file."""


class UnreachableError(WeightsError):
    """The server cannot be reached: no network, name resolution, TLS or proxy."""


class RefusedError(WeightsError):
    """The server answers, but does not give the file."""


class BrokenOffError(WeightsError):
    """The connection broke again and again; what arrived is kept and continued next time."""
