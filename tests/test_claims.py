"""The registry is whole, says what it must, and its page and its rows in a terminal come from it."""

import io
import re
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from persona_bench.analysis.tables.files import write_tables
from persona_bench.analysis.terminal import print_claims, read_claims
from persona_bench.analysis.verdicts.claims import CLAIM_COLUMNS
from persona_bench.definitions.claim_types import LLAMA, QWEN
from persona_bench.definitions.claims import ALL_TRAITS, CLAIMS, claim
from persona_bench.definitions.claims_page import claims_page

ROOT = Path(__file__).parents[1]
EVALS = {
    *("judge_validity", "trait_elicitation", "trait_steering", "trait_monitoring", "mmlu_preservation"),
    *("preventative_steering", "data_flagging", "stated_limits"),
}


def test_every_claim_says_how_it_is_decided():
    assert len({entry.id for entry in CLAIMS}) == len(CLAIMS)
    assert {entry.eval for entry in CLAIMS} == EVALS
    for entry in CLAIMS:
        assert re.fullmatch(r"[A-Z]\d*-[a-z-]+", entry.id) and len(entry.id) <= 30
        for text in (entry.statement, entry.section, entry.statistic, entry.not_testable_when):
            assert text.strip() == text and len(text) > 8
        assert "supported" in entry.rule.lower() and "contradicted" in entry.rule
        assert entry.min_n >= 1
        assert bool(entry.condition) == (entry.eval == "trait_monitoring")


@pytest.mark.parametrize(
    ("claim_id", "trait", "values"),
    [
        ("C3-monitoring-overall", "sycophancy", ["0.798 (model not found)"]),
        ("C9-many-shot-within", "hallucination", ["0.4 (model not found)"]),
        ("F1-shift-own-trait", "apathetic", [f"0.839 ({QWEN})", f"0.936 ({LLAMA})"]),
        ("D1-difference-tells-shift", "hallucination", [f"0.408 ({QWEN})", f"0.593 ({LLAMA})"]),
        ("D4-no-generation-needed", "evil", [f"0.931 ({QWEN})"]),
        ("V1-cosines", "optimistic", [f"evil-optimistic cosine -0.472 ({QWEN}), -0.469 ({LLAMA})"]),
        ("C2-steering-suppresses", "hallucination", [f"unsteered trait score 20.1 ({QWEN})"]),
        ("J-judge-valid", "evil", ["94.7", "97"]),
    ],
)
def test_the_papers_values_stand_by_model_and_trait(claim_id, trait, values):
    said = claim(claim_id).paper_value(trait)
    assert all(value in said for value in values), said
    others = {item.value for item in claim(claim_id).reference if item.trait and trait not in item.trait.split("-")}
    mine = {item.value for item in claim(claim_id).reference if not item.trait or trait in item.trait.split("-")}
    assert others - mine and not any(f" {value:g} (" in said for value in others - mine)


def test_what_the_paper_does_not_give_is_not_found():
    assert claim("C3-monitoring-overall").paper_value("impolite") == "not found"
    assert claim("C5-steering-costs-capability").paper_value("evil").startswith("not found; in words: ")
    assert claim("D5-samples-separable").reference == ()


def test_rows_follow_the_traits():
    assert claim("C1-steering-induces").rows(["evil", "kind"]) == ["evil", "kind"]
    assert claim("P7-caft-fails").rows(["evil", "kind"]) == []
    assert claim("N1-deception").rows(["evil", "kind"]) == [ALL_TRAITS] and claim("N1-deception").rows([]) == []


def test_the_committed_page_is_what_the_registry_gives():
    page = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
    assert page == claims_page(), "run `make docs`"
    assert all(f"### {entry.id}\n" in page and entry.rule in page for entry in CLAIMS)


def table(*rows: dict[str, object]) -> pd.DataFrame:
    plain = {"claim": "C3-monitoring-overall", "trait": "evil", "statement": "A statement.", "verdict": "supported"}
    plain |= {"paper_value": "r 0.747 (model not found)", "estimate": 0.5, "ci_low": 0.4, "ci_high": 0.6, "n": 30}
    plain |= {"reason": "r 0.5 against 0.3", "p_holm": 0.01, "log": "", "warning": ""}
    return pd.DataFrame([plain | row for row in rows], columns=list(CLAIM_COLUMNS))


def printed(claims: pd.DataFrame, tmp_path: Path, *, colour: bool = False) -> str:
    write_tables({"claims": claims}, tmp_path)
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=colour, color_system="standard" if colour else None)
    print_claims(read_claims(tmp_path / "claims.csv"), console)
    return out.getvalue()


def test_the_terminal_shows_verdicts_within_80_columns(tmp_path):
    claims = table(
        {},
        {"trait": "null", "verdict": "inconclusive", "reason": "p = 0.2 after Holm's correction " * 4},
        {"trait": "[bold]" + "long" * 9, "verdict": "not testable", "estimate": None, "reason": "[/red] x" * 30},
        {"claim": "D3-raw-projection", "verdict": "not run", "estimate": None, "reason": "hidden"},
    )
    text = printed(claims, tmp_path)
    assert max(map(len, text.splitlines())) <= 80 and "\x1b" not in text
    assert "1 supported, 1 inconclusive, 1 not testable, 1 not run" in " ".join(text.split())
    flat = " ".join(text.split())
    assert "evil supported 0.5 [0.4, 0.6], n 30; paper: r 0.747 (model not found)" in flat
    assert "null inconclusive p = 0.2 after" in flat and "[bold]long" in text and "[/red] x" in text
    assert "data_flagging 1" in text and "hidden" not in text


def test_the_terminal_colours_verdicts(tmp_path):
    text = printed(table({}, {"verdict": "contradicted"}), tmp_path, colour=True)
    assert "\x1b[1;32msupported" in text and "\x1b[1;31mcontradicted" in text
