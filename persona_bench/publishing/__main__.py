"""`python -m persona_bench.publishing [ROOT]`: bring the pages about results up to date."""

import sys
from pathlib import Path

import click

from persona_bench.publishing.pages import write_pages

if __name__ == "__main__":
    for name in write_pages(Path(sys.argv[1] if len(sys.argv) > 1 else ".")):
        click.echo(name)
