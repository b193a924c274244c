"""The command line, `agent-actors COMMAND`.

Each command is a module of this package, imported when it is used: Ray takes a second to
import, and only `up` and `serve` need it.
"""

from importlib import import_module
from typing import Any, NamedTuple

import click

from agent_actors import __version__
from agent_actors.cli.failure import failure_for
from agent_actors.cli.invocation import Invocation, shared_options
from agent_actors.errors import AgentActorsError

INTERRUPTED = 130  # as shells have it: 128 and the number of SIGINT


class Home(NamedTuple):
    """Where a command is, and its line in the list of commands."""

    module: str
    name: str
    line: str


COMMANDS = {
    "up": Home("cli.up", "up", "Run everything on this machine, for development."),
    "serve": Home("cli.serve", "serve", "Run the service on the NATS, Ray and vLLM configured."),
    "submit": Home("cli.submit", "submit", "Hand in a task."),
    "status": Home("cli.status", "status", "Show where a task stands, or what the service does."),
    "cancel": Home("cli.cancel", "cancel", "Stop a task, or keep it from starting."),
    "watch": Home("cli.watch", "watch", "Show results as they come."),
    "pools": Home("cli.pools", "pools", "Show the pools and what waits for them."),
    "scale": Home("cli.scale", "scale", "Set how many actors a pool has."),
    "deadletter": Home("cli.deadletter", "deadletter", "Show, replay or discard dead letters."),
    "drain": Home("cli.drain", "drain", "Stop the service; running tasks may finish."),
    "provision": Home(
        "cli.provision", "provision", "Make streams, buckets and consumers in JetStream."
    ),
    "schema": Home("cli.about", "schema", "Print the JSON Schema of tasks and results."),
    "config": Home(
        "cli.about", "config", "Show the configuration, and compare it with the running one."
    ),
    "model-server": Home(
        "local.model_server.command",
        "model_server",
        "Run a model server that answers as vLLM does, with a simulation in place of a model.",
    ),
    "version": Home("cli.about", "version", "Print the version."),
}

EPILOG = """\b
Exit codes: 0 done; 1 the task failed; 2 wrong usage or configuration;
3 the service cannot be reached, or did not answer in time."""


class Commands(click.Group):
    """The commands of the table, and what their errors come to."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the commands' names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Import a command."""
        home = COMMANDS.get(cmd_name)
        return getattr(import_module(f"agent_actors.{home.module}"), home.name) if home else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, home.line) for name, home in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's signature
        """Run the command; an error of ours ends it with a sentence and an exit code."""
        try:
            return super().invoke(ctx)
        except AgentActorsError as error:
            debug = ctx.ensure_object(Invocation).debug
            raise failure_for(error, with_traceback=debug) from error
        except KeyboardInterrupt:
            raise click.exceptions.Exit(INTERRUPTED) from None


@click.group(cls=Commands, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="agent-actors")
@shared_options
def commands() -> None:
    """AI-agent tasks as a long-lived service: NATS in front, Ray below, vLLM behind."""


def main() -> None:
    """Run the command that the process was started with."""
    commands(prog_name="agent-actors")
