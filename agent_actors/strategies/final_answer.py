"""Whether the model's answer is whole and of the asked form, and if not, what to tell it."""

from msgspec import Struct

from agent_actors.errors import (
    AnswerEmpty,
    AnswerInvalid,
    AnswerTruncated,
    TaskError,
)
from agent_actors.strategies.answer_format import Check
from agent_actors.strategies.course import Course
from agent_actors.strategies.saved_turns import Flaw

# How the Hermes format begins a call. Left in the text, no parser has read it: the call was cut
# off, is no JSON, or the server has no parser for this model.
CALL_MARK = "<tool_call>"


class Objection(Struct, frozen=True, kw_only=True):
    """What is wrong with an answer: what the model is told, and the error if that does not help."""

    flaw: Flaw
    told: str
    error: TaskError
    patience: int = 1


def objection_to(
    course: Course, answer: str, check: Check, *, must_call: bool, may_call: bool = True
) -> Objection | None:
    """Return what is wrong with the answer that the last reply gives, if anything is.

    `must_call`: the model could not but make a call, so that text is one that was cut off.
    Without `may_call` no call is ever made, though the model knows of the tools.
    """
    reply, by_finish = course.reply, bool(course.pending)
    cut_off = not by_finish and reply is not None and reply.finish_reason == "length"
    in_form = bool(course.flaws["wrong_form"])
    said = reply.content.lstrip() if reply else ""
    if not by_finish and not in_form and (said.startswith(CALL_MARK) or (must_call and cut_off)):
        return _unread_call(cut_off=cut_off) if may_call else _unwanted_call()
    if cut_off:
        # What is forced into a form begins anew each time, and does not go on.
        return _cut_off(patience=0 if in_form else 2)
    if not answer.strip():
        return Objection(
            flaw="empty",
            told="Your answer was empty. Go on with the task, or answer it.",
            error=AnswerEmpty(
                f"the model answered with no text (finish_reason "
                f"{reply.finish_reason if reply else 'unknown'})"
            ),
        )
    return _wrong_form(answer, check)


def _unread_call(*, cut_off: bool) -> Objection:
    if cut_off:
        return Objection(
            flaw="unreadable_call",
            told="Your call was cut off at max_tokens, and it was not made. Make it again with "
            "less in it, in several calls.",
            error=AnswerTruncated("the model's calls are cut off at max_tokens: raise it"),
            patience=2,
        )
    return Objection(
        flaw="unreadable_call",
        told="Your call could not be read, and it was not made. Make it again, with arguments "
        "that are a JSON object.",
        error=AnswerInvalid(
            "the model's calls come as text: see that the model server's --tool-call-parser fits "
            "the model"
        ),
        patience=2,
    )


def _unwanted_call() -> Objection:
    return Objection(
        flaw="unreadable_call",
        told="No tool can be called here, and your call was not made. Answer in text.",
        error=AnswerInvalid("the model answers with calls, which tool_choice none does not allow"),
        patience=2,
    )


def _cut_off(patience: int) -> Objection:
    return Objection(
        flaw="cut_off",
        told="Your answer was cut off at max_tokens. Go on exactly where it ends, without "
        "repeating any of it.",
        error=AnswerTruncated("the answer was cut off at max_tokens: raise it, or ask for less"),
        patience=patience,
    )


def _wrong_form(answer: str, check: Check) -> Objection | None:
    try:
        check(answer)
    except AnswerInvalid as error:
        told = f"{error}. Give the whole answer again in the asked format, and nothing else."
        return Objection(flaw="wrong_form", told=told, error=error)
    return None
