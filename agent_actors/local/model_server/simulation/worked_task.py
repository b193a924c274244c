"""A small piece of work with the tools that are offered: look, write, test, mend, test, commit.

No tool is known by its full name. A step goes to the first tool whose name says that it can do
it, with arguments that fit the tool's own schema. When no tool fits any step, each is tried once.
"""

import re
from collections.abc import Sequence

from msgspec import Struct

from agent_actors.local.model_server.prompt import task_in, tool_results
from agent_actors.local.model_server.simulation.json_fit import Hints, fit
from agent_actors.local.model_server.wire import (
    CalledFunction,
    ChatRequest,
    NamedTool,
    Tool,
    encode,
)

MAX_STRANGE_TOOLS = 3
SOURCE_FILE = "solution.py"
TEST_FILE = "test_solution.py"
TEST_COMMAND = ["python", "-m", "pytest", "-q"]

# The work itself is always this; the task is quoted on top of it. The draft is wrong on purpose.
DRAFT = '''"""{task}"""


def solve(values):
    """Return the values in order, each once."""
    return sorted(values)
'''
SOURCE = DRAFT.replace("sorted(values)", "sorted(set(values))")
TEST = """from solution import solve


def test_values_come_in_order_each_once():
    assert solve([3, 1, 3]) == [1, 3]
"""

# Words of the names of tools.
WRITE = r"write|create file"
TEST_RUN = r"tests?|pytest|run|exec|execute|shell|bash"

# What tools call the same argument.
SYNONYMS = {
    "path": ("path", "file_path", "file", "filename", "directory", "dir"),
    "content": ("content", "contents", "text"),
    "command": ("command", "cmd", "args", "argv"),
    "message": ("message", "msg"),
    "paths": ("paths", "files"),
    "answer": ("answer", "result", "summary"),
}


class Step(Struct, frozen=True):
    """One step: what the words of a tool's name must say, and what its arguments should be."""

    tool_name: str
    hints: Hints


class PlannedCall(Struct, frozen=True):
    """A tool to call, with what its arguments should be where its schema allows them."""

    tool: Tool
    hints: Hints


def next_call(chat: ChatRequest) -> CalledFunction | None:
    """Return the next call of the work, or None when it is done or nothing may be called.

    Raises `Refusal` when a tool's schema is wrong.
    """
    tools, must_call = chat.offered, chat.tool_choice == "required"
    if isinstance(chat.tool_choice, NamedTool):
        must_call, named = True, chat.tool_choice.function.name
        tools = [tool for tool in tools if tool.function.name == named]
    plan = planned_calls(tools, task_in(chat))
    done = len(tool_results(chat))
    if not plan or (done >= len(plan) and not must_call):
        return None
    call = plan[min(done, len(plan) - 1)]
    arguments = fit(
        call.tool.function.parameters or {"type": "object"},
        about=task_in(chat),
        hints=call.hints,
        sparse=True,
    )
    return CalledFunction(name=call.tool.function.name, arguments=encode(arguments).decode())


def planned_calls(tools: Sequence[Tool], task: str) -> list[PlannedCall]:
    """Return the calls of the work with these tools: at least one when there is a tool."""
    plan = [
        PlannedCall(tool, step.hints)
        for step in _steps(task)
        if (tool := _tool_for(step, tools)) is not None
    ]
    return plan or [PlannedCall(tool, {}) for tool in tools[:MAX_STRANGE_TOOLS]]


def _steps(task: str) -> list[Step]:
    quoted = task.replace("\\", "/").replace('"""', "'''")
    command = (" ".join(TEST_COMMAND), TEST_COMMAND, TEST_COMMAND[1:])
    written = ([SOURCE_FILE, TEST_FILE],)
    return [
        Step(r"list|ls|tree", _hints(path=(".",))),
        Step(WRITE, _hints(path=(SOURCE_FILE,), content=(DRAFT.format(task=quoted),))),
        Step(WRITE, _hints(path=(TEST_FILE,), content=(TEST,))),
        Step(TEST_RUN, _hints(path=(".",), command=command)),
        Step(r"read|view|cat", _hints(path=(SOURCE_FILE,))),
        Step(WRITE, _hints(path=(SOURCE_FILE,), content=(SOURCE.format(task=quoted),))),
        Step(TEST_RUN, _hints(path=(".",), command=command)),
        Step(r"add|stage", _hints(path=(".",), paths=written)),
        Step(r"commit", _hints(message=("Solve the task, with a test",), paths=written)),
        Step(r"finish|done", _hints(answer=("The task is solved, tested and committed.",))),
    ]


def _hints(**values: tuple[object, ...]) -> Hints:
    return {name: wanted for key, wanted in values.items() for name in SYNONYMS[key]}


def _tool_for(step: Step, tools: Sequence[Tool]) -> Tool | None:
    wanted = re.compile(rf"\b({step.tool_name})\b")
    return next((tool for tool in tools if wanted.search(_words(tool.function.name))), None)


def _words(name: str) -> str:
    """Return `fs.writeFile` as `fs write file`."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return re.sub(r"[^A-Za-z0-9]+", " ", spaced).lower()
