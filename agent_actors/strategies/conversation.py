"""The messages of a chat, what they take of the model's context, and what can be dropped of it.

Messages are only added at the end, and what was sent once is sent the same again: the model
server keeps what it has computed for a beginning that it knows. Old tool outputs are dropped only
when the context runs out, and then many at once, so that this seldom happens.
"""

from collections.abc import Iterable, Sequence

import msgspec
from msgspec.structs import replace

from agent_actors.contract import Usage
from agent_actors.ports import ChatMessage, OfferedTool

# UTF-8 bytes. Texts have three to five a token; the few are taken for what comes, and the many for
# what goes, so that both estimates err towards too little room.
BYTES_A_TOKEN_ADDED = 3
BYTES_A_TOKEN_DROPPED = 5
BYTES_AROUND_A_MESSAGE = 12

# Dropping less than this is not worth a beginning that the model server does not know.
MIN_DROPPED_CHARS = 200


class Conversation:
    """What has been said so far. The server's own count is taken as far as it reaches."""

    def __init__(self) -> None:
        self.messages: list[ChatMessage] = []
        self._counted_tokens = 0
        self._counted_messages = 0

    def add(self, *messages: ChatMessage) -> None:
        """Append messages that the server has not seen yet."""
        self.messages += messages

    def add_reply(self, message: ChatMessage, usage: Usage) -> None:
        """Append the model's own message, up to which the server has counted."""
        self.messages.append(message)
        if usage.prompt_tokens:
            self._counted_tokens = usage.prompt_tokens + usage.completion_tokens
            self._counted_messages = len(self.messages)

    def add_to_last(self, text: str) -> None:
        """Append text to the last message, which the server has not seen yet."""
        last = self.messages[-1]
        self.messages[-1] = replace(last, content=f"{last.content}{text}")

    def expected_tokens(self, offered: Sequence[OfferedTool]) -> int:
        """Return about how many tokens the next prompt has."""
        added = sum(map(_size_bytes, self.messages[self._counted_messages :]))
        if not self._counted_messages:
            added += len(msgspec.json.encode(offered))
        return self._counted_tokens + -(-added // BYTES_A_TOKEN_ADDED)

    def oldest_outputs(self, tokens: int, *, newest: bool = False) -> tuple[int, ...]:
        """Return the indices of the oldest tool outputs that make about so many tokens.

        Fewer when there are no more; with `newest` the last one may be among them.
        """
        chosen: list[int] = []
        outputs = self._outputs()
        for index in outputs if newest else outputs[:-1]:
            if tokens <= 0:
                break
            if len(self.messages[index].content or "") >= MIN_DROPPED_CHARS:
                tokens -= self._gain(index)
                chosen.append(index)
        return tuple(chosen)

    def drop(self, indices: Iterable[int]) -> int:
        """Put a mark in place of these outputs; return how many characters they had."""
        dropped = 0
        for index in indices:
            if index < self._counted_messages:
                self._counted_tokens -= self._gain(index)
            old = self.messages[index].content or ""
            mark = _mark(old) if index < self._counted_messages else _unseen_mark(old)
            self.messages[index] = replace(self.messages[index], content=mark)
            dropped += len(old)
        return dropped

    def _outputs(self) -> list[int]:
        return [index for index, message in enumerate(self.messages) if message.role == "tool"]

    def _gain(self, index: int) -> int:
        old = self.messages[index].content or ""
        return (len(old.encode()) - len(_mark(old))) // BYTES_A_TOKEN_DROPPED


def _mark(output: str) -> str:
    return f"[output dropped: {len(output)} characters]"


def _unseen_mark(output: str) -> str:
    return (
        f"[output dropped before you saw it: {len(output)} characters are more than there is room "
        "for; ask for less]"
    )


def _size_bytes(message: ChatMessage) -> int:
    calls = sum(
        len(call.function.name) + len(call.function.arguments.encode()) + BYTES_AROUND_A_MESSAGE
        for call in message.tool_calls
    )
    return len((message.content or "").encode()) + calls + BYTES_AROUND_A_MESSAGE
