from msgspec import UNSET

from agent_actors.local.model_server.generation import Generation, Reply, generate
from agent_actors.local.model_server.wire import (
    CalledFunction,
    ChatRequest,
    FunctionName,
    Message,
    NamedTool,
)

MESSAGES = [Message(role="user", content="Hello")]
CALL = CalledFunction(name="write_file", arguments='{"path": "a.py", "content": "x = 1"}')


def chat(**fields) -> ChatRequest:
    return ChatRequest(messages=MESSAGES, **fields)


def streamed_text(generation: Generation) -> str:
    deltas = [generation.delta(index) for index in range(len(generation.tokens))]
    return "".join(delta.content for delta in deltas if delta and isinstance(delta.content, str))


def streamed_arguments(generation: Generation) -> str:
    deltas = [generation.delta(index) for index in range(len(generation.tokens))]
    calls = [call for delta in deltas if delta for call in delta.tool_calls]
    return "".join(
        call.function.arguments for call in calls if call.function.arguments is not UNSET
    )


def test_a_text_ends_with_stop_and_an_empty_token():
    generation = generate(Reply(content="Hello there"), chat(), 100)
    assert generation.finish_reason == "stop"
    assert generation.tokens == ("Hello", " there", "")
    assert generation.message().content == streamed_text(generation) == "Hello there"


def test_max_tokens_cuts_a_text():
    generation = generate(Reply(content="one two three"), chat(), 2)
    assert generation.finish_reason == "length"
    assert generation.message().content == "one two"


def test_a_text_of_exactly_max_tokens_has_no_room_for_its_end():
    assert generate(Reply(content="one two"), chat(), 2).finish_reason == "length"
    assert generate(Reply(content="one two"), chat(), 3).finish_reason == "stop"


def test_the_stop_string_that_comes_first_ends_a_text():
    generation = generate(Reply(content="one two three"), chat(stop=["three", " two"]), 100)
    assert (generation.finish_reason, generation.stop_reason) == ("stop", " two")
    assert generation.message().content == "one"


def test_a_stop_string_at_the_start_leaves_nothing():
    generation = generate(Reply(content="one two"), chat(stop="one"), 100)
    assert generation.message().content == ""
    assert generation.stop_reason == "one"


def test_a_stop_string_that_does_not_come_changes_nothing():
    generation = generate(Reply(content="one two"), chat(stop=["nine"]), 100)
    assert (generation.message().content, generation.stop_reason) == ("one two", None)


def test_a_call_by_choice_has_null_content_and_ends_with_tool_calls():
    generation = generate(Reply(calls=(CALL,)), chat(tool_choice="auto"), 100)
    message = generation.message()
    assert (message.content, generation.finish_reason) == (None, "tool_calls")
    assert [call.function for call in message.tool_calls] == [CALL]


def test_words_before_a_call_are_streamed_before_it():
    generation = generate(Reply(content="I will write.", calls=(CALL,)), chat(), 100)
    deltas = [generation.delta(index) for index in range(len(generation.tokens))]
    told = [delta.content for delta in deltas if delta]
    assert generation.message().content == streamed_text(generation) == "I will write."
    assert told[:4] == ["I", " will", " write", "."]
    assert set(told[4:]) == {None}


def test_a_required_call_has_empty_content_and_ends_with_tool_calls():
    generation = generate(Reply(calls=(CALL,)), chat(tool_choice="required"), 100)
    assert (generation.message().content, generation.finish_reason) == ("", "tool_calls")


def test_a_named_call_has_empty_content_and_ends_with_stop():
    named = NamedTool(function=FunctionName(name="write_file"))
    generation = generate(Reply(calls=(CALL,)), chat(tool_choice=named), 100)
    assert (generation.message().content, generation.finish_reason) == ("", "stop")


def test_a_call_that_is_cut_off_comes_as_raw_text():
    generation = generate(Reply(calls=(CALL,)), chat(tool_choice="required"), 9)
    message = generation.message()
    assert message.tool_calls is UNSET
    assert message.content == '<tool_call>\n{"name":'
    assert generation.finish_reason == "length"


def test_a_stream_tells_name_then_arguments_of_a_call_and_no_markup():
    generation = generate(Reply(calls=(CALL,)), chat(), 100)
    deltas = [generation.delta(index) for index in range(len(generation.tokens))]
    first = next(delta for delta in deltas if delta).tool_calls[0]
    assert (first.function.name, first.function.arguments) == ("write_file", UNSET)
    assert streamed_arguments(generation) == CALL.arguments
    assert streamed_text(generation) == ""


def test_every_call_of_several_has_its_index_and_an_id_of_its_own():
    generation = generate(Reply(calls=(CALL, CALL)), chat(), 1000)
    ids = [call.id for call in generation.calls]
    assert len(set(ids)) == 2
    told = [
        (call.index, call.id)
        for delta in generation.call_deltas.values()
        for call in delta.tool_calls
        if call.id is not UNSET
    ]
    assert told == [(0, ids[0]), (1, ids[1])]


def test_an_abort_keeps_what_was_made():
    generation = generate(Reply(content="one two three"), chat(), 100).aborted(2)
    assert (generation.message().content, generation.finish_reason) == ("one two", "abort")


def test_an_abort_after_the_last_token_changes_nothing():
    generation = generate(Reply(content="one"), chat(), 100)
    assert generation.aborted(2) == generation


def test_an_aborted_call_is_raw_text():
    generation = generate(Reply(calls=(CALL,)), chat(), 100).aborted(3)
    assert generation.message().tool_calls is UNSET
    assert generation.message().content == "<tool_call"
