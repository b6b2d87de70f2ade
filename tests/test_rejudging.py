"""Another grader on the responses of a finished run: nothing generated, and what changes is the grader's doing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from inspect_ai.log import EvalLog, EvalSample

from persona_bench import pipeline
from persona_bench.analysis.changes.verdicts import GRADER_CHANGE, counts, read_change, verdict_change
from persona_bench.analysis.samples.collect import read_logs
from persona_bench.analysis.terminal import read_claims
from persona_bench.errors import RunError
from persona_bench.models.rows import Job, Row
from persona_bench.publishing import publish
from tests.conftest import one_line
from tests.test_pipeline import Done, run, small_world


@dataclass
class World:
    """A finished run, its home, its model, and another grader."""

    home: Path
    model: Path
    twin: Path
    done: Done

    def rejudge(self, grader: Path, out: Path) -> tuple[Path, dict[str, Any], list[str]]:
        said: list[str] = []
        with small_world(self.home, self.model):
            folder, held = pipeline.rejudge(self.done.folder, str(grader), out, said.append, "persona-bench rejudge")
        return folder, held, said


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, _saved: Path) -> Iterator[World]:
    import evals.judge_validity  # noqa: F401 - the module is patched by its name

    home = tmp_path_factory.mktemp("run")
    twin = home / "twin"
    shutil.copytree(_saved, twin)
    yield World(home, _saved, twin, run(home, _saved, str(_saved)))


@pytest.fixture(scope="module")
def second(world: World) -> Iterator[tuple[Path, dict[str, Any], list[str]]]:
    """By the twin; every row that an engine was given meanwhile asked for no new tokens."""
    generates: list[bool] = []
    begin = Job.__init__

    def watched(self: Any, row: Row, *args: Any, **kwargs: Any) -> None:
        generates.append(row.sampling is not None)
        begin(self, row, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Job, "__init__", watched)
        made = world.rejudge(world.twin, world.home / "second")
    assert generates and not any(generates)
    yield made


def responses(logs: dict[str, EvalLog]) -> dict[tuple[str, str, int], tuple[str, Any]]:
    def turns(sample: EvalSample) -> Any:
        return [turn["answer"] for turn in sample.metadata.get("turns") or []]

    return {
        (name, str(sample.id), sample.epoch): (sample.output.completion, turns(sample))
        for name, log in logs.items()
        for sample in log.samples or []
    }


def files(folder: Path) -> dict[str, bytes]:
    paths = [*folder.glob("tables/*.csv"), *folder.glob("vectors/**/*.safetensors")]
    paths += [folder / "claims.csv", folder / "judge.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_the_same_grader_changes_nothing(world: World, tmp_path: Path) -> None:
    folder, held, _ = world.rejudge(world.model, tmp_path)
    assert files(folder) == files(world.done.folder)
    change = read_change(folder / f"{GRADER_CHANGE}.csv")
    assert len(change) and not change["changed"].any()
    assert held["rejudged"]["logs"] == {name: log.eval.eval_id for name, log in world.done.logs.items()}


def test_another_grader_judges_the_same_responses(world: World, second: tuple[Path, dict[str, Any], list[str]]) -> None:
    folder, held, said = second
    logs = read_logs(folder / "logs")
    assert responses(logs) == responses(world.done.logs)
    for name, log in logs.items():
        old = world.done.logs[name]
        assert log.eval.eval_id == held["logs"][name]["eval_id"] != old.eval.eval_id
        assert (log.eval.metadata or {})["rejudged"] == old.eval.eval_id
        assert "twin" in str(log.eval.model_roles) and "twin" not in str(old.eval.model_roles)
        scores = [[(sample.scores or {})["trait_judge"].value for sample in made.samples or []] for made in (log, old)]
        assert scores[0] != scores[1], name
    ours, theirs = files(folder), files(world.done.folder)
    assert ours["vectors/evil.safetensors"] == theirs["vectors/evil.safetensors"]
    assert ours["tables/elicitation.csv"] != theirs["tables/elicitation.csv"]
    assert json.loads(ours["judge.json"])["evil"]["grader"] == f"persona/{world.twin}"
    assert any("judge of evil: probe" in line for line in said)
    expected = verdict_change(read_claims(world.done.folder / "claims.csv"), read_claims(folder / "claims.csv"))
    pd.testing.assert_frame_equal(
        read_change(folder / f"{GRADER_CHANGE}.csv"), expected, check_dtype=False, check_exact=False, rtol=1e-4
    )
    report = (folder / "report.md").read_text()
    assert "## A second grader" in report and "verdicts change with the grader" in report and "same vectors" in report


def test_it_goes_on_where_it_stopped(world: World, second: tuple[Path, dict[str, Any], list[str]]) -> None:
    folder, held, said = second
    before = files(folder)
    assert sum(line.startswith("judging ") for line in said) == len(world.done.logs)
    _, again, nothing = world.rejudge(world.twin, world.home / "second")
    assert {**again, "timings": {}} == {**held, "timings": {}}
    assert not [line for line in nothing if line.startswith("judging ")]
    (folder / "run.json").unlink()
    (folder / held["logs"]["trait_steering/evil"]["file"]).unlink()
    _, again, some = world.rejudge(world.twin, world.home / "second")
    assert [line.split(",")[0] for line in some if line.startswith("judging ")] == ["judging trait_steering/evil"]
    assert files(folder) == before and again["logs"] == held["logs"]


def test_what_cannot_be_judged_again_is_one_line(
    world: World, second: tuple[Path, dict[str, Any], list[str]], tmp_path: Path
) -> None:
    with pytest.raises(RunError) as error:
        world.rejudge(world.twin, world.home / "results")
    one_line(error, "is the run itself", "--out")
    with pytest.raises(RunError) as error:
        world.rejudge(world.model, world.home / "second")
    one_line(error, "another grader", "--out")
    published = publish(world.done.folder, tmp_path, allow_quick=True).folder
    (tmp_path / "empty").mkdir()
    for source, words in ((published, "header-only; rejudge needs the full logs"), (tmp_path / "empty", "no run.json")):
        with pytest.raises(RunError) as error:
            pipeline.rejudge(source, "g", tmp_path / "out", print)
        one_line(error, words, str(source))
    assert not (tmp_path / "out").exists()


def test_it_is_published_within_the_run_it_judges(
    world: World, second: tuple[Path, dict[str, Any], list[str]], tmp_path: Path
) -> None:
    with pytest.raises(RunError) as error:
        publish(second[0], tmp_path, allow_quick=True)
    one_line(error, "publish that one first")
    base = publish(world.done.folder, tmp_path, allow_quick=True).folder
    made = publish(second[0], tmp_path, allow_quick=True)
    assert made.folder.parent == base / "rejudged" and (made.folder / f"{GRADER_CHANGE}.csv").is_file()
    assert not publish(world.done.folder, tmp_path, allow_quick=True).changed and made.folder.is_dir()


def test_a_change_is_a_verdict_that_differs() -> None:
    def claims(**verdicts: str) -> pd.DataFrame:
        rows = [{"claim": name, "trait": "evil", "verdict": verdict} for name, verdict in verdicts.items()]
        return pd.DataFrame(rows).assign(estimate=1.0, ci_low=0.0, ci_high=2.0, n=5, reason="")

    first = claims(B="supported", A="supported", C="not run", D="not run")
    second = claims(B="supported", A="inconclusive", C="contradicted", D="not run")
    change = verdict_change(first, second)
    assert list(change["claim"]) == ["B", "A", "C"] and list(change["changed"]) == [False, True, True]
    said = counts(change, "the grader")
    assert said.startswith("2 of 3 verdicts change") and "1 from supported to inconclusive" in said
    assert said.endswith(
        "of 2 that the first supported or contradicted, the judge's own left out, 1 stand and 0 turn into the opposite"
    )
