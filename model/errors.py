"""What the engine raises when the device, rather than the image, is at fault."""

from __future__ import annotations


class OutOfDeviceMemory(Exception):  # noqa: N818 - a state of the device, as `except` reads best
    """The batch does not fit into the device's free memory.

    The device itself is well: the same images may pass in smaller batches. Whoever raises it has first let go
    of what the failed attempt held.
    """


class DeviceFailed(Exception):  # noqa: N818 - likewise
    """The device is lost to this process: a device-side assert, an illegal access, a GPU fallen off the bus.

    A CUDA context never recovers from these: every later call fails too, and only a new process helps. Raise
    it from the driver's error (`raise DeviceFailed(...) from error`), so that the log names the kernel.
    """
