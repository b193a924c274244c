"""How much may wait for its answer at a time: so many messages, and so many bytes of them."""

import asyncio


class Window:
    """Lets messages in one after the other, in the order of asking, while there is room.

    One that is bigger than all the room goes in when it is the only one.
    """

    def __init__(self, *, messages: int, max_bytes: int) -> None:
        self._messages = messages
        self._bytes = max_bytes
        self._inside = 0
        self._bytes_inside = 0
        self._turn = asyncio.Lock()
        self._left = asyncio.Event()

    async def enter(self, size_bytes: int, within_s: float) -> None:
        """Take room for a message of this size. Raises TimeoutError when there is none in time."""
        if self._turn.locked() or not self._fits(size_bytes):
            async with asyncio.timeout(within_s), self._turn:
                while not self._fits(size_bytes):
                    self._left.clear()
                    await self._left.wait()
        self._inside += 1
        self._bytes_inside += size_bytes

    def leave(self, size_bytes: int) -> None:
        """Give back the room of a message that had it."""
        self._inside -= 1
        self._bytes_inside -= size_bytes
        self._left.set()

    def _fits(self, size_bytes: int) -> bool:
        if not self._inside:
            return True
        fits = self._bytes_inside + size_bytes <= self._bytes
        return fits and self._inside < self._messages
