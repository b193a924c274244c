import json

import pytest
from jsonschema import Draft202012Validator

from agent_actors.contract import AgentRole
from agent_actors.local.model_server.refusal import Refusal
from agent_actors.local.model_server.simulation.reply import simulate
from agent_actors.local.model_server.wire import (
    ChatRequest,
    FunctionName,
    JsonSchemaFormat,
    Message,
    NamedTool,
    ResponseFormat,
    StructuredOutputs,
    Tool,
    ToolFunction,
)
from agent_actors.strategies.prompts import ROLE_PROMPTS

TASK = "Implement a binary search tree"


def chat(system: str = "", extra: str = "", **fields) -> ChatRequest:
    messages = [
        Message(role="system", content=system),
        Message(role="user", content=f"# Task\n\n{TASK}{extra}"),
    ]
    return ChatRequest(messages=messages, **fields)


def tool(name: str, **properties) -> Tool:
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return Tool(function=ToolFunction(name=name, parameters=schema))


TEXT = {"type": "string"}
WORKSHOP = [
    tool("git_commit", message=TEXT),
    tool("workspace.read_file", path=TEXT),
    tool("workspace.write_file", path=TEXT, content=TEXT),
    tool("run_tests", command={"type": "array", "items": TEXT}),
    tool("list_files", path=TEXT),
]


def work_through(tools: list[Tool], **fields) -> list[tuple[str, dict]]:
    """Play the tool loop until the simulation answers in text; return the calls it made."""
    asked = chat(tools=tools, **fields)
    calls = []
    while (reply := simulate(asked)).calls:
        (call,) = reply.calls
        calls.append((call.name, json.loads(call.arguments)))
        asked.messages.append(Message(role="assistant", content=None))
        asked.messages.append(Message(role="tool", content=f"did {call.name}"))
    calls.append(("text", {"content": reply.content}))
    return calls


@pytest.mark.parametrize("role", list(AgentRole))
def test_every_role_quotes_the_task(role: AgentRole):
    assert TASK in simulate(chat(ROLE_PROMPTS[role])).content


def test_roles_answer_differently():
    answers = {simulate(chat(ROLE_PROMPTS[role])).content for role in AgentRole}
    assert len(answers) == len(AgentRole)


def test_the_same_request_gets_the_same_answer():
    assert simulate(chat("You are a tester")) == simulate(chat("You are a tester"))


def test_an_alternative_view_is_given_when_it_is_asked_for():
    plain, other = simulate(chat()), simulate(chat(extra="\n\n# Alternative view\n\nDiffer."))
    assert other.content.startswith(plain.content)
    assert "Alternative view" in other.content.removeprefix(plain.content)


def test_a_task_with_a_dollar_sign_is_quoted_as_it_is():
    asked = ChatRequest(messages=[Message(role="user", content="Explain $HOME and ${PATH}")])
    assert "> Explain $HOME and ${PATH}" in simulate(asked).content


def test_the_extractor_lists_every_sentence_as_a_task():
    text = "Build the API. Test it! - Deploy it"
    asked = ChatRequest(
        messages=[
            Message(role="system", content=ROLE_PROMPTS[AgentRole.TASK_EXTRACTOR]),
            Message(role="user", content=f"# Task\n\n{text}"),
        ]
    )
    tasks = json.loads(simulate(asked).content)
    assert [task["title"] for task in tasks] == ["Build the API.", "Test it!", "Deploy it"]
    assert tasks[1]["depends_on"] == ["Build the API."]


def test_json_fits_the_schema_and_speaks_of_the_task():
    schema = {
        "type": "object",
        "properties": {"title": TEXT, "steps": {"type": "array", "items": TEXT, "minItems": 2}},
        "required": ["title", "steps"],
    }
    form = ResponseFormat(
        type="json_schema", json_schema=JsonSchemaFormat(name="plan", schema=schema)
    )
    answer = json.loads(simulate(chat(response_format=form)).content)
    Draft202012Validator(schema).validate(answer)
    assert answer["title"] == TASK


def test_any_json_object_will_do_for_json_object():
    answer = json.loads(simulate(chat(response_format=ResponseFormat(type="json_object"))).content)
    assert answer["title"] == TASK


@pytest.mark.parametrize(
    ("outputs", "answer"),
    [
        (StructuredOutputs(choice=["red", "blue"]), "red"),
        (StructuredOutputs(regex="[a]{3}"), "aaa"),
        (StructuredOutputs(json={"const": 7}), "7"),
    ],
)
def test_structured_outputs_are_kept_to(outputs: StructuredOutputs, answer: str):
    assert simulate(chat(structured_outputs=outputs)).content == answer


def test_a_wrong_schema_is_refused():
    form = ResponseFormat(
        type="json_schema", json_schema=JsonSchemaFormat(name="x", schema={"type": "banana"})
    )
    with pytest.raises(Refusal, match="Invalid type: banana"):
        simulate(chat(response_format=form))


def test_the_work_uses_the_tools_in_a_sensible_order():
    names = [name for name, _ in work_through(WORKSHOP)]
    assert names == [
        "list_files",
        "workspace.write_file",
        "workspace.write_file",
        "run_tests",
        "workspace.read_file",
        "workspace.write_file",
        "run_tests",
        "git_commit",
        "text",
    ]


def test_the_written_files_are_python_that_runs():
    written = {
        arguments["path"]: arguments["content"]
        for name, arguments in work_through(WORKSHOP)
        if name == "workspace.write_file"
    }
    assert written.keys() == {"solution.py", "test_solution.py"}
    names: dict = {}
    exec(compile(written["solution.py"], "solution.py", "exec"), names)
    assert names["solve"]([3, 1, 3]) == [1, 3]
    assert names["__doc__"] == TASK
    compile(written["test_solution.py"], "test_solution.py", "exec")


def test_the_first_draft_fails_its_test_and_the_second_passes():
    drafts = [
        arguments["content"]
        for name, arguments in work_through(WORKSHOP)
        if name == "workspace.write_file" and arguments["path"] == "solution.py"
    ]
    solved = []
    for draft in drafts:
        names: dict = {}
        exec(compile(draft, "solution.py", "exec"), names)
        solved.append(names["solve"]([3, 1, 3]) == [1, 3])
    assert solved == [False, True]


def test_the_work_ends_with_the_tool_that_says_so():
    names = [name for name, _ in work_through([*WORKSHOP, tool("finish", answer=TEXT)])]
    assert names[-2:] == ["finish", "text"]


def test_a_command_is_given_as_the_tool_wants_it():
    as_text, as_list = (
        tool("bash", command=TEXT),
        tool("run_command", argv=WORKSHOP[3].function.parameters["properties"]["command"]),
    )
    assert work_through([as_text])[0] == ("bash", {"command": "python -m pytest -q"})
    assert work_through([as_list])[0][1]["argv"] == ["python", "-m", "pytest", "-q"]


def test_strange_tools_are_each_tried_once():
    tools = [tool("get_weather", city={"enum": ["Paris", "Rome"]}), tool("lookup_order", id=TEXT)]
    assert [name for name, _ in work_through(tools)] == ["get_weather", "lookup_order", "text"]
    assert work_through(tools)[0][1] == {"city": "Paris"}


def test_the_last_text_tells_what_the_tools_said():
    content = work_through(WORKSHOP)[-1][1]["content"]
    assert TASK in content
    assert "4. did run_tests" in content


def test_no_tool_is_called_when_the_choice_is_none():
    assert [name for name, _ in work_through(WORKSHOP, tool_choice="none")] == ["text"]


def test_a_required_tool_is_called_even_when_the_work_is_done():
    asked = chat(tools=[tool("get_weather", city=TEXT)], tool_choice="required")
    asked.messages.append(Message(role="tool", content="sunny"))
    assert simulate(asked).calls[0].name == "get_weather"


def test_a_named_tool_is_called():
    named = NamedTool(function=FunctionName(name="git_commit"))
    assert simulate(chat(tools=WORKSHOP, tool_choice=named)).calls[0].name == "git_commit"


def test_a_tool_without_parameters_is_called_with_none():
    asked = chat(tools=[Tool(function=ToolFunction(name="ping"))])
    assert simulate(asked).calls[0].arguments == "{}"


def test_arguments_fit_the_tool_even_where_the_plan_does_not():
    odd = tool("write_file", path={"type": "integer"}, content={"enum": ["x"]})
    assert work_through([odd])[0] == ("write_file", {"path": 1, "content": "x"})
