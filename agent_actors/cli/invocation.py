"""What every command can be told: where the configuration is, and to show its insides."""

import os
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import click

from agent_actors.config import Config
from agent_actors.config_file import FILE_VARIABLE, load_complete, load_config

F = TypeVar("F", bound=Callable[..., Any])


class Invocation:
    """The options before and after the command's name, the later ones winning."""

    def __init__(self) -> None:
        self.config_path: str | None = None
        self.debug = False

    @property
    def config_file(self) -> str:
        """The path of the configuration's file; empty when there is none."""
        return self.config_path or os.environ.get(FILE_VARIABLE, "")

    def load(
        self, overrides: Mapping[str, str] | None = None, *, without: Collection[str] = ()
    ) -> Config:
        """Return the configuration, with environment variables overridden.

        `without` names sections that are not needed. Raises ConfigError.
        """
        environ = {**os.environ, **(overrides or {})}
        return load_config(self.config_path, environ, without=without)

    def load_complete(self) -> Config:
        """Return the configuration if it has all that a service needs. Raises ConfigError."""
        return load_complete(self.config_path, os.environ)


def shared_options(command: F) -> F:
    """Add `--config` and `--debug`."""
    for option in (
        click.option(
            "--config",
            metavar="PATH",
            expose_value=False,
            callback=_set_config,
            help="The configuration file; else $AGENT_ACTORS_CONFIG.",
        ),
        click.option(
            "--debug",
            is_flag=True,
            expose_value=False,
            callback=_set_debug,
            help="Log everything, and show where an error comes from.",
        ),
    ):
        command = option(command)
    return command


def json_option(command: F) -> F:
    """Add `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def _set_config(ctx: click.Context, _: click.Parameter, path: str | None) -> None:
    if path is not None:
        ctx.ensure_object(Invocation).config_path = path


def _set_debug(ctx: click.Context, _: click.Parameter, debug: bool) -> None:  # noqa: FBT001 - click's signature
    invocation = ctx.ensure_object(Invocation)
    invocation.debug = invocation.debug or debug
