"""The messages of a chat, what they take of the model's context, and what can be dropped of it.

Messages are only added at the end, and what was sent once is sent the same again: the model
server keeps what it has computed for a beginning that it knows. Old tool outputs, and in the end
what old calls were given, are dropped only when the context runs out, and then many at once, so
that this seldom happens.
"""

from collections.abc import Callable, Iterable, Sequence

import msgspec
from msgspec.structs import replace

from agent_actors.contract import Usage
from agent_actors.ports import ChatMessage, ChatReply, OfferedTool
from agent_actors.strategies.shortening import without_long_arguments

# UTF-8 bytes. Texts have three to five a token; the few are taken for what comes, and the many for
# what goes, so that both estimates err towards too little room.
BYTES_A_TOKEN_ADDED = 3
BYTES_A_TOKEN_DROPPED = 5
BYTES_AROUND_A_MESSAGE = 12

# Dropping less than this is not worth a beginning that the model server does not know.
MIN_DROPPED_BYTES = 200

Shorten = Callable[[ChatMessage], ChatMessage]


class Conversation:
    """What has been said so far. The server's own count is taken as far as it reaches."""

    def __init__(self) -> None:
        self.messages: list[ChatMessage] = []
        self._counted_tokens = 0
        self._counted_messages = 0

    @property
    def characters(self) -> int:
        """How many characters all messages have, with what calls are given."""
        return sum(map(_size_characters, self.messages))

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

    def estimated_usage(self, offered: Sequence[OfferedTool], reply: ChatReply) -> Usage:
        """Return about how many tokens the next prompt and this reply to it have."""
        prompt = self.expected_tokens(offered)
        said = ChatMessage(role="assistant", content=reply.content, tool_calls=reply.tool_calls)
        completion = -(-_size_bytes(said) // BYTES_A_TOKEN_ADDED)
        return Usage(
            prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion
        )

    def oldest_outputs(self, tokens: int, *, newest: bool = False) -> tuple[int, ...]:
        """Return the indices of the oldest tool outputs that make about so many tokens.

        Fewer when there are no more; with `newest` the last one may be among them.
        """
        outputs = [n for n, message in enumerate(self.messages) if message.role == "tool"]
        return self._oldest(outputs if newest else outputs[:-1], _without_output, tokens)

    def oldest_calls(self, tokens: int, *, newest: bool = False) -> tuple[int, ...]:
        """Return the same for the messages whose calls have long arguments."""
        calls = [n for n, message in enumerate(self.messages) if message.tool_calls]
        return self._oldest(calls if newest else calls[:-1], _without_arguments, tokens)

    def drop(self, indices: Iterable[int]) -> None:
        """Put a mark in place of each of these outputs."""
        for index in indices:
            is_seen = index < self._counted_messages
            self._replace(index, _without_output if is_seen else _without_unseen_output)

    def shorten_calls(self, indices: Iterable[int]) -> None:
        """Put marks in place of the long arguments in these messages."""
        for index in indices:
            self._replace(index, _without_arguments)

    def _oldest(self, indices: Iterable[int], shorten: Shorten, tokens: int) -> tuple[int, ...]:
        """Return the first of the messages which, shortened, make about so many tokens less."""
        chosen: list[int] = []
        for index in indices:
            if tokens <= 0:
                break
            old = self.messages[index]
            gain_bytes = _size_bytes(old) - _size_bytes(shorten(old))
            if gain_bytes >= MIN_DROPPED_BYTES:
                tokens -= gain_bytes // BYTES_A_TOKEN_DROPPED
                chosen.append(index)
        return tuple(chosen)

    def _replace(self, index: int, shorten: Shorten) -> None:
        old = self.messages[index]
        self.messages[index] = shorten(old)
        if index < self._counted_messages:
            gain_bytes = _size_bytes(old) - _size_bytes(self.messages[index])
            self._counted_tokens -= gain_bytes // BYTES_A_TOKEN_DROPPED


def _without_output(message: ChatMessage) -> ChatMessage:
    mark = f"[output dropped: {len(message.content or '')} characters]"
    return replace(message, content=mark)


def _without_unseen_output(message: ChatMessage) -> ChatMessage:
    characters = len(message.content or "")
    mark = (
        f"[output dropped before you saw it: {characters} characters are more than there is room "
        "for; ask for less]"
    )
    return replace(message, content=mark)


def _without_arguments(message: ChatMessage) -> ChatMessage:
    return replace(message, tool_calls=[without_long_arguments(c) for c in message.tool_calls])


def _size_characters(message: ChatMessage) -> int:
    return len(message.content or "") + sum(
        len(call.function.arguments) for call in message.tool_calls
    )


def _size_bytes(message: ChatMessage) -> int:
    calls = sum(
        len(call.function.name) + len(call.function.arguments.encode()) + BYTES_AROUND_A_MESSAGE
        for call in message.tool_calls
    )
    return len((message.content or "").encode()) + calls + BYTES_AROUND_A_MESSAGE
