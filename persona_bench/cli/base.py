"""What every command shares: the group that turns errors into one line and exit code 2, options, output."""

from __future__ import annotations

import errno
import sys
import traceback
import unicodedata
from collections.abc import Iterable
from typing import Any

import click

from persona_bench.errors import DataError, PersonaBenchError

SHOWN: dict[str, Any] = {"show_default": True}
GRADER_HELP = "Inspect model or local weights that judge; several, comma-separated, are a panel."


_MENDABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


class _Group(click.Group):
    """Turns the errors a user can mend into one line and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PersonaBenchError as error:
            _fail(str(error))
        except OSError as error:
            if error.errno not in _MENDABLE:
                raise
            _fail(
                f"cannot write {error.filename or 'a file'}: {error.strerror}; free some space or choose another --out"
            )


class Deciding(click.Command):
    """A command whose exit code 1 is an answer: whatever else ends it ends with 2, with its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run it; the errors that the group has a line for are left to it."""
        try:
            return super().invoke(ctx)
        except (PersonaBenchError, click.ClickException, click.exceptions.Exit):
            raise
        except (Exception, KeyboardInterrupt) as error:
            if isinstance(error, OSError) and error.errno in _MENDABLE:
                raise
            traceback.print_exc()
            sys.exit(2)


def _fail(message: str) -> None:
    click.echo(f"persona-bench: {printable(' '.join(message.split()))}", err=True)
    sys.exit(2)


def printable(text: str) -> str:
    """A text without what could steer a terminal, as a stranger's file may hold it; line ends and tabs stay."""
    return "".join(
        # Of spaces Python calls only the common one printable.
        each
        if each.isprintable() or each in "\n\t" or unicodedata.category(each) == "Zs"
        else "\N{REPLACEMENT CHARACTER}"
        for each in text
    )


def say(message: str) -> None:
    """A line about what happens; results alone go to stdout."""
    click.echo(printable(message), err=True)


def warn(message: str) -> None:
    """A line about what is not as it should be."""
    say(f"warning: {message}")


def tell(result: object) -> None:
    """A result, on stdout."""
    click.echo(printable(str(result)))


def some_grader(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    """The value of --grader, if it names any."""
    if not any(name.strip() for name in value.split(",")):
        raise DataError(f"--grader {value!r} names no grader; {GRADER_HELP}")
    return value


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="persona-bench")
def main() -> None:
    """Measure what persona vectors can and cannot do."""


def print_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """A table as wide as the terminal, or 160 columns where there is none."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(printable(title)))
    for column in columns:
        table.add_column(printable(column), overflow="fold")
    for row in rows:
        # Text, as names and reasons may hold what rich takes for markup.
        table.add_row(*(Text(printable(str(cell))) for cell in row))
    Console(width=None if sys.stdout.isatty() else 160).print(table)
