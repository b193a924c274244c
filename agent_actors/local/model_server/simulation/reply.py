"""The simulation: what to say when no script does.

It is no model: the same request always gives the same answer. The answer quotes the task, keeps to
the form that was asked for, and works through the tools that were offered.
"""

import re

from agent_actors.contract import AgentRole
from agent_actors.local.model_server.generation import Reply
from agent_actors.local.model_server.prompt import role_in, task_in, tool_results
from agent_actors.local.model_server.simulation.json_fit import fit, grammar_error
from agent_actors.local.model_server.simulation.pattern import PatternError, matching
from agent_actors.local.model_server.simulation.proposals import ALTERNATIVE, GENERIC, PROPOSALS
from agent_actors.local.model_server.simulation.worked_task import next_call
from agent_actors.local.model_server.wire import ChatRequest, encode

MAX_TITLE_CHARS = 80
MAX_RESULT_CHARS = 200

_ALTERNATIVE_ASKED = re.compile(r"^#+ alternative view\s*$", re.IGNORECASE | re.MULTILINE)


def simulate(chat: ChatRequest) -> Reply:
    """Return what to say; raises `Refusal` when the asked form is wrong or cannot be kept to."""
    if call := next_call(chat):
        return Reply(calls=(call,))
    formed = _formed(chat)
    if formed is not None:
        return Reply(content=formed)
    results = [result.text for result in tool_results(chat)]
    return Reply(content=_report(chat, results) if results else _proposal(chat))


def _formed(chat: ChatRequest) -> str | None:
    """Return the answer in the form that was asked for, or None when any text will do."""
    form, own = chat.response_format, chat.structured_outputs
    schema = form.json_schema.schema if form and form.json_schema else own.json if own else None
    if schema is not None:
        about = _title(chat)
        hints = {"title": (about,), "task": (about,), "proposal": (_proposal(chat),)}
        return encode(fit(schema, about=about, hints=hints)).decode()
    if (form and form.type == "json_object") or (own and own.json_object):
        return encode({"title": _title(chat), "proposal": _proposal(chat)}).decode()
    if own and own.choice:
        return own.choice[0]
    if own and own.regex is not None:
        return _matching(own.regex)
    return None


def _matching(pattern: str) -> str:
    try:
        fitting = [text for text in matching(pattern) if re.fullmatch(pattern, text)]
    except PatternError as error:
        raise grammar_error(f"Regex parsing error: {error}") from None
    if not fitting:
        raise grammar_error("the simulated model knows no text that matches this pattern")
    return fitting[0]


def _proposal(chat: ChatRequest) -> str:
    role = role_in(chat)
    if role is AgentRole.TASK_EXTRACTOR:
        return _extracted_tasks(task_in(chat))
    quoted = "\n".join(f"> {line}" for line in task_in(chat).splitlines())
    template = PROPOSALS.get(role, GENERIC) if role else GENERIC
    text = template.substitute(title=_title(chat), quoted=quoted)
    asked = any(_ALTERNATIVE_ASKED.search(message.text) for message in chat.messages)
    return text + ALTERNATIVE if asked else text


def _extracted_tasks(text: str) -> str:
    """Take every sentence or list item for a task of its own, in order."""
    parts = [part.strip(" -*\t") for part in re.split(r"\n+|(?<=[.!?;])\s+", text)]
    titles = [part for part in parts if part]
    tasks = [
        {
            "title": title[:MAX_TITLE_CHARS],
            "description": title,
            "role": AgentRole.DEV,
            "depends_on": titles[index - 1 : index] if index else [],
        }
        for index, title in enumerate(titles)
    ]
    return encode(tasks).decode()


def _report(chat: ChatRequest, results: list[str]) -> str:
    steps = "\n".join(f"{n}. {_one_line(text)}" for n, text in enumerate(results, start=1))
    return f"## Done: {_title(chat)}\n\nWhat the tools said, step by step:\n\n{steps}\n"


def _one_line(text: str) -> str:
    line = " ".join(text.split()) or "(nothing)"
    return line if len(line) <= MAX_RESULT_CHARS else f"{line[:MAX_RESULT_CHARS]}…"


def _title(chat: ChatRequest) -> str:
    first = next((line.strip("# ") for line in task_in(chat).splitlines() if line.strip()), "")
    return first[:MAX_TITLE_CHARS] or "the task"
