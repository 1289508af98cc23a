"""One decoder process, killed at the worst moments."""

from __future__ import annotations

import asyncio

import pytest

from app.intake.decoder_child import Child, DecoderLostError

# Seconds, for what takes fractions of one; reached only when something hangs.
PATIENCE = 10


@pytest.mark.parametrize("steps", range(6))
def test_process_that_is_killed_while_it_is_being_connected_keeps_nobody_waiting(steps: int) -> None:
    async def run() -> None:
        child = Child(1 << 20)
        connecting = asyncio.create_task(child.connect())
        for _ in range(steps):
            await asyncio.sleep(0)
        child.kill()
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(DecoderLostError):
                await connecting
        child.kill()

    asyncio.run(run())
