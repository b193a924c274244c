"""Tells a listener what the model says, while it speaks."""

import asyncio

from agent_actors.ports import Listener

TELL_EVERY_S = 0.1


class Teller:
    """Tells the first words at once, and what follows in bundles, one each `TELL_EVERY_S`.

    A model makes up to some hundred tokens a second, and each telling is a message to someone.
    What the listener raises comes through.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._untold: list[str] = []
        self._spoke = False
        self._not_before = 0.0

    @property
    def due_at(self) -> float | None:
        """When to `tell_due` at the latest, in the loop's time; None: there is nothing to tell."""
        return self._not_before if self._untold else None

    async def begin(self) -> None:
        """Begin an answer; void what was told of one that broke off."""
        self._untold.clear()
        self._not_before = 0.0
        if self._spoke:
            self._spoke = False
            await self._listener("")

    def hear(self, text: str) -> None:
        """Take some more of the answer, to be told when it is due."""
        if text:
            self._untold.append(text)

    async def tell_due(self) -> None:
        """Tell what there is, unless something was told just now."""
        if self._untold and asyncio.get_running_loop().time() >= self._not_before:
            await self.tell()

    async def tell(self) -> None:
        """Tell what there is."""
        if not self._untold:
            return
        text = "".join(self._untold)
        self._untold.clear()
        self._spoke = True
        await self._listener(text)
        self._not_before = asyncio.get_running_loop().time() + TELL_EVERY_S
