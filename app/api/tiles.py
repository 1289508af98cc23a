"""One image in tiles through the queue: admitted as a whole, a few of its tiles in flight at a time."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

from app.batching.admission import Permit
from app.batching.queue import SegmentResult

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from app.service import ServedEngine, Service
    from model.inference.tiled import TiledImage
    from model.masks.merge import Layout


def count_input_pixels(engine: ServedEngine, layout: Layout) -> list[int]:
    """Pixels of each tile's padded network input."""
    # All tiles have one shape; only the last one may be the whole image.
    first, last = (
        math.prod(engine.padded_shape(bottom - top, right - left))
        for left, top, right, bottom in layout.tiles[[0, -1]].tolist()
    )
    return [first] * (len(layout.tiles) - 1) + [last]


async def segment_tiles(
    service: Service,
    permit: Permit,
    image: NDArray[np.uint8],
    tiles: TiledImage,
    *,
    expires: float,
    progress: Callable[[int, int], None],
) -> SegmentResult:
    """The merged instances of an image, with the time from the first tile's start to the end of the merging.

    Tiles wait in the ordinary queue, no more than twice those that may run at once, so that other requests have their
    turns. If the caller leaves, or one tile fails, those that wait never reach the device.

    Args:
        service: has the worker.
        permit: of the whole image.
        image: [H, W, 3] RGB; tiles are views of it.
        tiles: of the image, with nothing found yet.
        expires: the deadline of every tile, on the worker's clock.
        progress: is called with the number of tiles that are done, and of all.

    Raises what Worker.segment raises.
    """
    loop = asyncio.get_running_loop()
    started = loop.time()
    inputs = count_input_pixels(service.engine, tiles.layout)
    waiting = iter(range(len(tiles)))
    done = 0
    batch_size = 1
    first_waited: float | None = None
    adding = asyncio.Lock()

    async def run() -> None:
        nonlocal done, batch_size, first_waited
        for number in waiting:
            crop = tiles.crop(image, number)
            part = Permit(crop.shape[0] * crop.shape[1], permit.admitted_at)
            result = await service.worker.segment(part, crop, tiles.options, expires)
            service.admission.count_done(permit, inputs[number])
            if first_waited is None:
                first_waited = result.queue_seconds
            batch_size = max(batch_size, result.batch_size)
            located = await loop.run_in_executor(service.encoders, tiles.locate, number, result.instances)
            async with adding:
                # Now and then it sorts all that was found.
                await loop.run_in_executor(service.encoders, tiles.add, located)
            done += 1
            progress(done, len(tiles))

    # Twice those that may run at once, and those whose masks are being encoded meanwhile.
    at_once = 2 * service.worker.budget.max_images + service.settings.encode_threads
    tasks = [loop.create_task(run()) for _ in range(min(at_once, len(tiles)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # An error's traceback holds this frame. If the frame held the tasks, which hold the error, the image would stay
        # in memory until the next garbage collection.
        tasks.clear()
    instances = await loop.run_in_executor(service.encoders, tiles.merge)
    waited = first_waited or 0.0
    return SegmentResult(instances, waited, loop.time() - started - waited, batch_size)
