"""Answers in events, however cut, add up to the reply that a whole answer would be."""

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from agent_actors.adapters.vllm.endpoints import Endpoint
from agent_actors.adapters.vllm.replies import AttemptFailed
from agent_actors.adapters.vllm.streams import EventStream, StreamedAnswer
from agent_actors.contract import Usage
from agent_actors.errors import ContextExceeded, ModelRefused, ModelReplyInvalid
from agent_actors.ports import CalledFunction, ChatReply, ToolCall

DONE = b"data: [DONE]\n\n"
USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}


def event(value: object) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def delta(finish_reason: str | None = None, index: int = 0, **fields: Any) -> bytes:
    choice = {"index": index, "delta": fields, "logprobs": None, "finish_reason": finish_reason}
    return event({"id": "chatcmpl-1", "model": "tiny", "choices": [choice]})


def call(index: int, *, id: str | None = None, **function: Any) -> bytes:  # noqa: A002 - vLLM's
    part: dict[str, Any] = {"index": index, "function": function}
    if id is not None:
        part |= {"id": id, "type": "function"}
    return delta(content=None, tool_calls=[part])


ROLE = delta(role="assistant", content="")
USED = event({"id": "chatcmpl-1", "model": "tiny", "choices": [], "usage": USAGE})
TEXT = [ROLE, delta(content="Use a "), delta(content="dèque"), delta("stop", content="."), USED]
CALLS = [
    ROLE,
    delta(content="Let me see."),
    call(0, id="c-1", name="read_file"),
    call(0, arguments='{"path": '),
    call(0, arguments='"a.py"}'),
    call(1, id="c-2", name="list_files"),
    call(1, arguments="{}"),
    delta("tool_calls"),
    USED,
]


def read(*events: bytes) -> ChatReply:
    answer = StreamedAnswer(Endpoint(URL("http://model:8000")))
    answer.add(b"".join(events))
    if not answer.ended:
        answer.add(b"")
    return answer.reply()


def failure(*events: bytes) -> AttemptFailed:
    with pytest.raises(AttemptFailed) as raised:
        read(*events)
    assert isinstance(raised.value.error, ModelReplyInvalid)
    return raised.value


def tool_call(call_id: str, name: str, arguments: str) -> ToolCall:
    return ToolCall(id=call_id, function=CalledFunction(name=name, arguments=arguments))


class TestEvents:
    def test_events_are_the_data_between_empty_lines(self):
        stream = b"data: one\n\ndata:two\nid: 7\n\n: a comment\n\nevent: x\ndata: 3a\ndata: 3b\n\n"
        assert list(EventStream().feed(stream)) == [b"one", b"two", b"3a\n3b"]

    @pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
    def test_however_the_bytes_are_cut_the_events_are_the_same(self, ending: bytes):
        stream = b"data: one\n\n: ping\n\ndata: two\n\n".replace(b"\n", ending)
        for size in range(1, len(stream) + 1):
            events = EventStream()
            pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
            assert [data for piece in pieces for data in events.feed(piece)] == [b"one", b"two"]

    def test_half_an_event_is_none_before_the_end(self):
        events = EventStream()
        assert list(events.feed(b"data: o")) == []
        assert list(events.feed(b"ne\n")) == []
        assert list(events.feed(b"")) == [b"one"]

    def test_the_last_line_needs_no_ending(self):
        events = EventStream()
        assert list(events.feed(b"data: one")) == []
        assert list(events.feed(b"")) == [b"one"]

    def test_a_colon_in_the_data_is_data(self):
        assert list(EventStream().feed(b'data: {"a":1}\n\n')) == [b'{"a":1}']


class TestReplies:
    def test_texts_add_up(self):
        assert read(*TEXT, DONE) == ChatReply(
            content="Use a dèque.",
            finish_reason="stop",
            model="tiny",
            usage=Usage(prompt_tokens=5, completion_tokens=7, total_tokens=12),
        )

    def test_calls_add_up_beside_a_text(self):
        reply = read(*CALLS, DONE)
        assert (reply.content, reply.finish_reason) == ("Let me see.", "tool_calls")
        assert reply.tool_calls == (
            tool_call("c-1", "read_file", '{"path": "a.py"}'),
            tool_call("c-2", "list_files", "{}"),
        )

    def test_each_addition_tells_its_own_text(self):
        answer = StreamedAnswer(Endpoint(URL("http://model:8000")))
        assert [answer.add(each) for each in [*TEXT, DONE]] == ["", "Use a ", "dèque", ".", "", ""]

    @given(st.lists(st.integers(1, 2_000)))
    def test_cuts_in_the_middle_of_anything_change_nothing(self, cuts: list[int]):
        stream = b"".join([*TEXT[:-1], *CALLS[2:], DONE])
        answer = StreamedAnswer(Endpoint(URL("http://model:8000")))
        places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
        texts = [answer.add(stream[a:b]) for a, b in pairwise(places)]
        assert answer.reply() == read(stream)
        assert "".join(texts) == "Use a dèque."

    def test_calls_that_take_turns_are_kept_apart(self):
        reply = read(
            call(0, id="c-1", name="a"),
            call(1, id="c-2", name="b"),
            call(0, arguments="{}"),
            call(1, arguments='{"x": 1}'),
            delta("tool_calls"),
            DONE,
        )
        assert reply.tool_calls == (
            tool_call("c-1", "a", "{}"),
            tool_call("c-2", "b", '{"x": 1}'),
        )

    def test_a_name_and_an_id_in_every_part_count_once(self):
        reply = read(
            call(0, id="c-1", name="a", arguments='{"x":'),
            call(0, id="c-other", name="a", arguments=" 1}"),
            delta("tool_calls"),
            DONE,
        )
        assert reply.tool_calls == (tool_call("c-1", "a", '{"x": 1}'),)

    def test_a_call_without_arguments_has_an_empty_object(self):
        reply = read(call(0, id="c-1", name="a"), delta("tool_calls"), DONE)
        assert reply.tool_calls == (tool_call("c-1", "a", "{}"),)

    def test_a_call_cut_off_before_its_arguments_has_none(self):
        reply = read(call(0, id="c-1", name="a"), delta("length"), DONE)
        assert (reply.finish_reason, reply.tool_calls) == ("length", (tool_call("c-1", "a", ""),))

    def test_reasoning_is_no_text(self):
        events = [ROLE, delta(reasoning="Hm."), delta(content="Yes"), delta("stop"), DONE]
        assert read(*events).content == "Yes"

    @pytest.mark.parametrize("key", ["reasoning", "reasoning_content"])
    def test_nothing_but_reasoning_is_an_empty_answer(self, key: str):
        assert read(delta(**{key: "Hm."}), delta("stop"), DONE).content == ""

    def test_another_choice_is_passed_over(self):
        events = [delta(content="a"), delta(index=1, content="b"), delta("stop"), DONE]
        assert read(*events).content == "a"

    def test_what_follows_the_end_is_passed_over(self):
        assert read(*TEXT, DONE, b"data: {\n\n").content == "Use a dèque."

    def test_the_end_may_lack_its_empty_line(self):
        assert read(*TEXT, b"data: [DONE]").content == "Use a dèque."

    def test_the_last_usage_counts(self):
        early = event({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 1}})
        assert read(early, *TEXT, DONE).usage.completion_tokens == 7


class TestFailures:
    @pytest.mark.parametrize(
        ("events", "message"),
        [
            (TEXT, "answered a stream that ends without [DONE]"),
            (TEXT[:2], "answered a stream that ends without [DONE]"),
            ([], "answered a stream that ends without [DONE]"),
            ([*TEXT[:2], TEXT[2][:-20]], "answered JSON that is cut off"),
            ([*TEXT[:3], DONE], "answered without a finish_reason"),
            ([DONE], "answered without choices"),
            ([USED, DONE], "answered without choices"),
            ([delta("stop"), DONE], "answered null content (finish_reason stop)"),
            ([b"data: <p>\n\n"], "answered no JSON"),
            ([b"data: 7\n\n"], "answered what vLLM does not: Expected `object`, got `int`"),
            ([b"data: \xff\n\n"], "answered no JSON"),
            ([event({"choices": "x"})], "answered what vLLM does not"),
            ([delta(content=7)], "answered what vLLM does not"),
            ([event({"error": "oh"})], "answered HTTP 200 with an error inside: oh"),
        ],
    )
    def test_what_is_no_answer_is_named(self, events: list[bytes], message: str):
        assert message in str(failure(*events))

    def test_an_abort_is_to_be_asked_for_elsewhere(self):
        with pytest.raises(AttemptFailed, match="aborted the answer") as raised:
            read(ROLE, delta(content="Use"), delta("abort"), DONE)
        assert (raised.value.retry, raised.value.unhealthy) == (True, True)

    def test_an_error_means_what_its_status_means(self):
        def error(code: int, param: str | None = None) -> bytes:
            return event({"error": {"message": "oh", "type": "E", "param": param, "code": code}})

        with pytest.raises(AttemptFailed, match="HTTP 200 with error 503 inside: oh") as raised:
            read(ROLE, error(503), DONE)
        assert (raised.value.retry, raised.value.unhealthy) == (True, True)
        with pytest.raises(ModelRefused, match="HTTP 200 with error 400 inside: oh"):
            read(error(400), DONE)
        with pytest.raises(ContextExceeded):
            read(error(400, "input_tokens"), DONE)

    @given(st.lists(st.binary(max_size=60), max_size=4))
    def test_no_bytes_can_break_the_client(self, chunks: list[bytes]):
        with pytest.raises((AttemptFailed, ModelRefused)):
            read(*chunks)

    @given(
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
            lambda inner: (
                st.lists(inner)
                | st.dictionaries(
                    st.sampled_from(
                        ["choices", "error", "delta", "index", "tool_calls", "function", "usage"]
                    ),
                    inner,
                )
            ),
        )
    )
    def test_no_json_can_break_the_client(self, value: object):
        with pytest.raises((AttemptFailed, ModelRefused)):
            read(event(value), DONE)
