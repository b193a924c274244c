"""The form that a task asks of its answer, its `constraints.response_format`, and whether it fits.

The model server is asked to force the form; here the task's part is checked before it is asked,
and the answer after.
"""

from collections.abc import Callable
from typing import Any, cast

import msgspec

from agent_actors.errors import AnswerInvalid, InvalidTask

PATH = "constraints.response_format"
KNOWN_TYPES = ("text", "json_object", "json_schema")

Check = Callable[[str], None]

_json = msgspec.json.Encoder().encode


def answer_check(response_format: dict[str, Any] | None) -> Check:
    """Return what checks an answer: it raises AnswerInvalid, saying where and why.

    Raises InvalidTask, naming the part, when the format itself is wrong. References to other
    documents are wrong, since nothing is ever fetched.
    """
    match response_format:
        case None | {"type": "text"}:
            return _check_nothing
        case {"type": "json_object"}:
            return _check_object
        case {"type": "json_schema", "json_schema": {"schema": dict()} as named}:
            return _schema_check(cast("dict[str, dict[str, Any]]", named)["schema"])
        case {"type": "json_schema"}:
            raise InvalidTask(f"{PATH}.json_schema.schema: must be a JSON Schema, as an object")
        case _:
            found = response_format.get("type")
            raise InvalidTask(f"{PATH}.type: is {found!r}, must be one of {', '.join(KNOWN_TYPES)}")


def _check_nothing(_answer: str) -> None:
    pass


def _check_object(answer: str) -> None:
    if not isinstance(_parsed(answer), dict):
        raise AnswerInvalid("the answer is JSON, but no object, as response_format asks")


def _schema_check(schema: dict[str, Any]) -> Check:
    from agent_actors import json_schema  # noqa: PLC0415 - slow to import, seldom needed

    try:
        validator = json_schema.compiled(_json(schema))
    except json_schema.BrokenSchema as error:
        raise InvalidTask(f"{PATH}.json_schema.schema{error}") from error

    def check(answer: str) -> None:
        try:
            mismatch = json_schema.mismatch(validator, _parsed(answer))
        except json_schema.BrokenSchema as error:
            raise InvalidTask(f"{PATH}.json_schema.schema{error}") from error
        if mismatch:
            raise AnswerInvalid(f"the answer does not fit response_format: {mismatch}")

    return check


def _parsed(answer: str) -> object:
    try:
        return msgspec.json.decode(answer)
    except (msgspec.DecodeError, RecursionError) as error:
        raise AnswerInvalid(f"the answer is no JSON, as response_format asks: {error}") from error
