"""The answers that are no answers: vLLM's error body, and the refusals that it words itself."""

from http import HTTPStatus

from agent_actors.local.model_server.wire import encode


class Refusal(Exception):
    """A request gets an error in place of an answer.

    `kind` is what vLLM calls `type`. `late` is one that vLLM finds only when the headers of a
    stream are gone: such a stream is a 200 with this error as its only event.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str,
        param: str | None = None,
        late: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param
        self.late = late

    def body(self) -> bytes:
        """Return vLLM's error body."""
        error = {"message": str(self), "type": self.kind, "param": self.param, "code": self.status}
        return encode({"error": error})


class DetailRefusal(Refusal):
    """A refusal by the web framework under vLLM, which words it in its own way."""

    def body(self) -> bytes:
        """Return the framework's error body."""
        return encode({"detail": str(self)})


class EngineFull(Refusal):
    """There are as many requests as `max_num_queued_reqs` allows."""

    def __init__(self) -> None:
        super().__init__(
            503,
            "The engine is currently busy and cannot accept new requests. "
            "Please try again later or on a different instance.",
            kind=HTTPStatus.SERVICE_UNAVAILABLE.phrase,
            late=True,
        )


class EngineDead(Refusal):
    """The engine's process has died."""

    def __init__(self) -> None:
        super().__init__(
            500,
            "EngineCore encountered an issue. See stack trace (above) for the root cause.",
            kind="InternalServerError",
            late=True,
        )


def bad_request(
    message: str, *, param: str | None = None, value: object = None, late: bool = False
) -> Refusal:
    """Return the refusal of a request whose form is right but that vLLM will not serve."""
    if param is not None:
        shown = f"parameter={param}" if value is None else f"parameter={param}, value={value}"
        message = f"{message} ({shown})"
    return Refusal(400, message, kind="BadRequestError", param=param, late=late)


def malformed(problem: str, *, param: str | None) -> Refusal:
    """Return the refusal of a body whose form is wrong, at `param`."""
    found = problem if param is None else f"{{'loc': '{param}', 'msg': '{problem}'}}"
    message = f"1 validation error:\n  {found}"
    return Refusal(400, message, kind=HTTPStatus.BAD_REQUEST.phrase, param=param)


def unreadable_body() -> Refusal:
    """Return the refusal of a body that is no text, or nested too deeply to read."""
    return DetailRefusal(400, "There was an error parsing the body", kind="")


def refusal_of(status: int) -> Refusal:
    """Return an error of that status as vLLM, or a proxy before it, words it."""
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        return EngineDead()
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        return EngineFull()
    phrase = HTTPStatus(status).phrase
    return Refusal(status, phrase, kind=phrase)
