"""What the engine raises: of what is asked for, and when the device, rather than the image, is at fault."""

from __future__ import annotations

import torch

# How torch says that memory ran out where it has no class for it: the CPU's allocator, the CUDA driver outside of
# torch's allocator, cuBLAS when called and when first started, and cuDNN, by its older and its newer name, and where it
# finds no kernel at all because there is no memory for one's workspace.
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "out of memory",
    "STATUS_ALLOC_FAILED",
    "STATUS_NOT_INITIALIZED when calling `cublasCreate",
    "DEVICE_ALLOCATION_FAILED",
    "unable to find an engine to execute this computation",
)


class EngineError(ValueError):
    """The engine cannot do what was asked: an unknown device or precision, or images that do not fit together."""


class OutOfDeviceMemory(Exception):  # noqa: N818 - a state of the device, as `except` reads best
    """The batch does not fit into the device's free memory.

    The device itself is well: the same images may pass in smaller batches. Whoever raises it has first let go
    of what the failed attempt held.
    """


class DeviceFailed(Exception):  # noqa: N818 - a state of the device, as `except` reads best
    """The device is lost to this process: a device-side assert, an illegal access, a GPU fallen off the bus.

    A CUDA context never recovers from these: every later call fails too, and only a new process helps. Raise
    it from the driver's error (`raise DeviceFailed(...) from error`), so that the log names the kernel.
    """


def device_error(error: Exception, device: torch.device) -> OutOfDeviceMemory | DeviceFailed | None:
    """What the worker acts on, if it was the device that raised the error."""
    if isinstance(error, MemoryError):
        return OutOfDeviceMemory("the process has no more memory")
    if not isinstance(error, RuntimeError):
        return None
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or any(sign in text for sign in _OUT_OF_MEMORY):
        return OutOfDeviceMemory(text)
    if device.type == "cuda" and "CUDA error" in text:
        return DeviceFailed(text)
    return None
