"""The proposal strategy, with a model that is scripted."""

import subprocess
import sys
from typing import Any

import msgspec
import pytest

from agent_actors.contract import AgentTask, Proposal, Usage, constraints_of
from agent_actors.errors import (
    AnswerEmpty,
    AnswerInvalid,
    AnswerTruncated,
    InvalidTask,
    ModelUnavailable,
)
from agent_actors.json_schema import BrokenSchema, compiled, mismatch
from agent_actors.ports import (
    AgentConfig,
    AttemptRecord,
    ChatReply,
    ChatRequest,
    ExecutionRequest,
)
from agent_actors.strategies.proposal import GenerateProposal

USAGE = Usage(prompt_tokens=11, completion_tokens=7, total_tokens=18)
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name"],
}


class ScriptedModel:
    """Answers with what it was given, and keeps what it was asked."""

    def __init__(
        self, content: str = "Use a deque.", finish_reason: str = "stop", model: str = "tiny"
    ) -> None:
        self.reply = ChatReply(
            content=content, finish_reason=finish_reason, model=model, usage=USAGE
        )
        self.asked: list[ChatRequest] = []

    async def chat(self, request: ChatRequest) -> ChatReply:
        self.asked.append(request)
        return self.reply

    async def close(self) -> None: ...


def request(
    response_format: dict[str, Any] | None = None,
    *,
    diversity: bool = False,
    temperature: float = 0.7,
) -> ExecutionRequest:
    constraints = {"response_format": response_format} if response_format is not None else {}
    task = AgentTask(
        task_id="t-1",
        task_description="Implement a queue",
        constraints=constraints,
        diversity=diversity,
    )
    agent = AgentConfig(
        agent_id="a-1", role="DEV", model="asked-for", temperature=temperature, max_tokens=99
    )
    return ExecutionRequest(task=task, constraints=constraints_of(task), agent=agent, timeout_s=1.0)


def schema_format(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, **more}}


async def run(model: ScriptedModel, asked: ExecutionRequest) -> AttemptRecord:
    record = AttemptRecord()
    await GenerateProposal(model).run(asked, record)
    return record


async def test_the_answer_is_the_proposal():
    record = await run(ScriptedModel(), request())
    assert record.proposal == Proposal(
        content="Use a deque.",
        author_id="a-1",
        author_role="DEV",
        model="tiny",
        temperature=0.7,
        tokens=7,
    )
    assert (record.model, record.usage) == ("tiny", USAGE)


async def test_the_audit_trail_tells_how_the_model_answered():
    (event,) = (await run(ScriptedModel(), request())).audit_trail
    assert event.event == "model.answered"
    assert event.detail == {
        "model": "tiny",
        "finish_reason": "stop",
        "prompt_tokens": 11,
        "completion_tokens": 7,
    }


async def test_the_model_is_asked_as_the_agent_is_configured():
    model = ScriptedModel()
    await run(model, request())
    (asked,) = model.asked
    assert (asked.model, asked.temperature, asked.max_tokens) == ("asked-for", 0.7, 99)
    assert asked.response_format is None
    assert "Implement a queue" in (asked.messages[-1].content or "")


async def test_a_server_that_does_not_name_its_model_is_taken_at_our_word():
    record = await run(ScriptedModel(model=""), request())
    assert record.model == "asked-for"
    assert record.proposal is not None
    assert record.proposal.model == "asked-for"


@pytest.mark.parametrize(("asked", "used"), [(0.7, 0.91), (1.9, 2.0), (0.0, 0.0), (1.0, 1.3)])
async def test_diversity_raises_the_temperature(asked: float, used: float):
    model = ScriptedModel()
    record = await run(model, request(diversity=True, temperature=asked))
    assert model.asked[0].temperature == used
    assert record.proposal is not None
    assert record.proposal.temperature == used
    assert "# Alternative view" in (model.asked[0].messages[-1].content or "")


async def test_a_truncated_answer_fails_and_is_kept():
    record = AttemptRecord()
    with pytest.raises(AnswerTruncated, match=r"max_tokens \(99\)"):
        await GenerateProposal(ScriptedModel("Use a", "length")).run(request(), record)
    assert record.proposal is not None
    assert record.proposal.content == "Use a"
    assert record.usage == USAGE


async def test_an_answer_cut_off_before_its_first_word_is_truncated_rather_than_empty():
    record = AttemptRecord()
    with pytest.raises(AnswerTruncated):
        await GenerateProposal(ScriptedModel("", "length")).run(request(), record)
    assert record.proposal is None


@pytest.mark.parametrize("content", ["", "  \n\t"])
async def test_an_empty_answer_fails(content: str):
    record = AttemptRecord()
    with pytest.raises(AnswerEmpty, match="finish_reason stop"):
        await GenerateProposal(ScriptedModel(content)).run(request(), record)
    assert record.proposal is None
    assert record.usage == USAGE


async def test_what_the_client_raises_is_passed_on():
    class Away(ScriptedModel):
        async def chat(self, request: ChatRequest) -> ChatReply:
            raise ModelUnavailable(f"nobody for {request.model}")

    with pytest.raises(ModelUnavailable, match="nobody for asked-for"):
        await run(Away(), request())


@pytest.mark.parametrize(
    ("response_format", "answer"),
    [
        ({"type": "text"}, "no JSON"),
        ({"type": "json_object"}, '{"any": ["thing"]}'),
        (schema_format(PERSON, strict=True), ' {"name": "Ada", "age": 36}\n'),
        (schema_format({"type": "integer"}), "5"),
        (schema_format({}), "null"),
        (schema_format({"$defs": {"a": {"type": "null"}}, "$ref": "#/$defs/a"}), "null"),
        (
            schema_format(
                {
                    "$schema": "http://json-schema.org/draft-07/schema#",
                    "definitions": {"a": {"type": "null"}},
                    "items": {"$ref": "#/definitions/a"},
                }
            ),
            "[null]",
        ),
        (
            schema_format(
                {
                    "$id": "https://example.com/root",
                    "$defs": {"a": {"$id": "part", "type": "null"}},
                    "items": {"$ref": "part"},
                }
            ),
            "[null]",
        ),
        (schema_format({"properties": {"$ref": {"type": "string"}}}), '{"$ref": "x"}'),
    ],
)
async def test_an_answer_of_the_asked_form_passes(response_format: dict[str, Any], answer: str):
    model = ScriptedModel(answer)
    record = await run(model, request(response_format))
    assert record.proposal is not None
    assert record.proposal.content == answer
    assert model.asked[0].response_format == response_format


@pytest.mark.parametrize(
    ("response_format", "answer", "message"),
    [
        ({"type": "json_object"}, "Sure! {}", "the answer is no JSON"),
        ({"type": "json_object"}, "[1]", "the answer is JSON, but no object"),
        (schema_format(PERSON), "Sure!", "the answer is no JSON"),
        (schema_format(PERSON), "[" * 100_000, "the answer is no JSON"),
        (schema_format(PERSON), '{"age": 5}', r"at \$: 'name' is a required property"),
        (
            schema_format(PERSON),
            '{"name": "Ada", "age": "old"}',
            r"at \$\.age: 'old' is not of type 'integer'",
        ),
        (
            schema_format({"items": {"items": {"maximum": 3}}}),
            "[[1, 2], [3, 4]]",
            r"at \$\[1\]\[1\]: 4 is greater than the maximum of 3",
        ),
    ],
)
async def test_an_answer_of_another_form_fails_with_where_and_why(
    response_format: dict[str, Any], answer: str, message: str
):
    record = AttemptRecord()
    with pytest.raises(AnswerInvalid, match=message):
        await GenerateProposal(ScriptedModel(answer)).run(request(response_format), record)
    assert record.proposal is not None
    assert record.proposal.content == answer


async def test_what_is_wrong_with_a_long_answer_is_told_in_short():
    answer = msgspec.json.encode({"name": ["x" * 10_000]}).decode()
    with pytest.raises(AnswerInvalid) as raised:
        await run(ScriptedModel(answer), request(schema_format(PERSON)))
    assert len(str(raised.value)) < 700


@pytest.mark.parametrize(
    ("response_format", "message"),
    [
        (
            {"type": "xml"},
            "constraints.response_format.type: is 'xml', must be one of text, json_object, json_s",
        ),
        ({}, "constraints.response_format.type: is None"),
        ({"type": "json_schema"}, "constraints.response_format.json_schema.schema: must be"),
        (schema_format("x"), "constraints.response_format.json_schema.schema: must be"),
        (
            schema_format({"type": "banana"}),
            "constraints.response_format.json_schema.schema.type: 'banana' is not valid",
        ),
        (
            schema_format({"properties": {"a": {"minimum": "x"}}}),
            "constraints.response_format.json_schema.schema.properties.a.minimum: 'x' is not of",
        ),
        (
            schema_format({"pattern": "("}),
            "constraints.response_format.json_schema.schema.pattern: '(' is not a 'regex'",
        ),
        (
            schema_format({"$schema": 5}),
            "constraints.response_format.json_schema.schema.$schema: must be the URL",
        ),
        (
            schema_format({"$ref": "#/$defs/nowhere"}),
            "constraints.response_format.json_schema.schema: the reference '/$defs/nowhere'",
        ),
    ],
)
async def test_a_broken_format_is_the_tasks_fault_and_never_reaches_the_model(
    response_format: dict[str, Any], message: str
):
    model = ScriptedModel("{}")
    with pytest.raises(InvalidTask) as raised:
        await run(model, request(response_format))
    assert str(raised.value).startswith(message)
    assert model.asked == []


@pytest.mark.parametrize("keyword", ["$ref", "$dynamicRef"])
@pytest.mark.parametrize(
    "reference", ["http://127.0.0.1:9/schema.json", "file:///etc/passwd", "other.json"]
)
async def test_a_reference_to_another_document_is_refused_and_not_fetched(
    keyword: str, reference: str, monkeypatch: pytest.MonkeyPatch
):
    def fetch(*args: object, **_: object) -> None:
        pytest.fail(f"fetched {args}")

    monkeypatch.setattr("urllib.request.urlopen", fetch)
    schema = {"type": "object", "properties": {"a": {"anyOf": [{keyword: reference}]}}}
    with pytest.raises(InvalidTask, match="leads nowhere within the schema") as raised:
        await run(ScriptedModel("{}"), request(schema_format(schema)))
    assert reference in str(raised.value)


async def test_a_reference_that_only_shows_itself_with_the_answer_is_the_tasks_fault():
    schema = {"elsewhere": {"items": {"$ref": "http://127.0.0.1:9/x"}}, "$ref": "#/elsewhere"}
    with pytest.raises(InvalidTask, match=r"'http://127\.0\.0\.1:9/x' leads nowhere"):
        await run(ScriptedModel("[1]"), request(schema_format(schema)))


async def test_a_schema_that_refers_to_itself_without_end_is_the_tasks_fault():
    with pytest.raises(InvalidTask, match="refers to itself without end"):
        await run(ScriptedModel("{}"), request(schema_format({"$ref": "#"})))


def test_tasks_without_a_schema_do_not_pay_for_its_library():
    program = "import sys, agent_actors.strategies.proposal\nsys.exit('jsonschema' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"anyOf": [{"$ref": "#"}]},
        {"not": {"$ref": "#/$defs/a"}, "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}},
    ],
)
def test_a_schema_that_leads_back_to_itself_is_refused_before_use(schema):
    with pytest.raises(BrokenSchema, match="without end"):
        compiled(msgspec.json.encode(schema))


def test_a_schema_that_refers_to_itself_for_a_part_of_the_value_is_fine():
    validator = compiled(b'{"type": "object", "properties": {"child": {"$ref": "#"}}}')
    assert mismatch(validator, {"child": {"child": {}}}) == ""
    assert mismatch(validator, {"child": {"child": 5}}).startswith("at $.child.child: ")


def test_a_pattern_that_takes_for_ever_is_given_up():
    validator = compiled(b'{"pattern": "^(([a-z])+.)+[A-Z]([a-z])+$"}')
    assert "takes too long" in mismatch(validator, "a" * 5_000)


@pytest.mark.parametrize(
    "keyword", ["patternProperties", "unevaluatedItems", "unevaluatedProperties"]
)
def test_keywords_without_a_bound_are_refused(keyword):
    with pytest.raises(BrokenSchema, match=keyword):
        compiled(msgspec.json.encode({"properties": {"a": {keyword: {"^x": {}}}}}))


def test_a_draft_of_a_part_is_refused_since_patterns_would_be_checked_without_a_bound():
    part = {"$schema": "http://json-schema.org/draft-07/schema#", "pattern": "^(a|a)*$"}
    with pytest.raises(BrokenSchema, match=r"\$schema below its top"):
        compiled(msgspec.json.encode({"type": "object", "properties": {"x": part}}))


def test_a_pattern_is_bounded_also_where_the_schema_refers_to_its_top():
    draft = "http://json-schema.org/draft-07/schema#"
    schema = {"$schema": draft, "pattern": "^(([a-z])+.)+[A-Z]([a-z])+$", "items": {"$ref": "#"}}
    assert "takes" in mismatch(compiled(msgspec.json.encode(schema)), ["a" * 5_000])


@pytest.mark.parametrize(
    ("items", "fits"),
    [
        ([1, 2, 1.5], True),
        ([1, True, "1", None, [1], {"a": 1}], True),
        ([1, 1.0], False),
        ([{"a": 1, "b": [2]}, {"b": [2.0], "a": 1}], False),
        (["x", "y", "x"], False),
    ],
)
def test_items_are_unique_as_json_schema_understands_it(items, fits):
    assert (mismatch(compiled(b'{"uniqueItems": true}'), items) == "") == fits


def test_many_items_are_compared_in_one_pass():
    items = [{"name": f"item {number}", "tags": ["a", "b"]} for number in range(100_000)]
    validator = compiled(b'{"uniqueItems": true}')
    assert mismatch(validator, items) == ""
    assert "has an item twice" in mismatch(validator, [*items, items[0]])


def test_a_schema_that_doubles_the_work_with_each_line_is_given_up():
    doubling = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)}
    schema = {"$defs": doubling | {"d40": {"type": "string"}}, "$ref": "#/$defs/d0"}
    validator = compiled(msgspec.json.encode(schema))
    assert mismatch(validator, "x") == "checking it takes longer than 0.25 s"
