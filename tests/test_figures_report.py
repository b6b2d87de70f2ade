"""Figures and reports: the same bytes twice, small files, hostile names escaped, nothing from the network."""

import dataclasses
import re
import shlex
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from persona_bench import pipeline
from persona_bench.analysis.figures import draw as fg
from persona_bench.analysis.figures.drawing import new_figure, put_legend
from persona_bench.analysis.report import write_report
from persona_bench.analysis.report.content import rerun_command
from persona_bench.analysis.samples.frames import Samples
from persona_bench.analysis.tables.build import build_tables
from persona_bench.analysis.tables.files import read_tables, write_tables
from persona_bench.analysis.tables.judge import BASELINE
from persona_bench.analysis.verdicts.claims import judge_claims
from persona_bench.cli import main
from persona_bench.definitions.claims import claim
from tests.builders_samples import World, make_samples

CAPTION = fg.Caption("some/model", "quick", "some-grader", "2025-01-02", seed=0)
HOSTILE = 'x</td><script>alert("1")</script>$|`@one'


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    samples = make_samples()
    made = build_tables(samples, resamples=100)
    return made | {"claims": judge_claims(samples, made, resamples=100)}


@pytest.fixture(scope="module")
def drawn(tables, tmp_path_factory):
    return fg.draw_all(tables, tmp_path_factory.mktemp("figures"), CAPTION)


def run_record(**changes) -> dict[str, object]:
    record = {
        "model": "some/model",
        "preset": "quick",
        "grader": "some-grader",
        "seed": 0,
        "date": "2025-01-02",
        "traits": ["evil", "sycophancy"],
        "command": "persona-bench run --model some/model",
        "versions": {"torch": "2.13.0"},
        "weights": {"some/model": {"sha256": "ab12"}},
        "timings": {"steering": 12.345678},
        "logs": {"steering-evil": {"file": "a.eval", "eval_id": "e1"}},
        "warnings": ["the vector of evil acts as a refusal vector"],
        "deviations": ["temperature 0.7"],
    }
    return record | changes


def test_every_figure_is_drawn_small_and_in_both_forms(drawn):
    kinds = (
        "steering_{}",
        "monitoring_{}",
        "monitoring_{}_drift",
        "roc_{}",
        "roc_{}_drift",
        "drift_{}",
        "trace_{}",
        "frontier_{}",
    )
    names = {"claims", "mmlu", *(kind.format(trait) for kind in kinds for trait in ("evil", "sycophancy"))}
    assert {path.stem for path in drawn} == names and len(drawn) == 2 * len(names)
    assert all(0 < path.stat().st_size < 300_000 for path in drawn)


def test_figures_are_byte_identical_also_from_the_files(tables, drawn, tmp_path):
    again = fg.draw_all(tables, tmp_path / "again", CAPTION)
    for one, other in zip(drawn, again, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name
    write_tables(tables, tmp_path / "tables")
    back = fg.draw_all(read_tables(tmp_path / "tables"), tmp_path / "back", CAPTION)
    assert {path.stem for path in back} == {path.stem for path in drawn} - {"claims"}


@pytest.mark.parametrize("letters", [4, 24, 120])
def test_a_legend_has_as_many_columns_as_fit(letters):
    figure = new_figure(4.4)
    axes = figure.subplots()
    for number in range(9):
        axes.plot([0, 1], [0, number], label=f"{number}{'m' * letters}")
    put_legend(figure, axes)
    (legend,) = figure.legends
    assert (legend._ncols == 3) == (letters == 4)
    assert legend.get_window_extent().width <= figure.bbox.width or legend._ncols == 1


def test_the_figure_of_mmlu_names_its_controls_once_and_counts_questions(tables):
    """Cells of random vectors hold an answer under each of them."""
    mmlu = tables["mmlu"].query("group == 'all' and benchmark == 'mmlu'")
    steered = mmlu.query("vector == 'persona'")
    pooled = steered.assign(vector="random", n=2 * steered["n"])
    made = fg._mmlu_figure(pd.concat([mmlu, pooled]), fg.trait_colours(["evil", "sycophancy"]), CAPTION)
    labels = [text.get_text() for text in made.legends[0].get_texts()]
    assert len(labels) == len(set(labels)) and sum("random" in label for label in labels) == 1
    assert f"n = {steered['n'].max():g} questions a cell" in " ".join(made._supxlabel.get_text().split())


def test_nothing_measured_draws_nothing(tmp_path):
    assert fg.draw_all(build_tables(Samples()), tmp_path, CAPTION) == []


def test_a_trait_keeps_its_colour():
    alone, many = fg.trait_colours(["evil", "zeal"]), fg.trait_colours(["evil", "sycophancy", "zeal", "vim"])
    assert alone["evil"] == many["evil"] and len(set(many.values())) == 4


def test_file_names_are_safe_and_distinct():
    assert fg.slug("evil") == "evil"
    assert re.fullmatch(r"[A-Za-z0-9-]+", fg.slug("../a b")) and fg.slug("../a b") != fg.slug("a b")
    assert fg.slug("礼貌").startswith("trait-")


def test_caption_names_everything():
    assert CAPTION.line(5) == "some/model · preset quick · grader some-grader · n = 5 · 2025-01-02 · seed 0"


def test_many_layers_and_odd_names_can_be_drawn(tmp_path):
    world = World(traits=("礼貌 $x$",), layers=tuple(range(1, 11)), questions=4, epochs=1, mmlu_questions=20)
    samples = make_samples(world)
    made = build_tables(dataclasses.replace(samples, projections=Samples().projections), resamples=20)
    paths = fg.draw_all(made, tmp_path, CAPTION)
    assert any(path.name.startswith("steering_") for path in paths)
    assert fg._shown([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [7.0])[-1] == 10 and 7 in fg._shown(list(range(1, 11)), [7.0])


class _Checker(HTMLParser):
    """Collects tags, sources and ids, and whether tags are closed."""

    void = frozenset(["meta", "img", "input", "br", "link"])

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.sources, self.ids, self.text = [], [], [], set(), []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        self.sources += [values[key] for key in ("src", "href") if values.get(key)]
        self.ids |= {values["id"]} if "id" in values else set()
        if tag == "img" and "src" in values:
            assert values["alt"]
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def check(page: str) -> _Checker:
    checker = _Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    return checker


def test_report_is_one_file_without_network(tables, drawn, tmp_path):
    markdown, page = write_report(tmp_path, run_record(), tables, tables["claims"], drawn)
    assert (markdown.name, page.name) == ("report.md", "report.html")
    text = page.read_text(encoding="utf-8")
    found = check(text)
    assert found.tags.count("figure") == len(drawn) / 2 == 18
    for source in found.sources:
        assert source.startswith("data:image/png;base64,") or (source[0] == "#" and source[1:] in found.ids)
    assert not re.search(r"(?:src|href)=\"?https?:|url\(|@import", text)
    assert text.index("acts as a refusal vector") < text.index('id="claims"') < text.index("<figure>")
    assert text.count("<tbody data-verdict=") == len(tables["claims"])


def test_both_forms_say_the_same(tables, drawn, tmp_path):
    markdown, page = write_report(tmp_path, run_record(), tables, tables["claims"], drawn)
    md, text = markdown.read_text(encoding="utf-8"), " ".join(check(page.read_text(encoding="utf-8")).text)
    for title in ("Claims", "Figures", "Tables", "Method", "Judge validity", "Limits", "Provenance"):
        assert f"## {title}" in md and title in text
    for fact in ("ab12", "12.35", "2.13.0", "steering-evil", "persona-bench run --model some/model", "temperature 0.7"):
        assert fact in md and fact in text
    assert "> **Warning:** the vector of evil acts as a refusal vector" in md
    for claim_id in set(tables["claims"]["claim"]):
        assert claim_id in md and claim_id in text


def test_what_the_judge_says_of_coherence_and_no_empty_warnings(tables, drawn, tmp_path):
    markdown, _ = write_report(tmp_path, run_record(), tables, tables["claims"], drawn)
    text = markdown.read_text(encoding="utf-8")
    row = tables["judge_outcomes"].set_index(["trait", "source", "outcome"]).loc[("all", "model", "incoherent")]
    assert f"tells incoherent responses of models ({row['n_positive']} of {row['n']}) by its coherence" in text
    heads = [line for line in text.splitlines() if line.startswith("| trait |") and line.endswith("log | warning |")]
    assert not heads
    warned = {**tables, "mmlu": tables["mmlu"].assign(warning="odd")}
    markdown, _ = write_report(tmp_path, run_record(), warned, tables["claims"], drawn)
    heads = [line for line in markdown.read_text(encoding="utf-8").splitlines() if line.endswith("log | warning |")]
    assert len(heads) == 1 and "accuracy" in heads[0]


def test_the_markdown_fits_a_comment_on_a_pull_request(tables, drawn, tmp_path):
    markdown, _ = write_report(tmp_path, run_record(), tables, tables["claims"], drawn)
    assert len(markdown.read_text(encoding="utf-8")) < 65_536


def test_each_claim_has_its_controls_logs_and_command(tables, drawn, tmp_path):
    record = run_record(logs={"steering-evil-none-0-0": {"file": "logs/s.eval", "eval_id": "e77"}})
    _, page = write_report(tmp_path, record, tables, tables["claims"], drawn)
    text = page.read_text(encoding="utf-8")
    rows = text.split("<tbody data-verdict=")
    (body,) = [part for part in rows if ">C1-steering-induces<" in part and ">evil<" in part]
    random = tables["steering"].query("trait == 'evil' and half == 'report' and vector == 'random' and layer == 12")
    for score in random.loc[random["relative_dose"] == 0.4, "trait_score"]:
        assert f"<td>{score:.3g} [" in body
    assert "eval e77, logs/s.eval" in body and "--evals judge_validity,trait_elicitation,trait_steering" in body
    monitored = [part for part in rows if ">C3-monitoring-overall<" in part]
    assert all(f"<td>{name}</td>" in part for part in monitored for name in ("persona", "random:0", "text:tfidf"))


def test_the_command_of_a_verdict_is_one_that_the_command_line_takes():
    record = run_record(model="a b", traits=["evil", "my trait.json"], extraction_filter="coded")
    words = shlex.split(rerun_command(record, claim("C5-steering-costs-capability"), "evil"))
    assert words[:2] == ["persona-bench", "run"]
    context = main.commands["run"].make_context("run", words[2:])
    assert context.params["model"] == "a b" and context.params["traits"] == "evil"
    settings = pipeline.Settings(evals=tuple(context.params["evals"].split(",")), extraction_filter="coded")
    assert "mmlu_preservation" in settings.evals and context.params["rule"] == "coded"
    # A trait from a file is named by its path, which the row does not know: all traits run again.
    other = shlex.split(rerun_command(record, claim("C1-steering-induces"), "my trait"))
    assert main.commands["run"].make_context("run", other[2:]).params["traits"] == "evil,my trait.json"
    assert rerun_command(record | {"model": ""}, claim("D3-raw-projection"), "evil") == ""


def test_reports_are_byte_identical(tables, drawn, tmp_path):
    first = write_report(tmp_path / "a", run_record(), tables, tables["claims"], drawn)
    second = write_report(tmp_path / "b", run_record(), tables, tables["claims"], drawn)
    assert first[1].read_bytes() == second[1].read_bytes()


def test_text_from_strangers_is_escaped(tmp_path):
    samples = make_samples(World(traits=(HOSTILE,), questions=4, epochs=1, mmlu_questions=60, layers=(8,)))
    made = build_tables(samples, resamples=20)
    claims = judge_claims(samples, made, resamples=50)
    paths = fg.draw_all(made | {"claims": claims}, tmp_path / "figures", dataclasses.replace(CAPTION, model=HOSTILE))
    record = run_record(model=HOSTILE, warnings=[HOSTILE], command="``` " + HOSTILE, versions={HOSTILE: HOSTILE})
    markdown, page = write_report(tmp_path, record, made, claims, paths)
    text, md = page.read_text(encoding="utf-8"), markdown.read_text(encoding="utf-8")
    assert check(text).tags.count("script") == 1 and 'alert("1")' not in text
    # Inside a fence nothing is markup, as no text holds as many backticks as its fence.
    outside = re.sub(r"^(`{3,})\n.*?\n\1$", "", md, flags=re.DOTALL | re.MULTILINE)
    assert "<script>" not in outside and "@one" not in outside
    for line in outside.splitlines():
        if line.startswith("| C1"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 9


def test_a_judge_under_the_gate_is_a_warning(tmp_path):
    samples = make_samples(World(traits=("evil",), judge_noise=1e6))
    only = Samples(judge=samples.judge)
    made = build_tables(only, resamples=50)
    markdown, _ = write_report(tmp_path, run_record(warnings=[]), made, judge_claims(only, made), [])
    assert "> **Warning:** The judge of evil is under the gate" in markdown.read_text(encoding="utf-8")


def test_the_judge_stands_beside_the_best_trivial_one(tmp_path):
    """Of the trivial judges the one with the highest AUROC is named, and none of them is ever the judge in use."""
    judge = make_samples(World(traits=("evil",))).judge
    report = judge[judge["half"] == "report"].assign(grader=BASELINE, status="scored")
    noise = np.random.default_rng(0).uniform(0, 100, len(report))
    trivial = [
        report.assign(method="length", trait_score=noise),
        report.assign(method="lexicon", trait_score=np.where(report["level"] == 100, 90.0, noise)),
    ]
    samples = Samples(judge=pd.concat([judge, *trivial]))
    made = build_tables(samples, resamples=50)
    markdown, page = write_report(tmp_path, run_record(), made, judge_claims(samples, made), [])
    rows = made["judge"].set_index(["grader", "method", "half", "source"])
    best, mine = rows.loc[(BASELINE, "lexicon", "report", "all")], rows.loc[("grader-a", "contrast", "report", "all")]
    (line,) = [text for text in markdown.read_text(encoding="utf-8").splitlines() if "best trivial judge" in text]
    said = " ".join(check(page.read_text(encoding="utf-8")).text)
    for text in (line.replace("\\", ""), said):
        assert f"best trivial judge lexicon {best['auroc']:.3g}" in text
        assert f"right order in {100 * mine['pairwise']:.3g} % of clear pairs" in text
        assert f"kappa {mine['kappa']:.3g}" in text
        assert f"{mine['n_scored']} of {mine['n']} labelled answers scored" in text
    assert line.count("evil") == 1 and "by grader-a" in line.replace("\\", "")
    write_tables(made, tmp_path / "tables")
    again, _ = write_report(
        tmp_path / "again", run_record(), read_tables(tmp_path / "tables"), judge_claims(samples, made), []
    )
    assert line in again.read_text(encoding="utf-8").splitlines()


def test_without_trivial_judges_the_report_says_so(tables, tmp_path):
    markdown, _ = write_report(tmp_path, run_record(), tables, tables["claims"], [])
    assert markdown.read_text(encoding="utf-8").count("best trivial judge not run") == 2


def test_a_vector_that_acts_as_refusal_is_a_warning(tables, tmp_path):
    vectors = tables["vectors"].assign(warning="acts as refusal (cosine 0.8)")
    markdown, _ = write_report(tmp_path, {}, tables | {"vectors": vectors}, tables["claims"], [])
    warned = [line for line in markdown.read_text(encoding="utf-8").splitlines() if line.startswith("> **Warning")]
    assert len(warned) == 2 and "layer 12: acts as refusal" in warned[0]


def test_an_empty_run_still_has_a_report(tmp_path):
    made = build_tables(Samples())
    markdown, page = write_report(tmp_path, {}, made, judge_claims(Samples(), made), [])
    check(page.read_text(encoding="utf-8"))
    assert "Nothing was measured" in markdown.read_text(encoding="utf-8")
