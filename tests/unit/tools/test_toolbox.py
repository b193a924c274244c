"""Calls as a model makes them, right and wrong, of tools as this package makes them."""

from typing import Annotated, Any, cast

import jsonschema
import pytest
from msgspec import Meta

from agent_actors.contract import Constraints
from agent_actors.errors import ToolError, ToolRefused
from agent_actors.ports import CalledFunction, ToolCall
from agent_actors.tools.permissions import grant
from agent_actors.tools.registry import Arguments, Surroundings, ToolOutput, tool
from agent_actors.tools.toolbox import Toolbox

SURROUNDINGS = cast("Surroundings", None)


class Greet(Arguments):
    """Not for the model."""

    name: Annotated[str, Meta(description="Whom to greet.", min_length=1)]
    times: Annotated[int, Meta(ge=1, le=3, description="How often.")] = 1


@tool("files", reads=True)
async def greet(surroundings: Surroundings, arguments: Greet) -> ToolOutput:
    """Greet somebody."""
    return ToolOutput(text=f"Hello {arguments.name}! " * arguments.times)


@tool("git", reads=False, operation="commit")
async def git_commit(surroundings: Surroundings, arguments: Arguments) -> ToolOutput:
    """Commit."""
    return ToolOutput(text="done")


def toolbox(*sources: Any, **constraints: Any) -> Toolbox:
    granted = grant("QA", None, Constraints(**constraints))
    return Toolbox([greet, git_commit], granted, SURROUNDINGS, sources)


def call(name: str, arguments: str) -> ToolCall:
    return ToolCall(id="1", function=CalledFunction(name=name, arguments=arguments))


def test_the_schema_of_a_tool_is_that_of_its_arguments():
    assert greet.offered.function.name == "greet"
    assert greet.offered.function.description == "Greet somebody."
    schema = greet.offered.function.parameters
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema == {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "description": "Whom to greet."},
            "times": {
                "type": "integer",
                "minimum": 1,
                "maximum": 3,
                "description": "How often.",
                "default": 1,
            },
        },
        "required": ["name"],
        "additionalProperties": False,
    }


def test_a_tool_has_its_own_name_and_the_name_in_the_record():
    assert (greet.name, greet.group, greet.operation, greet.reads) == (
        "greet",
        "files",
        "greet",
        True,
    )
    assert (git_commit.name, git_commit.operation) == ("git_commit", "commit")


async def test_a_call_gives_what_the_function_returns():
    output = await toolbox().run(call("greet", '{"name": "Ada", "times": 2}'))
    assert output.text == "Hello Ada! Hello Ada! "


async def test_a_number_in_quotes_is_taken_for_one():
    output = await toolbox().run(call("greet", '{"name": "Ada", "times": "2"}'))
    assert output.text == "Hello Ada! Hello Ada! "


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("greet", "{", "the arguments of greet are no JSON object"),
        ("greet", "[1]", "the arguments of greet are no JSON object"),
        ("greet", "[" * 100_000, "the arguments of greet are no JSON object"),
        ("greet", "", "wrong arguments for greet: Object missing required field `name`"),
        ("greet", '{"name": 7}', "wrong arguments for greet: Expected `str`, got `int`"),
        ("greet", '{"name": "A", "times": 9}', "Expected `int` <= 3 - at `$.times`"),
        ("greet", '{"name": "A", "loud": true}', "unknown field `loud`"),
        ("shout", "{}", "there is no tool 'shout'; there are greet"),
    ],
)
async def test_a_wrong_call_is_told_what_is_wrong(name, arguments, told):
    with pytest.raises(ToolError) as caught:
        await toolbox().run(call(name, arguments))
    assert told in str(caught.value)


async def test_a_call_that_the_role_may_not_make_is_refused():
    with pytest.raises(ToolRefused, match=r"refused: git_commit is not among .* there are greet"):
        await toolbox().run(call("git_commit", "{}"))


async def test_only_what_may_be_used_is_offered():
    assert [offer.function.name for offer in await toolbox().offered()] == ["greet"]
    assert await toolbox(allowed_tools=["git"]).offered() == []


class Changing:
    """A source of tools that has another one each time."""

    def __init__(self, *turns):
        self._turns = list(turns)

    async def tools(self):
        return self._turns.pop(0)


async def test_tools_that_come_later_are_offered_then_and_found():
    box = toolbox(Changing([], [git_commit]))
    assert [offer.function.name for offer in await box.offered()] == ["greet"]
    await box.offered()
    assert box.find("git_commit") is git_commit
    assert box.find("shout") is None


async def test_no_source_takes_the_place_of_a_tool_of_ours():
    @tool("files", reads=True)
    async def other(surroundings: Surroundings, arguments: Greet) -> ToolOutput:
        """Say something else."""
        return ToolOutput(text="no")

    other.name = "greet"
    box = toolbox(Changing([other]))
    await box.offered()
    assert box.find("greet") is greet
