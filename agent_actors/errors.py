"""Every error of the package. One root; each class says what happened and what to do.

A class's docstring is its default message. What happens to a task after a failure is not
decided here but in `settlement.dispose`, by class.
"""

from typing import ClassVar


class AgentActorsError(Exception):
    """Something in agent_actors failed."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message or (type(self).__doc__ or "").strip().splitlines()[0])


class ConfigError(AgentActorsError):
    """The configuration is wrong: the message names the file, the path in it and the remedy."""


class ServiceUnreachable(AgentActorsError):
    """NATS, Ray or the service behind them does not answer."""


class PermissionDenied(AgentActorsError):
    """The NATS server denied a subject; its own words are in the message."""


class StreamMissing(AgentActorsError):
    """A stream, bucket or consumer does not exist: run `agent-actors provision`."""


class ProvisionRefused(AgentActorsError):
    """The change would lose messages; the message names the stream and the setting."""


class PublishFailed(AgentActorsError):
    """JetStream did not confirm a message; it may or may not be stored."""


class ResultTimeout(AgentActorsError):
    """The task has not ended in the time that was given; it goes on, so wait or ask again."""


class ArtifactLost(AgentActorsError):
    """The object is not in the store any more, or not what the reference says."""


class PublishRefused(AgentActorsError):
    """NATS will never take this message; the message says why."""


class DeadLetterMissing(AgentActorsError):
    """There is no such dead letter, or not any more."""


class DeadLetterRefused(AgentActorsError):
    """A dead letter cannot be replayed or discarded; the message says why."""


class RequestRefused(AgentActorsError):
    """The service cannot do what it was asked; the message says why."""


class FencedOut(AgentActorsError):
    """Another attempt owns the task by now: publish nothing, ack nothing, nak nothing."""


class ActorLost(AgentActorsError):
    """An actor died, or cannot be reached; Ray restarts it, and its tasks go to others."""


class TaskError(AgentActorsError):
    """A task's attempt ended without an answer; the class name is the result's `error_type`."""

    error_type: ClassVar[str] = "TaskError"

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.error_type = cls.__name__


class InvalidTask(TaskError):
    """The message is not a task; the error names the field and what would be right."""


class TaskIdConflict(TaskError):
    """Another task with this id and other content came first; its result stands."""


class StrategyUnavailable(TaskError):
    """The task asks for a way of working that this service does not have."""


class ModelRefused(TaskError):
    """The model server refused the request as such; its own words are in the message."""


class ContextExceeded(ModelRefused):
    """The prompt is longer than the model takes: ask for less, or serve a longer context."""


class ModelUnavailable(TaskError):
    """The model server is away, overloaded, or its answer did not arrive whole.

    `retry_after_s` is what the server itself asked to be left alone for, when it did.
    """

    def __init__(self, message: str = "", *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ModelReplyInvalid(ModelUnavailable):
    """The model server's answer is not what vLLM answers."""


class AnswerTruncated(TaskError):
    """The model's answer was cut off at max_tokens: raise it, or ask for less."""


class AnswerEmpty(TaskError):
    """The model answered with no text."""


class AnswerInvalid(TaskError):
    """The model's answer does not match the task's response_format."""


class BudgetExceeded(TaskError):
    """The task has used up its operations, turns or tokens; the message names which."""


class RepeatedToolCall(TaskError):
    """The model made the same failing tool call three times running."""


class ToolFailed(TaskError):
    """A tool failed, and the task asked to end at that (`constraints.abort_on_error`)."""


class WorkspaceUnavailable(TaskError):
    """The task's folder cannot be made, or not from the repository that the task names."""


class TaskTimeout(TaskError):
    """The attempt took longer than its timeout."""


class DeadlineExceeded(TaskError):
    """The task's absolute deadline has passed."""


class Cancelled(TaskError):
    """The task was cancelled."""


class StrategyCrashed(TaskError):
    """A bug of ours ended the attempt; the log has the traceback."""


class PoisonTask(TaskError):
    """The task took its actor down with it each time it ran."""


class ToolError(AgentActorsError):
    """A tool call failed: the message is told to the model, which may try again."""


class ToolRefused(ToolError):
    """A tool call is not allowed; the message says what would be."""
