"""Task ids become tokens of subjects, keys and headers; patterns of subjects are compared."""

import re
from itertools import product
from urllib.parse import unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent_actors.contract import (
    MAX_TASK_ID_CHARS,
    check_task_id,
    event_subject,
    message_id,
    subjects_overlap,
    task_key,
)
from agent_actors.errors import InvalidTask

printable = st.characters(exclude_categories=["C", "Z"]) | st.just(" ")
task_ids = st.text(printable, min_size=1, max_size=MAX_TASK_ID_CHARS).filter(str.strip)


@pytest.mark.parametrize(
    ("task_id", "key"),
    [
        ("task-abc_789", "task-abc_789"),
        ("ceremony-1:story-2", "ceremony-1=3Astory-2"),
        ("job/ü", "job=2F=C3=BC"),
        ("a.b", "a=2Eb"),
        ("a b", "a=20b"),
        ("*", "=2A"),
        (">", "=3E"),
        ("=2E", "=3D2E"),
        ("🔧", "=F0=9F=94=A7"),
    ],
)
def test_an_id_becomes_one_token(task_id, key):
    assert task_key(task_id) == key


@given(task_ids)
def test_a_key_has_only_characters_that_are_safe_everywhere(task_id):
    assert re.fullmatch("[A-Za-z0-9_=-]+", task_key(task_id))


@given(task_ids)
def test_a_key_leads_back_to_its_id_so_no_two_ids_share_one(task_id):
    assert unquote(task_key(task_id).replace("=", "%"), errors="strict") == task_id


@given(task_ids, task_ids)
@example("a.b", "a=2Eb")
@example("é", "e\u0301")  # the same to the eye, one character and two
def test_different_ids_have_different_keys(left, right):
    assert (task_key(left) == task_key(right)) == (left == right)


@given(task_ids)
def test_a_key_is_never_longer_than_twelve_times_its_id(task_id):
    assert len(task_id) <= len(task_key(task_id)) <= 12 * len(task_id)


def test_the_longest_key_fits_a_subject():
    longest = "\U0001f527" * MAX_TASK_ID_CHARS
    check_task_id(longest)
    assert len(event_subject(longest, "finished")) < 2_048


@given(task_ids)
def test_printable_text_is_a_task_id(task_id):
    check_task_id(task_id)


@given(task_ids, st.integers(0, MAX_TASK_ID_CHARS), st.characters(categories=["Cc", "Cs", "Zl"]))
def test_text_with_one_character_that_cannot_be_printed_is_none(task_id, where, char):
    with pytest.raises(InvalidTask, match=r"^task_id: "):
        check_task_id(task_id[:where] + char + task_id[where:])


@given(st.tuples(task_ids, st.integers(0, 9)), st.tuples(task_ids, st.integers(0, 9)))
@example(("a", 1), ("a#1", 0))
def test_message_ids_differ_by_task_and_by_generation(left, right):
    assert (message_id(*left) == message_id(*right)) == (left == right)


def test_the_first_generation_goes_by_the_key_alone():
    assert message_id("job/ü", 0) == "job=2F=C3=BC"
    assert message_id("job/ü", 2) == "job=2F=C3=BC#2"


# Patterns of subjects.


def matches(pattern: str, subject: tuple[str, ...]) -> bool:
    """Tell what a NATS server does with one pattern and one subject: the oracle."""
    *tokens, last = pattern.split(".")
    if last == ">":
        if len(subject) <= len(tokens):
            return False
        subject = subject[: len(tokens)]
    else:
        tokens.append(last)
    return len(tokens) == len(subject) and all(
        token in ("*", word) for token, word in zip(tokens, subject, strict=True)
    )


WORDS = ("a", "b", "other")
SUBJECTS = [subject for length in range(1, 6) for subject in product(WORDS, repeat=length)]

patterns = st.builds(
    lambda tokens, tail: ".".join([*tokens, *tail]),
    st.lists(st.sampled_from(["a", "b", "*"]), min_size=1, max_size=4),
    st.sampled_from([[], [">"]]),
) | st.just(">")


@given(patterns, patterns)
@example("a.>", "a")
@example("a.>", "a.*")
@example("*.b", "a.*")
@example("a.*", "a.*.b")
@example(">", "a.b.a.b")
def test_patterns_overlap_when_some_subject_matches_both(left, right):
    both = any(matches(left, subject) and matches(right, subject) for subject in SUBJECTS)
    assert subjects_overlap(left, right) == both


@given(patterns, patterns)
def test_overlap_does_not_depend_on_the_order(left, right):
    assert subjects_overlap(left, right) == subjects_overlap(right, left)
