"""The command line: thin commands over the library; every error is one line and exit code 2."""

from persona_bench.cli import finetuning, judging, machine, runs, scanning, vectors
from persona_bench.cli.base import main

__all__ = ["finetuning", "judging", "machine", "main", "runs", "scanning", "vectors"]
