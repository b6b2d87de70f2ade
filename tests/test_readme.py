"""The README's workflow parses, and every command and option it names exists."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import click
import pytest
import yaml

from persona_bench.cli import main

HERE = Path(__file__).parents[1]
README = (HERE / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """Every call of persona-bench in a code block, its lines joined."""
    lines = [line for _, text in BLOCKS for line in text.replace("\\\n", " ").splitlines()]
    lines += [step["run"] for step in workflow()["jobs"]["check"]["steps"] if "run" in step]
    words = [shlex.split(line, comments=True) for line in lines if re.match(r"\s*(\.venv/bin/)?persona-bench ", line)]
    assert words
    return words


def workflow() -> dict:
    (text,) = [text for kind, text in BLOCKS if kind == "yaml"]
    return yaml.safe_load(text)


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words[1:3]))
def test_commands_and_options_exist(words: list[str]) -> None:
    found: click.Command = main
    rest = words[1:]
    while isinstance(found, click.Group):
        assert rest[0] in found.commands, words
        found, rest = found.commands[rest[0]], rest[1:]
    known = {name for parameter in found.params for name in parameter.opts}
    assert {word.split("=")[0] for word in rest if word.startswith("--")} <= known, words


def test_the_arithmetic_of_a_million_conversations_follows_from_the_run() -> None:
    found = json.loads((HERE / "results/bench/h100-qwen2.5-7b-shape.json").read_text())
    rate, layer = found["scan"]["tokens_per_second"], found["scan"]["layer"]
    hours = 1e6 * 2.0 * (69.5 + 214.5) / rate / 3600
    for said in (
        f"read {rate:,.0f} tokens a second at layer {layer} of 28",
        f"{found['ratios']['one by one / scan']:.1f} times one pass after another",
        f"`bench --samples {found['scan']['samples']}`",
        f"That is {hours:.1f} hours on one H100 and {60 * hours / 8:.0f} minutes on eight",
        f"{20 / layer * hours:.1f} hours and {60 * 20 / layer * hours / 8:.0f} minutes",
    ):
        assert said in README


def test_the_workflow_checks_caches_reports_and_sums_up() -> None:
    found = workflow()
    assert "pull_request" in found[True]  # YAML 1.1 reads `on` as true
    job = found["jobs"]["check"]
    steps = job["steps"]
    uses = [step["uses"].split("@")[0] for step in steps if "uses" in step]
    assert {"actions/checkout", "actions/cache", "actions/upload-artifact"} <= set(uses)
    (call,) = [step["run"] for step in steps if "persona-bench check" in step.get("run", "")]
    (cached,) = [step["with"]["path"] for step in steps if step.get("uses", "").startswith("actions/cache")]
    assert job["env"]["PERSONA_BENCH_CACHE"].endswith(f"/{cached}")
    (upload,) = [step for step in steps if "upload-artifact" in step.get("uses", "")]
    assert upload["if"] == "always()" and f"--junit {upload['with']['path']}" in call
    assert '--summary "$GITHUB_STEP_SUMMARY"' in call
