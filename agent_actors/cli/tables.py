"""Tables on stdout, for people."""

import sys
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDE_ENOUGH = 1_000


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table as wide as the terminal; not on a terminal, as wide as it needs to be."""
    width = None if sys.stdout.isatty() else WIDE_ENOUGH
    Console(highlight=False, width=width).print(table_of(headings, rows))


def table_of(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Return a table for a terminal."""
    table = Table(*headings, box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    return table
