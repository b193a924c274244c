"""The wire contract: messages of every version are read for ever, and bad ones are named."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from agent_actors import contract
from agent_actors.announcement import announcements, result_message
from agent_actors.contract import (
    AgentResult,
    AgentTask,
    ArtifactRef,
    Constraints,
    TaskEvent,
    TaskStatus,
    decode_task,
    encode,
    header_text,
    peek_task_id,
    role_token,
    schema,
    task_subject,
)
from agent_actors.errors import InvalidTask
from agent_actors.ledger import DeadLetterReason, Source, TaskRecord
from agent_actors.oversize import fit_dead_letter
from agent_actors.ports import ActorReport, Delivery, HandSize, Message

GOLDEN = Path(__file__).parents[1] / "contract"
SUBJECT = "agent.tasks.dev"
MAX_BYTES = 10_000_000

# What a golden file holds is told by the first word of its name.
KINDS: dict[str, type[Struct]] = {
    "task": AgentTask,
    "result": AgentResult,
    "event": TaskEvent,
    "status": TaskStatus,
    "ledger": TaskRecord,
}

# As `sha256sum v1/*` prints it. An old message stays as it is; a new kind of it is a new file.
PINNED = """
44ad311ce9bfbfb1cb4dd67839e9c6e639fcd1150bd2f2a612a77457d2f439d0  v1/deadletter_headers.json
12a85b25291f70635d899da8850669578feec7dd128f66d7f6c38fbb0cefe796  v1/deadletter_moved_headers.json
f181ab0ef21859dc05f084c3e7373a54b74a7973d3a1e766100d8bd0bb2aa81f  v1/event_finished.json
bf00b15463b33e8af5f81e6122b12022ca415d00bc8a2bf333e89ebe2605d33a  v1/event_retry.json
c4c927e563e2655b5e9c1775821da2316538ee61b2b61d11a7a82b8b38b97819  v1/event_started.json
9ddc47ce913e3e82eecd574f2efef5ba51682c5067deb7564f6fe9504aec9d36  v1/event_token.json
454b5fa737ce819f24ba4268acad6088492e4ec06475b3350a9f730ad36c6a66  v1/event_tool_call.json
1f97243a0a1fab661bf813282e0949485812b2f28427696eb891f01f3c02d826  v1/event_tool_result.json
94c504df55cd2c1472b19d658d4ca36c7065d83e02acd5d9fd635cab7485c76d  v1/ledger_cancelled.json
560d005c43dd3fed134715bbac4a7cb5bfa14cc090979af1c66cad4d9735aeba  v1/ledger_completed.json
f583efa1a9769b4c40dd65bbc178bb854702ead07ff98e87ae893ec733ab52a0  v1/ledger_failed.json
e6745ab510fd0478fe2bcc10e63b6edc7a84c15e289491b26071a08fcece0204  v1/ledger_lost.json
f875d538993fcb64883301637f238d940a0aedfba747d49228311f2a0e451347  v1/ledger_running.json
098480091fc1ef8e269f3f5b059fe958c1a3284deff9a25723008d1c721571e6  v1/ledger_suspect.json
86e835adb0139934a645f627e696f634f60dc2c1ad994fa813c3709f2d35a218  v1/ledger_turns.json
c46b5b807bad4de71368ad607c5b2d9cfa0483ac21e66357f4a888ef8448fbbe  v1/ledger_waiting.json
66adbc82f3135f20f1cf33d8d029538ba73965f820f7b6a174bf65ebe28283ea  v1/result_artifacts.json
aff800de48665ffadc8ca53b6ec1568ce1f7cbd2993f77a464086aa965715724  v1/result_completed.json
a2f6d5b0506d75b7a908849ec6a1c8911a825da50805055f36caac81b26ac4ea  v1/result_failed.json
d0c417c6c83585b07bc85ca0051959cb06be13be3bcb6706895aa6638695c1d3  v1/result_headers.json
8f79362ba5425006485f207e854e1490e8909c1e2be8bcb752026ff2101cd40e  v1/result_minimal.json
92cdde8a332c64da50e237da3bb4dfe8ac7802c0afe999d31f66b1950e85053b  v1/status_cancel_requested.json
e507ebb5873161fd34ba7441aa343dc7a8bbb3b8d1192b640b034e8cf9daf3d8  v1/status_completed.json
d6056a35d9e3a751505fd9e5e4ca685256f719507771c9faec389c2a0db06047  v1/status_failed.json
ca94ce81e11b2f3a20027fdd4fcdc575dc87dbd48e7ab305d206dcc54ef5598b  v1/status_running.json
1e0339ceab1cc6e78c932e3e5fb94a59d8f0654b6a6371e9ed1c65a0e28022f7  v1/status_unknown.json
8422ae701310ee5a3fa86671943f926999d8dfbf0da6e4c13584485eb807d42a  v1/status_waiting.json
d868bf00d8809068db0f36cb2847428e8699823eb2163d5302d42bbb3ee90fac  v1/task_full.json
7e53eb5bba2a109e55198fc760a2b249164d873d3b4a4b66959ed9ecdfc7aebd  v1/task_minimal.json
7d39abb4523a03a240b73cd82eab2eecddcb7844aae44de9ae1e0b944318149c  v1/task_tools.json
b55adf6207a671988ba99de48c75a318095795d9578d143dd524721741ce4a5f  v1/task_unicode_id.json
59dee5bdaf0e4f0b00bfe08044b9e3dd3d87658e5ad2126ab7323b522ded2cf7  v1/task_unknown_fields.json
"""


def golden(pattern: str) -> list[str]:
    """Return the golden messages that match, as ids for parametrize."""
    paths = (path.relative_to(GOLDEN) for path in GOLDEN.glob(f"*/{pattern}.json"))
    return sorted(str(path) for path in paths if not path.stem.endswith("_headers"))


def read(name: str) -> bytes:
    return (GOLDEN / name).read_bytes()


def decoded(name: str) -> Struct:
    return msgspec.json.decode(read(name), type=KINDS[Path(name).stem.partition("_")[0]])


# Old messages.


def test_golden_files_are_never_changed_and_never_forgotten():
    files = (path for path in GOLDEN.rglob("*") if path.is_file())
    sums = {
        f"{sha256(path.read_bytes()).hexdigest()}  {path.relative_to(GOLDEN)}" for path in files
    }
    assert sums == set(PINNED.split("\n")) - {""}


@pytest.mark.parametrize("name", golden("*"))
def test_an_old_message_means_the_same_after_decoding_and_encoding(name):
    message = decoded(name)
    again = encode(message)
    assert msgspec.json.decode(again, type=type(message)) == message
    known = {field.encode_name for field in msgspec.structs.fields(type(message))}
    old = {key: value for key, value in json.loads(read(name)).items() if key in known}
    assert_contains(json.loads(again), old)


def assert_contains(ours: Any, old: Any) -> None:
    """Assert that ours says what the old one says; it may say defaults beside it."""
    if isinstance(old, dict):
        for key, value in old.items():
            assert_contains(ours[key], value)
    elif isinstance(old, list):
        assert len(ours) == len(old)
        for our_item, item in zip(ours, old, strict=True):
            assert_contains(our_item, item)
    else:
        assert ours == old


@pytest.mark.parametrize("name", golden("task_*"))
def test_an_old_task_is_accepted_as_a_delivery(name):
    task, constraints = decode_task(read(name), SUBJECT, max_bytes=MAX_BYTES)
    assert task.role == "DEV"
    assert task.constraints == json.loads(read(name)).get("constraints", {})
    assert constraints.timeout == task.constraints.get("timeout")


@pytest.mark.parametrize("name", [*golden("task_*"), *golden("result_*"), *golden("event_*")])
def test_the_schema_accepts_old_messages(name):
    validator(decoded(name)).validate(json.loads(read(name)))


@pytest.mark.parametrize("name", [*golden("task_*"), *golden("result_*"), *golden("event_*")])
def test_the_schema_accepts_what_we_send(name):
    message = decoded(name)
    validator(message).validate(json.loads(encode(message)))


def validator(message: Struct) -> jsonschema.Draft202012Validator:
    """Return a validator for this kind of message alone, checking formats too."""
    whole = schema()
    jsonschema.Draft202012Validator.check_schema(whole)
    return jsonschema.Draft202012Validator(
        {"$ref": f"#/$defs/{type(message).__name__}", "$defs": whole["$defs"]},
        format_checker=jsonschema.FormatChecker(),
    )


def test_each_kind_of_message_matches_the_schema_as_a_whole():
    whole = jsonschema.Draft202012Validator(schema())
    for name in (*golden("task_*"), *golden("result_*"), *golden("event_*")):
        whole.validate(json.loads(read(name)))


@pytest.mark.parametrize(
    "change",
    [
        {"task_id": ""},
        {"task_id": "x" * 129},
        {"task_id": 7},
        {"task_description": ""},
        {"temperature": 2.5},
        {"max_tokens": 0},
        {"constraints": {"timeout": 0}},
        {"constraints": {"metadata": []}},
        {"constraints": []},
        {"model": "m" * 257},
    ],
    ids=str,
)
def test_the_schema_refuses_what_we_refuse(change):
    task = {"task_id": "t", "task_description": "d"} | change
    assert not validator(AgentTask(task_id="t", task_description="d")).is_valid(task)
    with pytest.raises(InvalidTask):
        decode_task(encode(task), SUBJECT, max_bytes=MAX_BYTES)


def structs_in(value: Any) -> Iterator[Struct]:
    match value:
        case AgentTask():
            yield msgspec.convert(value.constraints, Constraints)
        case AgentResult():
            yield from (
                msgspec.convert(part, ArtifactRef)
                for part in value.artifacts.values()
                if isinstance(part, dict)
            )
    match value:
        case Struct():
            yield value
            yield from structs_in(list(msgspec.structs.asdict(value).values()))
        case list():
            for item in value:
                yield from structs_in(item)


def test_every_field_has_a_golden_message_that_uses_it():
    used: dict[type[Struct], set[str]] = {}
    for name in golden("*"):
        for found in structs_in(decoded(name)):
            used.setdefault(type(found), set()).update(
                field.name
                for field in msgspec.structs.fields(found)
                if getattr(found, field.name) != default_of(field)
            )
    assert set(used) >= {*KINDS.values(), Constraints, ArtifactRef, Source, DeadLetterReason}
    for kind, names in used.items():
        assert names == {field.name for field in msgspec.structs.fields(kind)}, kind.__name__


def default_of(field: msgspec.structs.FieldInfo) -> Any:
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return field.default


# What our processes say to each other, of whatever version they are.
BETWEEN_US = (TaskRecord, Source, DeadLetterReason, ActorReport, Delivery, HandSize)


def wire_structs() -> dict[str, type[Struct]]:
    """Return every Struct on the wire, in a bucket or between two actors of Ray, by name."""
    public = (
        kind
        for name, kind in vars(contract).items()
        if isinstance(kind, type) and issubclass(kind, Struct) and not name.startswith("_")
    )
    return {kind.__name__: kind for kind in (*public, *BETWEEN_US) if kind is not Struct}


# Every Struct with its first fields: `!` behind the required ones, else the default as JSON.
FIRST_FIELDS = """
Constraints: rubric=null requirements=null context=null metadata=null timeout=null deadline=null
    max_operations=null max_iterations=null token_budget=null abort_on_error=null workspace=null
    response_format=null
AgentTask: task_id! task_description! role="" enable_tools=null diversity=false constraints={}
    model=null temperature=null max_tokens=null
Usage: prompt_tokens=0 completion_tokens=0 total_tokens=0
Proposal: content! author_id! author_role! model! temperature! tokens=0
Operation: tool! operation! params={} success=false duration_ms=0.0 error=null summary=null
AuditEvent: time! event! detail={}
ArtifactRef: object! size! sha256!
AgentResult: task_id! agent_id! role! status! success! duration_ms! timestamp! proposal=null
    operations=[] artifacts={} audit_trail=[] error=null error_type=null model=""
    enable_tools=false diversity=false constraints={} attempt=0
    usage=Usage
TaskEvent: task_id! kind! time! agent_id="" attempt=0 detail={}
ResultRequest: task_id!
DrainRequest: cluster! only_ask=false grace_s=null
DrainReply: cluster! draining! running!
ScaleRequest: cluster! pool! actors=null
ScaleReply: cluster! pool! wanted! before! sized_by!
ConfigReply: cluster! config! trouble=""
CancelRequest: task_id!
CancelReply: task_id! state!
TaskStatus: task_id! state! attempt=0 agent_id="" result=null
EndpointStatus: url! limit! in_flight! waiting=-1
ActorStatus: agent_id! state! slots! slots_used! pid=0
PoolStatus: name! subjects! state! reason="" actors=[] slots=0 slots_used=0 pending=-1 unacked=-1
    settled=0
ServiceStatus: version! supervisor_id! started! pools!
Health: ok! reasons=[]
DeadLetter: stream_seq! time! role! reason! error="" attempts=0 generation=0 task_id="" subject=""
    source="" headers={} size=0 payload="" object=null
Replay: stream_seq! task_id! generation! state! already=false
TaskRecord: task_id! state! source! content! updated! attempt=0 failures=0 postponed=0
    generation=0 agent_id="" lease="" result= dead_letter=null
Source: stream_seq! consumer! consumer_created! num_delivered!
DeadLetterReason: reason! error!
ActorReport: incarnation! pid! version! slots! free! free_bytes! model_away=false alone=false
    stopping=false trouble="" unable=false refused=[] finished=[] held=[] sandbox="" process=""
    built_from="" package="" node=""
Delivery: subject! reply! payload! headers! stream! source!
HandSize: actors! configured!
"""


def first_fields() -> dict[str, set[str]]:
    table: dict[str, set[str]] = {}
    for word in FIRST_FIELDS.split():
        if word.endswith(":"):
            table[name := word.removesuffix(":")] = set()
        else:
            table[name].add(word)
    return table


def test_every_struct_on_the_wire_is_in_the_table_of_fields():
    assert set(wire_structs()) == set(first_fields())


@pytest.mark.parametrize(("name", "first"), first_fields().items(), ids=first_fields())
def test_no_field_disappears_or_gets_another_default_and_new_ones_have_one(name, first):
    now = {described(field) for field in msgspec.structs.fields(wire_structs()[name])}
    assert now >= first
    assert not [field for field in now - first if field.endswith("!")]


def described(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return f"{field.encode_name}!"
    match default_of(field):
        case Struct() as default:
            return f"{field.encode_name}={type(default).__name__}"
        case msgspec.Raw():
            return f"{field.encode_name}="
        case default:
            return f"{field.encode_name}={encode(default).decode()}"


@pytest.mark.parametrize("kind", wire_structs().values(), ids=wire_structs())
def test_unknown_fields_are_ignored_so_that_old_readers_read_new_messages(kind):
    assert not kind.__struct_config__.forbid_unknown_fields
    assert not kind.__struct_config__.array_like
    assert kind.__struct_config__.frozen


@pytest.mark.parametrize("name", golden("*"))
def test_what_a_newer_version_says_beside_what_we_know_changes_nothing(name):
    message = decoded(name)
    newer = encode(with_more_fields(message))
    assert newer.count(b"added_later") >= 1
    assert msgspec.json.decode(newer, type=type(message)) == message


def with_more_fields(value: Any) -> Any:
    """Return what a newer version may send: a field more in every Struct, whatever it holds."""
    match value:
        case Struct():
            fields = msgspec.structs.asdict(value)
            known = {name: with_more_fields(inner) for name, inner in fields.items()}
            said = {name: inner for name, inner in known.items() if inner != msgspec.Raw()}
            return said | {"added_later": {"deep": [1, None]}}
        case list():
            return [with_more_fields(inner) for inner in value]
        case _:
            return value


def test_actors_of_newer_and_older_versions_can_be_heard():
    report = ActorReport(
        incarnation="i", pid=1, version=2, slots=3, free=2, free_bytes=4, held=[DELIVERY]
    )
    newer = msgspec.msgpack.encode(with_more_fields(report))
    assert newer.count(b"added_later") == 3
    assert msgspec.msgpack.decode(newer, type=ActorReport) == report
    first = {"incarnation": "i", "pid": 1, "version": 2, "slots": 3, "free": 2, "free_bytes": 4}
    oldest = msgspec.msgpack.decode(msgspec.msgpack.encode(first), type=ActorReport)
    assert (oldest.held, oldest.built_from, oldest.package) == ([], "", "")


# Headers.

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
DELIVERY = Delivery(
    subject="agent.tasks.dev",
    reply="$JS.ACK.x",
    payload=b'{"task_id": "job/\xc3\xbc"}',
    headers={"traceparent": TRACE, "X-Team": "trees", "Nats-Msg-Id": "theirs"},
    stream="AGENT_TASKS",
    source=Source(stream_seq=17, consumer="c", consumer_created=1, num_delivered=1),
)


def golden_headers(name: str) -> dict[str, str]:
    return json.loads(read(f"v1/{name}_headers.json"))


def test_a_dead_letter_carries_the_headers_it_always_did():
    record = TaskRecord(
        task_id="job/ü",
        state="failed",
        source=DELIVERY.source,
        content="",
        updated=datetime(2026, 11, 22, tzinfo=UTC),
        attempt=3,
        generation=2,
        result=msgspec.Raw(read("v1/result_failed.json")),
        dead_letter=DeadLetterReason(reason="StrategyCrashed", error="KeyError: 'x'\nat line two"),
    )
    _, letter = announcements(record, DELIVERY)
    assert letter.headers == golden_headers("deadletter")
    assert letter.subject == "agent.deadletter.dev"
    assert letter.payload == DELIVERY.payload


def test_a_result_carries_the_headers_it_always_did():
    result = msgspec.json.decode(read("v1/result_completed.json"), type=AgentResult)
    payload = encode(msgspec.structs.replace(result, task_id="job/ü"))
    message = result_message(payload, "job=2F=C3=BC", DELIVERY.headers)
    assert message.headers == golden_headers("result")
    assert message.subject == "agent.response.completed"


class Shelf:
    """An object store that keeps one thing."""

    async def put(self, name: str, data: bytes) -> ArtifactRef:
        return ArtifactRef(object=name, size=len(data), sha256=sha256(data).hexdigest())


async def test_a_dead_letter_that_was_moved_says_where_it_is():
    letter = Message(
        subject="agent.deadletter.dev",
        payload=b"x" * 2**20,
        headers={"Nats-Msg-Id": "task-big"},
    )
    moved = await fit_dead_letter(letter, max_bytes=2**20, store=Shelf())
    assert moved.headers == golden_headers("deadletter_moved")


@pytest.mark.parametrize(
    ("text", "header"),
    [
        ("one\r\nNats-Msg-Id: evil\n", "one Nats-Msg-Id: evil"),
        ("nul\x00 and esc\x1b[31m", "nul and esc [31m"),
        ("lone \udcff surrogate", "lone surrogate"),
        ("ünïcode stays", "ünïcode stays"),
        ("x" * 5_000, "x" * 4_000),
    ],
)
def test_a_header_is_one_line_that_can_be_sent(text, header):
    assert header_text(text) == header


@given(st.text(st.characters()))
def test_any_text_can_become_a_header(text):
    header = header_text(text)
    assert header.isprintable()
    assert header.encode().decode() == header


# Subjects.


def test_a_role_has_its_subject_and_back():
    assert task_subject("DEV") == "agent.tasks.dev"
    assert task_subject("") == "agent.tasks.task"
    assert role_token("agent.tasks.dev") == "dev"
    assert role_token("agent.tasks.a.b") == "a-b"


# Bad messages.

NINES = b"9" * 400
MANY_NINES = b"9" * 5_000
DEEP = 100_000
PROBLEM = re.compile(r"^(payload|[a-z_]+(\.[a-z_]+|\[\.\.\.\])*): ")


def task_with(extra: bytes) -> bytes:
    return b'{"task_id": "t", "task_description": "d", ' + extra + b"}"


def constrained(constraints: bytes) -> bytes:
    return task_with(b'"constraints": ' + constraints)


BAD = {
    "nothing": (b"", "payload: is not JSON"),
    "not JSON": (b"Implement a tree", "payload: is not JSON"),
    "half of it": (b'{"task_id": "t", "task_desc', "payload: is not JSON"),
    "trailing garbage": (task_with(b'"x": 1') + b"x", "payload: is not JSON.*trailing"),
    "two messages": (task_with(b'"x": 1') * 2, "payload: is not JSON.*trailing"),
    "NaN": (constrained(b'{"x": NaN}'), "payload: is not JSON"),
    "infinity": (constrained(b'{"x": -Infinity}'), "payload: is not JSON"),
    "an array": (b"[1, 2]", "payload: expected `object`, got `array`"),
    "a string": (b'"task"', "payload: expected `object`, got `str`"),
    "null": (b"null", "payload: expected `object`, got `null`"),
    "invalid UTF-8 in a value": (b'{"task_id": "\xff"}', "payload: is not UTF-8, see byte 13"),
    "invalid UTF-8 where nobody looks": (task_with(b'"x": "\xff"'), "payload: is not UTF-8"),
    "UTF-16": ('{"task_id": "t"}'.encode("utf-16"), "payload: is not UTF-8"),
    "a byte order mark": (b"\xef\xbb\xbf" + task_with(b'"x": 1'), "payload: is not JSON"),
    "a lone surrogate": (task_with(rb'"role": "\ud800x"'), "payload: is not JSON"),
    "a surrogate in UTF-8": (task_with(b'"x": "\xed\xa0\x80"'), "payload: is not UTF-8"),
    "too long": (
        task_with(b'"x": "' + b"x" * MAX_BYTES + b'"'),
        "payload: is 1.* at most 10000000",
    ),
    "deep arrays": (
        constrained(b'{"x": ' + b"[" * DEEP + b"]" * DEEP + b"}"),
        "payload: is nested",
    ),
    "deep objects": (constrained(b'{"x":' * DEEP + b"1" + b"}" * DEEP), "payload: is nested"),
    "deep and ignored": (task_with(b'"x": ' + b"[" * DEEP + b"]" * DEEP), "payload: is nested"),
    "deep and cut off": (constrained(b'{"x": ' + b"[" * DEEP), "payload: is "),
    "deeper than we pass on": (
        constrained(b'{"x": ' + b"[" * 65 + b"]" * 65 + b"}"),
        "constraints: is nested deeper than 64 levels",
    ),
    "no id": (b'{"task_description": "d"}', "task_id: is missing"),
    "id is null": (b'{"task_id": null, "task_description": "d"}', "task_id: expected `str`"),
    "id is a number": (b'{"task_id": 7, "task_description": "d"}', "task_id: expected `str`"),
    "id is a huge number": (b'{"task_id": ' + MANY_NINES + b"}", "task_id: "),
    "id is empty": (b'{"task_id": "", "task_description": "d"}', "task_id: is empty"),
    "id is blank": (b'{"task_id": " \\u2003", "task_description": "d"}', "task_id: is empty"),
    "id is too long": (
        b'{"task_id": "' + b"x" * 129 + b'", "task_description": "d"}',
        "task_id: has 129 characters, may have at most 128",
    ),
    "id with NUL": (b'{"task_id": "a\\u0000", "task_description": "d"}', "task_id: has a char"),
    "id with a newline": (b'{"task_id": "a\\nb", "task_description": "d"}', "task_id: has a char"),
    "id with DEL": (b'{"task_id": "a\\u007f", "task_description": "d"}', "task_id: has a char"),
    "id written right to left": (
        b'{"task_id": "a\\u202eb", "task_description": "d"}',
        "task_id: has a char",
    ),
    "a raw control character": (b'{"task_id": "a\x01"}', "payload: is not JSON"),
    "no description": (b'{"task_id": "t"}', "task_description: is missing"),
    "description is empty": (
        b'{"task_id": "t", "task_description": ""}',
        "task_description: is em",
    ),
    "description is blank": (
        b'{"task_id": "t", "task_description": "\\n "}',
        "task_description: is empty",
    ),
    "description is a list": (
        b'{"task_id": "t", "task_description": ["d"]}',
        "task_description: expected `str`, got `array`",
    ),
    "role is a number": (task_with(b'"role": 1'), "role: expected `str`, got `int`"),
    "another role": (task_with(b'"role": "QA"'), "role: is 'QA', but the subject agent.tasks.dev"),
    "a very long role": (task_with(b'"role": "' + b"x" * 10_000 + b'"'), "role: is 'x{128}', but"),
    "enable_tools is a word": (task_with(b'"enable_tools": "yes"'), "enable_tools: expected `bool"),
    "diversity is null": (task_with(b'"diversity": null'), "diversity: expected `bool`"),
    "model is a number": (task_with(b'"model": 3'), "model: expected `str"),
    "model is too long": (task_with(b'"model": "' + b"m" * 257 + b'"'), "model: expected `str`"),
    "temperature too high": (task_with(b'"temperature": 2.1'), "temperature: expected .* <= 2"),
    "temperature below zero": (task_with(b'"temperature": -0.1'), "temperature: expected .* >= 0"),
    "temperature of infinity": (task_with(b'"temperature": 1e999'), "temperature: number out of"),
    "temperature of 400 digits": (task_with(b'"temperature": ' + NINES), "temperature: "),
    "temperature of 5,000 digits": (task_with(b'"temperature": ' + MANY_NINES), "temperature: "),
    "no tokens": (task_with(b'"max_tokens": 0'), "max_tokens: expected `int` >= 1"),
    "max_tokens is a truth": (task_with(b'"max_tokens": true'), "max_tokens: expected `int"),
    "max_tokens with a point": (task_with(b'"max_tokens": 5.5'), "max_tokens: expected `int"),
    "max_tokens of 400 digits": (task_with(b'"max_tokens": ' + NINES), "max_tokens: "),
    "max_tokens of 5,000 digits": (task_with(b'"max_tokens": ' + MANY_NINES), "max_tokens: "),
    "constraints is a list": (constrained(b"[]"), "constraints: expected `object`, got `array`"),
    "constraints is null": (constrained(b"null"), "constraints: expected `object`, got `null`"),
    "infinity in constraints": (constrained(b'{"x": 1e999}'), "constraints.*: number out of range"),
    "minus infinity": (constrained(b'{"x": [-1e999]}'), "constraints.*: number out of range"),
    "400 digits": (constrained(b'{"x": ' + NINES + b"}"), "constraints: .* beyond 64 bits"),
    "5,000 digits": (
        constrained(b'{"x": ' + MANY_NINES + b"}"),
        "constraints.*: integer .* out of",
    ),
    "just above 64 bits": (constrained(b'{"x": [%d]}' % 2**64), "constraints: .* beyond 64 bits"),
    "just below 64 bits": (
        constrained(b'{"x": %d}' % (-(2**63) - 1)),
        "constraints: .* beyond 64 bits",
    ),
    "rubric is a number": (constrained(b'{"rubric": 5}'), r"constraints\.rubric: expected `str"),
    "requirements is a truth": (
        constrained(b'{"requirements": true}'),
        r"constraints\.requirements",
    ),
    "metadata is a list": (constrained(b'{"metadata": []}'), r"constraints\.metadata: expected"),
    "timeout is a word": (constrained(b'{"timeout": "5"}'), r"constraints\.timeout: expected"),
    "timeout of nothing": (constrained(b'{"timeout": 0}'), r"constraints\.timeout: .* > 0"),
    "timeout of a year": (constrained(b'{"timeout": 31536000}'), r"constraints\.timeout: .* <= "),
    "deadline without a zone": (
        constrained(b'{"deadline": "2031-01-01T00:00:00"}'),
        r"constraints\.deadline: .* timezone",
    ),
    "deadline is a number": (constrained(b'{"deadline": 5}'), r"constraints\.deadline: expected"),
    "max_operations below one": (constrained(b'{"max_operations": 0}'), r"constraints\.max_operat"),
    "max_iterations is a word": (constrained(b'{"max_iterations": "x"}'), r"constraints\.max_iter"),
    "token_budget below one": (constrained(b'{"token_budget": -1}'), r"constraints\.token_budget"),
    "abort_on_error is a word": (constrained(b'{"abort_on_error": "x"}'), r"constraints\.abort_on"),
    "workspace is a path": (constrained(b'{"workspace": "/x"}'), r"constraints\.workspace"),
    "response_format is a word": (
        constrained(b'{"response_format": "json"}'),
        r"constraints\.response_format: expected",
    ),
}


@pytest.mark.parametrize(("payload", "message"), BAD.values(), ids=BAD)
def test_a_bad_message_is_refused_by_the_name_of_what_is_wrong(payload, message):
    with pytest.raises(InvalidTask, match=f"^{message}") as caught:
        decode_task(payload, SUBJECT, max_bytes=MAX_BYTES)
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("subject", ["agent.tasks.dev.urgent", "agent.other.dev", "agent.tasks"])
def test_a_subject_that_names_no_role_is_refused(subject):
    with pytest.raises(InvalidTask, match=r"^subject: .* must be agent\.tasks\.<role>"):
        decode_task(task_with(b'"x": 1'), subject, max_bytes=MAX_BYTES)


@pytest.mark.parametrize(
    "constraints",
    [
        b'{"x": ' + b"[" * 63 + b"]" * 63 + b"}",
        b'{"x": [18446744073709551615, -9223372036854775808]}',
        b'{"x": 1e308, "y": 1e-999, "z": -0.0}',
        b'{"deadline": "0001-01-01T00:00:00+23:59"}',
        b'{"timeout": 1e-3, "timeout": 2}',
        b'{"": "", "\\u0000": "\\u0000"}',
    ],
)
def test_what_is_odd_but_right_is_passed_on_unchanged(constraints):
    task, _ = decode_task(constrained(constraints), SUBJECT, max_bytes=MAX_BYTES)
    assert json.loads(encode(task))["constraints"] == json.loads(constraints)


def test_of_two_equal_keys_the_last_counts_for_everybody():
    payload = b'{"task_id": "first", "task_description": "d", "task_id": "last"}'
    assert decode_task(payload, SUBJECT, max_bytes=MAX_BYTES)[0].task_id == "last"
    assert peek_task_id(payload) == "last"


def test_numbers_in_unknown_fields_do_not_matter():
    payload = task_with(b'"x": 1e999, "y": ' + MANY_NINES)
    assert decode_task(payload, SUBJECT, max_bytes=MAX_BYTES)[0].task_id == "t"


@pytest.mark.parametrize(
    ("payload", "task_id"),
    [
        (b'{"task_id": "t"}', "t"),
        (b'{"task_id": "t", "task_description": 7}', "t"),
        (constrained(b"[]"), "t"),
        (b'{"task_id": "job/\xc3\xbc", "x": "\xff"}', "job/ü"),
        (b'{"task_id": 7}', None),
        (b'{"task_id": "a\\u0000"}', None),
        (b'{"task_id": ""}', None),
        (b'{"task_id": "\xff"}', None),
        (b'{"task_id": "t"', None),
        (task_with(b'"x": ' + b"[" * DEEP + b"]" * DEEP), None),
        (b"", None),
    ],
)
def test_a_bad_message_answers_under_its_id_when_it_has_a_usable_one(payload, task_id):
    assert peek_task_id(payload) == task_id


def survives_or_is_invalid(payload: bytes) -> None:
    """A message is a task that can be sent on, or InvalidTask with a message that can be."""
    peeked = peek_task_id(payload)
    try:
        task, constraints = decode_task(payload, SUBJECT, max_bytes=MAX_BYTES)
    except InvalidTask as error:
        problem = str(error)
    else:
        again = decode_task(encode(task), SUBJECT, max_bytes=MAX_BYTES)
        assert again == (task, constraints)
        assert peeked == task.task_id
        return
    assert PROBLEM.match(problem)
    assert len(problem) < 400
    assert encode(problem)


json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(),
        st.text(st.characters(), max_size=20),
        st.datetimes(timezones=st.timezones()).map(datetime.isoformat),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)

task_fields = {field.name for field in msgspec.structs.fields(AgentTask)}
constraint_fields = sorted(field.name for field in msgspec.structs.fields(Constraints))
near_tasks = st.fixed_dictionaries(
    {
        "task_id": st.text(min_size=1) | json_values,
        "task_description": st.text(min_size=1) | json_values,
    },
    optional={
        "constraints": st.dictionaries(st.sampled_from(constraint_fields), json_values)
        | json_values
    }
    | {name: json_values for name in sorted(task_fields - {"constraints"}) if name[:5] != "task_"},
)


@given(st.binary())
def test_any_bytes_are_a_task_or_invalid(payload):
    survives_or_is_invalid(payload)


@given(json_values)
def test_any_json_is_a_task_or_invalid(value):
    survives_or_is_invalid(json.dumps(value).encode())


@given(near_tasks)
def test_anything_like_a_task_is_a_task_or_invalid(value):
    survives_or_is_invalid(json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass"))


@given(st.data())
def test_a_task_with_broken_bytes_is_a_task_or_invalid(data):
    payload = bytearray(read("v1/task_full.json"))
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    survives_or_is_invalid(bytes(payload))
