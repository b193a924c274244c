"""JSON on stdout, for programs."""

import click
import msgspec


def print_json(value: object) -> None:
    """Print one JSON document, indented, so that people can read it too."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))


def print_json_line(value: object) -> None:
    """Print one JSON document on one line, for whoever reads line by line."""
    click.echo(msgspec.json.encode(value))
