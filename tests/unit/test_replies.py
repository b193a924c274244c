"""What each answer of a model server means; the shapes are those of a real vLLM."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from agent_actors.adapters.vllm.endpoints import Endpoint
from agent_actors.adapters.vllm.replies import (
    MAX_MESSAGE_CHARS,
    MAX_RETRY_AFTER_S,
    AttemptFailed,
    read_failure,
    read_reply,
    retry_after_s,
)
from agent_actors.contract import Usage
from agent_actors.errors import (
    ContextExceeded,
    ModelRefused,
    ModelReplyInvalid,
    ModelUnavailable,
)
from agent_actors.ports import ToolCall

JSON = {"Content-Type": "application/json"}
NOW = datetime(2026, 5, 4, 12, 0, 0, tzinfo=UTC)

encode = msgspec.json.encode


def endpoint(secret: str = "") -> Endpoint:
    return Endpoint(URL("http://model:8000"), secret)


def completion(**changed: object) -> dict[str, object]:
    whole = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "tiny",
        "choices": [choice()],
        "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12},
        "kv_transfer_params": None,
    }
    return {**whole, **changed}


def choice(content: object = "Hello.", finish_reason: object = "stop", **message: object):
    return {
        "index": 0,
        "message": {"role": "assistant", "content": content, "tool_calls": [], **message},
        "logprobs": None,
        "finish_reason": finish_reason,
    }


def without(key: str) -> dict[str, object]:
    return {name: value for name, value in completion().items() if name != key}


def read(body: object, headers: dict[str, str] = JSON):
    return read_reply(endpoint(), headers, body if isinstance(body, bytes) else encode(body))


def test_an_answer_of_vllm_is_read():
    reply = read(completion())
    assert (reply.content, reply.finish_reason, reply.model) == ("Hello.", "stop", "tiny")
    assert reply.usage == Usage(prompt_tokens=5, completion_tokens=7, total_tokens=12)


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "application/json; charset=utf-8"}])
def test_the_content_type_may_be_missing_or_have_parameters(headers: dict[str, str]):
    assert read(completion(), headers).content == "Hello."


def test_an_answer_cut_off_by_max_tokens_is_a_reply():
    reply = read(completion(choices=[choice("Hel", "length")]))
    assert (reply.content, reply.finish_reason) == ("Hel", "length")


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (None, Usage()),
        ({}, Usage()),
        ({"prompt_tokens": None, "completion_tokens": None, "total_tokens": None}, Usage()),
        (
            {"prompt_tokens": 2, "completion_tokens": 3},
            Usage(prompt_tokens=2, completion_tokens=3, total_tokens=5),
        ),
    ],
)
def test_missing_usage_counts_as_zero(usage: object, expected: Usage):
    assert read(completion(usage=usage)).usage == expected


def test_an_answer_without_usage_or_model_is_read():
    body = {"choices": [choice()]}
    assert (read(body).usage, read(body).model) == (Usage(), "")


@pytest.mark.parametrize("reasoned", [{"reasoning": "Hm."}, {"reasoning_content": "Hm."}])
def test_a_reasoning_model_that_never_got_to_its_answer_gave_an_empty_one(
    reasoned: dict[str, str],
):
    assert read(completion(choices=[choice(None, **reasoned)])).content == ""


def test_null_content_cut_off_by_max_tokens_is_an_empty_answer():
    assert read(completion(choices=[choice(None, "length")])).content == ""


def call(arguments: object = "{}", *, id: object = "c-1", name: object = "read_file"):  # noqa: A002 - vLLM's
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def calls_of(*calls: object, content: object = None, finish: str = "tool_calls"):
    reply = read(completion(choices=[choice(content, finish, tool_calls=list(calls))]))
    assert (reply.content, reply.finish_reason) == (content or "", finish)
    return [(each.id, each.function.name, each.function.arguments) for each in reply.tool_calls]


@pytest.mark.parametrize(
    ("content", "finish"),
    [
        (None, "tool_calls"),  # called by itself
        ("", "tool_calls"),  # because it was required
        ("", "stop"),  # by name
        ("Let me see.", "tool_calls"),
    ],
)
def test_tool_calls_are_read_whatever_stands_beside_them(content: str | None, finish: str):
    assert calls_of(
        call('{"path": "a.py"}'),
        call("{}", id="c-2", name="list_files"),
        content=content,
        finish=finish,
    ) == [("c-1", "read_file", '{"path": "a.py"}'), ("c-2", "list_files", "{}")]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"a": 1', '{"a": 1'),
        ("Paris", "Paris"),
        ({"a": [1, None], "b": "dè"}, '{"a":[1,null],"b":"dè"}'),
        ([1], "[1]"),
        (7, "7"),
        (2**70, str(2**70)),
        (None, "{}"),
        ("", "{}"),
        (" \n", "{}"),
    ],
)
def test_arguments_are_json_text_however_they_came(arguments: object, expected: str):
    assert calls_of(call(arguments)) == [("c-1", "read_file", expected)]


def test_arguments_that_are_not_there_are_none():
    bare = {"id": "c-1", "type": "function", "function": {"name": "list_files"}}
    assert calls_of(bare) == [("c-1", "list_files", "{}")]


def test_arguments_that_were_cut_off_are_not_taken_for_none():
    assert calls_of(call(""), finish="length") == [("c-1", "read_file", "")]


def test_a_call_without_a_name_is_for_the_model_to_hear_of():
    nameless = [call(name=None), call(name="", id="c-2"), {"id": "c-3", "function": None}]
    assert calls_of(*nameless) == [("c-1", "", "{}"), ("c-2", "", "{}"), ("c-3", "", "{}")]


def test_calls_without_an_id_of_their_own_get_one():
    same = [call(), call(), call(id=None), call(id=""), {"function": {"name": "read_file"}}]
    ids = [call_id for call_id, _, _ in calls_of(*same)]
    assert ids[0] == "c-1"
    assert len(set(ids)) == 5
    # What Mistral's chat template takes.
    assert all(len(made) == 9 and made.isalnum() for made in ids[1:])


@pytest.mark.parametrize("calls", [None, []])
def test_no_calls_are_no_calls(calls: object):
    assert read(completion(choices=[choice("Hello.", tool_calls=calls)])).tool_calls == ()


def test_calls_can_be_sent_back():
    reply = read(completion(choices=[choice(None, "tool_calls", tool_calls=[call()])]))
    assert isinstance(reply.tool_calls[0], ToolCall)
    assert encode(reply.tool_calls) == (
        b'[{"type":"function","id":"c-1","function":{"name":"read_file","arguments":"{}"}}]'
    )


@pytest.mark.parametrize(
    ("body", "headers", "message"),
    [
        (
            completion(choices=[choice(None, "tool_calls", tool_calls="read_file")]),
            JSON,
            "at `$.choices[0].message.tool_calls`",
        ),
        (
            completion(choices=[choice(None, "tool_calls", tool_calls=[7])]),
            JSON,
            "at `$.choices[0].message.tool_calls[0]`",
        ),
        (
            completion(choices=[choice("", "stop", tool_calls=[call(name=7)])]),
            JSON,
            "at `$.choices[0].message.tool_calls[0].function.name`",
        ),
        (without("choices"), JSON, "answered without choices"),
        (completion(choices=[]), JSON, "answered with no choice in choices"),
        (completion(choices=None), JSON, "answered with no choice in choices"),
        (completion(choices="x"), JSON, "answered what vLLM does not: Expected `array | null`"),
        (completion(choices=[{"finish_reason": "stop"}]), JSON, "a choice without a message"),
        (
            completion(choices=[{"message": {"content": "x"}}]),
            JSON,
            "answered without a finish_reason",
        ),
        (completion(choices=[choice("x", None)]), JSON, "answered without a finish_reason"),
        (completion(choices=[choice(None)]), JSON, "null content (finish_reason stop)"),
        (
            completion(choices=[choice(None, "tool_calls")]),
            JSON,
            "null content (finish_reason tool_calls)",
        ),
        (completion(choices=[choice(5)]), JSON, "at `$.choices[0].message.content`"),
        (b"[1, 2]", JSON, "answered what vLLM does not: Expected `object`, got `array`"),
        (
            b"<html>",
            JSON,
            "answered no JSON (JSON is malformed: invalid character (byte 0)): '<html>'",
        ),
        (b"", JSON, "answered JSON that is cut off after 0 bytes"),
        (encode(completion())[:-30], JSON, "answered JSON that is cut off"),
        (b'{"model": "\xff"}', JSON, "answered no JSON"),
        (b"[" * 100_000, JSON, "answered "),
        (
            b"<html>Welcome</html>",
            {"Content-Type": "text/html"},
            "answered text/html, not JSON: '<html>Welcome</html>'",
        ),
        (
            b"data: {}\n\n",
            {"Content-Type": "text/event-stream"},
            "answered text/event-stream, not JSON",
        ),
        ({"error": {"message": "oh"}}, JSON, "answered HTTP 200 with an error inside: oh"),
        ({"error": "oh"}, JSON, "answered HTTP 200 with an error inside: oh"),
    ],
)
def test_a_reply_that_is_none_is_named_and_tried_again(
    body: object, headers: dict[str, str], message: str
):
    with pytest.raises(AttemptFailed) as raised:
        read(body, headers)
    assert isinstance(raised.value.error, ModelReplyInvalid)
    assert str(raised.value).startswith("http://model:8000 answered ")
    assert message in str(raised.value)
    assert (raised.value.retry, raised.value.unhealthy) == (True, False)


def test_an_aborted_answer_is_to_be_asked_for_elsewhere():
    with pytest.raises(
        AttemptFailed, match=r"aborted the answer \(finish_reason abort\)"
    ) as raised:
        read(completion(choices=[choice("Hel", "abort")]))
    assert not isinstance(raised.value.error, ModelReplyInvalid)
    assert (raised.value.retry, raised.value.unhealthy) == (True, True)


def test_an_error_with_its_status_inside_a_200_means_what_that_status_means():
    def error(code: int) -> dict[str, object]:
        return {"error": {"message": "oh", "type": "E", "param": None, "code": code}}

    with pytest.raises(AttemptFailed, match="HTTP 200 with error 503 inside: oh") as busy:
        read(error(503))
    assert (busy.value.retry, busy.value.unhealthy) == (True, True)
    with pytest.raises(ModelRefused, match="HTTP 200 with error 400 inside: oh"):
        read(error(400))


def test_a_body_of_megabytes_is_quoted_in_short():
    with pytest.raises(AttemptFailed) as raised:
        read(b"x" * 5_000_000)
    assert len(str(raised.value)) < 500


LENGTH = (
    "This model's maximum context length is 2048 tokens. However, your request has 9000 input "
    "tokens. Please reduce the length of the input messages."
)


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (
            400,
            {
                "error": {
                    "message": LENGTH,
                    "type": "BadRequestError",
                    "param": "input_tokens",
                    "code": 400,
                }
            },
            f"HTTP 400: {LENGTH} (type BadRequestError, param input_tokens, code 400)",
        ),
        (401, {"error": "Unauthorized"}, "HTTP 401: Unauthorized"),
        (
            404,
            {
                "error": {
                    "message": "The model `nope` does not exist.",
                    "type": "NotFoundError",
                    "param": "model",
                    "code": 404,
                }
            },
            "HTTP 404: The model `nope` does not exist. (type NotFoundError, param model, code ",
        ),
        (404, {"detail": "Not Found"}, "HTTP 404: Not Found"),
        (405, {"detail": "Method Not Allowed"}, "HTTP 405: Method Not Allowed"),
        (
            400,
            {"object": "error", "message": "old", "type": "E", "param": None, "code": 400},
            "HTTP 400: old (type E, code 400)",
        ),
        (422, {"detail": [{"loc": ["body"], "msg": "bad"}]}, 'HTTP 422: \'{"detail"'),
        (413, b"<h1>Too large</h1>\n", "HTTP 413: '<h1>Too large</h1>'"),
        (403, b"", "HTTP 403: nothing"),
        (403, b"\xff\xfe", "HTTP 403: "),
        (418, {"error": {"code": 418}}, 'HTTP 418: \'{"error"'),
        (501, {"detail": "no"}, "HTTP 501: no"),
    ],
)
def test_a_refusal_carries_what_the_server_said(status: int, body: object, message: str):
    data = body if isinstance(body, bytes) else encode(body)
    refusal = read_failure(endpoint(), status, JSON, data)
    assert isinstance(refusal, ModelRefused)
    assert str(refusal).startswith(f"http://model:8000 refused the request: {message}")


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "too long", "param": "input_tokens", "code": 400}},
        {"error": {"message": "far too long", "param": "input_text", "code": 400}},
        {"error": {"message": LENGTH, "param": None, "code": 400}},
        {"object": "error", "message": LENGTH, "param": None, "code": 400},
    ],
)
def test_a_prompt_that_is_too_long_is_a_refusal_of_its_own(body: object):
    refusal = read_failure(endpoint(), 400, JSON, encode(body))
    assert type(refusal) is ContextExceeded
    assert refusal.error_type == "ContextExceeded"
    assert "refused the request: HTTP 400: " in str(refusal)


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "max_tokens=9000 cannot be greater", "param": "max_tokens"}},
        {"error": "Unauthorized"},
        {"error": {"message": 7, "param": 7}},
        b"input_tokens",
    ],
)
def test_other_refusals_say_nothing_of_the_prompt(body: object):
    data = body if isinstance(body, bytes) else encode(body)
    assert type(read_failure(endpoint(), 400, JSON, data)) is ModelRefused


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 529])
def test_a_busy_or_broken_server_is_tried_again(status: int):
    body = encode({"error": {"message": "oh", "type": "E", "param": None, "code": status}})
    failure = read_failure(endpoint(), status, JSON, body)
    assert isinstance(failure, AttemptFailed)
    assert type(failure.error) is ModelUnavailable
    assert f"answered HTTP {status}: oh (type E, code {status})" in str(failure)
    assert failure.retry
    assert failure.unhealthy == (status >= 500)


def test_a_redirection_is_refused_since_it_would_carry_the_key_elsewhere():
    failure = read_failure(endpoint(), 307, {"Location": "https://elsewhere"}, b"")
    assert isinstance(failure, ModelRefused)
    assert "a redirection to https://elsewhere, which is not followed" in str(failure)


def test_another_success_than_200_is_no_reply():
    failure = read_failure(endpoint(), 204, {}, b"")
    assert isinstance(failure, AttemptFailed)
    assert "answered HTTP 204 where 200 is due" in str(failure)


def test_an_endless_error_message_is_cut():
    failure = read_failure(endpoint(), 400, JSON, encode({"error": {"message": "x" * 99_999}}))
    assert len(str(failure)) < MAX_MESSAGE_CHARS + 100


@pytest.mark.parametrize(
    "body",
    [
        encode({"error": {"message": "no key sk-verysecret here"}}),
        encode({"error": "sk-verysecret"}),
        encode({"detail": "sk-verysecret"}),
        b"no key sk-verysecret here",
        b"x" * 295 + b"sk-verysecret",
        b"x" * 1_195 + b"sk-verysecret",
    ],
)
def test_a_key_that_the_server_echoes_is_masked(body: bytes):
    failure = read_failure(endpoint("sk-verysecret"), 401, JSON, body)
    assert "sk-v" not in str(failure)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("7", 7.0),
        ("0", 0.0),
        (" 1.5 ", 1.5),
        ("-1", None),
        ("nan", None),
        ("soon", None),
        ("", None),
        ("9" * 400, MAX_RETRY_AFTER_S),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90.0),
        (format_datetime(NOW - timedelta(seconds=90), usegmt=True), 0.0),
        ("Mon, 04 May 2026 12:00:05 -0000", 5.0),
        ("Mon, 04 May 9999 12:00:05 GMT", MAX_RETRY_AFTER_S),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(value: str | None, expected: float | None):
    assert retry_after_s(value, NOW) == expected


@given(st.text())
def test_no_retry_after_can_break_the_client(value: str):
    seconds = retry_after_s(value, NOW)
    assert seconds is None or 0 <= seconds <= MAX_RETRY_AFTER_S


@given(st.integers(100, 599), st.binary())
def test_no_error_body_can_break_the_client(status: int, body: bytes):
    assert isinstance(read_failure(endpoint(), status, JSON, body), ModelRefused | AttemptFailed)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["choices", "error", "message", "code", "tool_calls"]), inner
            )
        ),
    )
)
def test_no_json_body_can_break_the_client(body: object):
    with pytest.raises((AttemptFailed, ModelRefused)):
        read(body)
