"""What an error of ours comes to on the command line: a sentence, and an exit code."""

import traceback
from typing import IO, Any

import click

from agent_actors.errors import (
    AgentActorsError,
    ConfigError,
    DeadLetterMissing,
    DeadLetterRefused,
    InvalidTask,
    ProvisionRefused,
    RequestRefused,
)

TASK_FAILED = 1
WRONG_USAGE = 2
UNREACHABLE = 3

MISTAKES = (
    ConfigError,
    DeadLetterMissing,
    DeadLetterRefused,
    InvalidTask,
    ProvisionRefused,
    RequestRefused,
)


class Failure(click.ClickException):
    """The service cannot be reached, or it did not answer in time."""

    exit_code = UNREACHABLE

    def __init__(self, error: AgentActorsError, *, with_traceback: bool) -> None:
        super().__init__(str(error))
        self._error = error
        self._with_traceback = with_traceback

    def show(self, file: IO[Any] | None = None) -> None:
        """Say it on stderr."""
        if self._with_traceback:
            click.echo("".join(traceback.format_exception(self._error)), err=True, nl=False)
        super().show(file)


class Mistake(Failure):
    """What was asked for, or configured, is wrong."""

    exit_code = WRONG_USAGE


def failure_for(error: AgentActorsError, *, with_traceback: bool) -> Failure:
    """Return how the command ends because of this error."""
    is_mistake = isinstance(error, MISTAKES)
    return (Mistake if is_mistake else Failure)(error, with_traceback=with_traceback)
