"""What a conversation asks for: the role, the task, and what became of the tool calls so far."""

import re
from hashlib import blake2b

from agent_actors.contract import AgentRole
from agent_actors.local.model_server.wire import ChatRequest, Message, encode

# How a prompt gives a role away; the mark that comes first in the text decides.
_ROLE_MARKS = {
    AgentRole.DEV: r"\bdev\b|developer|software engineer|programmer",
    AgentRole.QA: r"\bqa\b|quality (?:engineer|assurance)|tester",
    AgentRole.ARCHITECT: r"architect",
    AgentRole.DEVOPS: r"devops|site reliability",
    AgentRole.DATA: r"\bdata (?:engineer|scientist|analyst)|\brole:? data\b",
    AgentRole.TASK_EXTRACTOR: r"task[ _-]?extractor|extracts? (?:the )?tasks?",
}
_ROLES = {role: re.compile(marks, re.IGNORECASE) for role, marks in _ROLE_MARKS.items()}

# A section of its own up to the next one, or the rest of a line.
_TASK_SECTION = re.compile(
    r"^#+ task\s*\n+(?P<task>.+?)"
    r"(?=\n+#+ (?:rubric|requirements|context|metadata|further constraints|alternative view|"
    r"answer format)\s*$|\Z)",
    re.IGNORECASE | re.MULTILINE | re.DOTALL,
)
_TASK_LINE = re.compile(r"^task:\s*(?P<task>.+)$", re.IGNORECASE | re.MULTILINE)


def role_in(chat: ChatRequest) -> AgentRole | None:
    """Return the built-in role that the first message speaks to, or None."""
    opening = chat.messages[0].text
    found = [(mark.start(), role) for role, m in _ROLES.items() if (mark := m.search(opening))]
    return min(found)[1] if found else None


def task_in(chat: ChatRequest) -> str:
    """Return the task that the last user message sets, without what else stands in the prompt."""
    asked = next((m.text for m in reversed(chat.messages) if m.role == "user"), "")
    found = _TASK_SECTION.search(asked) or _TASK_LINE.search(asked)
    return (found["task"] if found else asked).strip()


def tool_results(chat: ChatRequest) -> list[Message]:
    """Return what the tools answered since the user spoke last."""
    results: list[Message] = []
    for message in reversed(chat.messages):
        if message.role == "user":
            break
        if message.role == "tool":
            results.append(message)
    return results[::-1]


def asked_text(chat: ChatRequest) -> str:
    """Return the text of all messages."""
    return "\n".join(message.text for message in chat.messages)


def fingerprint(chat: ChatRequest) -> str:
    """Return a short name for the conversation: the same messages, the same name."""
    return blake2b(encode(chat.messages), digest_size=8).hexdigest()
