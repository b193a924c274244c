"""How the processes that we start are ended: in good order, and by force when that takes long."""

import asyncio
import contextlib

STOP_TIMEOUT_S = 10.0


async def end(process: asyncio.subprocess.Process) -> None:
    """Send SIGTERM, and SIGKILL ten seconds later; return when the process is gone."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
