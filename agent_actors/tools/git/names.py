"""What a model may give git as a name: nothing that git could take for something else."""

import re

from agent_actors.errors import ToolError
from agent_actors.tools.paths import shown
from agent_actors.tools.programs import visible

MAX_NAME_CHARS = 200
MAX_MESSAGE_CHARS = 20_000

# git-check-ref-format(1): what no name has, and what none of its parts begins or ends with.
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|^/|/$|\.$|^@$|^-")
_FORBIDDEN_PART = re.compile(r"^\.|\.lock$")
_STEPS_BACK = re.compile(r"(?:[~^]\d{0,4})+\Z")
COMMIT_ID = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?\Z")


def ref_name(name: str) -> str:
    """Return the name of a branch or tag as it came. Raises ToolError when it is none."""
    if (
        not 0 < len(name) <= MAX_NAME_CHARS
        or not name.isprintable()
        or _FORBIDDEN.search(name)
        or any(_FORBIDDEN_PART.search(part) for part in name.split("/"))
    ):
        raise ToolError(f"{_told(name)} is not a name of a branch or tag: give one like feature/x")
    return name


def revision(text: str) -> str:
    """Return what names one commit: a branch, tag or commit id, with `~2` or `^` after it.

    Raises ToolError for anything else, ranges included.
    """
    steps = _STEPS_BACK.search(text)
    try:
        ref_name(text[: steps.start()] if steps else text)
    except ToolError:
        raise ToolError(
            f"{_told(text)} names no single commit: give a branch, a tag, a commit id or HEAD~1"
        ) from None
    return text


def commit_message(message: str) -> str:
    """Return the message as it came. Raises ToolError when it is empty, or no plain text."""
    if not message.strip() or len(message) > MAX_MESSAGE_CHARS:
        raise ToolError(f"a commit message has 1 to {MAX_MESSAGE_CHARS} characters")
    if visible(message) != message:
        raise ToolError("the message has control characters: give plain text")
    return message


def _told(name: str) -> str:
    return shown(name[:MAX_NAME_CHARS])
