"""What stands for a tokenizer: text in pieces of a few characters, which together are the text."""

import re

from agent_actors.local.model_server.wire import ChatRequest, encode

# A chat template puts markers around every message and opens the answer.
TOKENS_PER_MESSAGE = 4
TOKENS_PER_ANSWER = 3

_PIECE = re.compile(r"\s*\w{1,8}|\s*[^\w\s]|\s+")


def pieces(text: str) -> list[str]:
    """Cut a text into tokens; joined they are the text again."""
    return _PIECE.findall(text)


def prompt_tokens(chat: ChatRequest) -> int:
    """Return how many tokens a chat template would make of the messages and the tools."""
    texts = [message.text for message in chat.messages]
    texts += [call.function.arguments for m in chat.messages for call in m.tool_calls or []]
    if chat.tools:
        texts.append(encode(chat.tools).decode())
    spoken = sum(len(pieces(text)) for text in texts)
    return spoken + TOKENS_PER_MESSAGE * len(chat.messages) + TOKENS_PER_ANSWER
