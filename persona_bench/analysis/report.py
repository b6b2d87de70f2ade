"""The report of a run: one content, rendered as report.md (for a pull request) and report.html (one file, no network).

Model names, trait names, reasons and commands are data from strangers: the HTML escapes every text, and forbids every
outside source by its content policy; the Markdown escapes every character that could be markup or a mention.
"""

import base64
import html
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from persona_bench.analysis.figures import VERDICT_COLOURS, slug
from persona_bench.analysis.tables import BASELINE
from persona_bench.analysis.verdicts import VERDICTS
from persona_bench.definitions.claims import CLAIMS, GATE_AUROC, GATE_BALANCED_ACCURACY, Claim

__all__ = ["write_report"]

MOST_ROWS = 120
"""A longer table is cut here; its CSV file has all rows."""
_FIGURE_OF = {
    "C1-steering-induces": "steering_{}",
    "C2-steering-suppresses": "steering_{}",
    "C3-monitoring-overall": "monitoring_{}",
    "C4-monitoring-within": "monitoring_{}",
    "M1-monitoring-beats-text": "roc_{}",
    "C5-steering-costs-capability": "mmlu",
    "C6-steering-costs-coherence": "steering_{}",
    "C7-prompt-costs-less": "frontier_{}",
}
_ALT = {
    "claims": "Matrix of verdicts, a claim a row and a trait a column",
    "steering": "Trait score and coherence against relative dose, by layer, with the random control",
    "monitoring": "Projection of the last prompt token against the trait score, by condition",
    "roc": "True against false alarms of the projection and of its baselines",
    "trace": "Projection token by token over two responses",
    "drift": "Trait score and projection by turn of conversations that drift",
    "frontier": "Trait score against MMLU accuracy, a point a way of steering or suppressing, with the frontier",
    "mmlu": "MMLU accuracy against relative dose, with the unsteered band and the chance line",
}
_TABLES = {
    "judge": "The judge on labelled answers",
    "judge_cases": "The judge by kind of answer",
    "elicitation": "Answers under positive and negative instructions",
    "steering_choice": "The cells chosen on the select half",
    "steering": "Steering, a row a cell",
    "monitoring": "Monitoring: projections and baselines against the trait score",
    "monitoring_rungs": "Monitoring: means by condition",
    "drift": "Drifting conversations: how early the alarm comes",
    "mmlu": "MMLU, a row a cell",
    "tradeoff_summary": "What halving the trait score costs",
    "tradeoff": "Trait score beside MMLU, a row a cell",
    "vectors": "The vectors, a row a layer",
}
_METHOD = (
    "Layer and coefficient are chosen on one half of the questions (the highest trait score among the doses that keep "
    "at least half of the unsteered coherence), and what is claimed about trait scores is decided on the other half.",
    "Intervals are 95 % bootstrap intervals that resample whole questions, widened for few questions (Hesterberg "
    "2015); shares have Wilson intervals. Differences are paired by question.",
    "Each claim has a rule that was written before the results. A claim that its interval supports or contradicts "
    "stays so only if its p value is under 0.05 after Holm's correction over all tests of the run.",
    f"A trait whose judge has an AUROC under {GATE_AUROC:.2f} or a balanced accuracy under "
    f"{GATE_BALANCED_ACCURACY:.2f} on held-out labelled answers decides no claim that rests on the judge.",
    "Every answer is scored, a refusal, incoherent (coherence under 50) or unscored (the grader failed): trait scores "
    "are means over the scored ones, and the numbers of the others stand beside them.",
)
_LIMITS = (
    "Single-turn questions, a handful of traits, and one model a run; a verdict is about this model and this preset.",
    "The judge is itself a model, and the answers that check it were written and graded by language models, not by "
    "people.",
    "Means leave refusals and incoherent answers out, so a vector that makes the model refuse or ramble changes which "
    "answers are averaged: read those counts beside each trait score.",
    "The random control is one draw of a random direction, not a distribution of them.",
    "An inconclusive verdict is no evidence of absence, least of all in a small preset.",
    "Nothing here shows that goal-directed deception, sandbagging or evasion of monitoring would be detected.",
)


@dataclass(frozen=True)
class _Text:
    text: str


@dataclass(frozen=True)
class _List:
    items: Sequence[str]


@dataclass(frozen=True)
class _Code:
    text: str


@dataclass(frozen=True)
class _Table:
    title: str
    frame: pd.DataFrame
    note: str = ""


@dataclass(frozen=True)
class _Image:
    path: Path
    alt: str


_Block = _Text | _List | _Code | _Table | _Image


@dataclass(frozen=True)
class _Section:
    title: str
    blocks: Sequence[_Block]


def write_report(
    folder: Path,
    run: Mapping[str, Any],
    tables: Mapping[str, pd.DataFrame],
    claims: pd.DataFrame,
    figures: Sequence[Path],
) -> tuple[Path, Path]:
    """Write report.md and report.html.

    Args:
        folder: where the files go; is made where it does not exist.
        run: the content of run.json. Read, where present: model, preset, grader, seed, date, traits, command,
            versions, weights, timings (seconds), logs, warnings, deviations.
        tables: as `build_tables` gives them.
        claims: as `judge_claims` gives it.
        figures: as `draw_all` gives them; the PNG files are shown.

    Returns:
        The paths of report.md and report.html.
    """
    folder.mkdir(parents=True, exist_ok=True)
    images = [_Image(path, _alt(path.stem)) for path in figures if path.suffix == ".png"]
    sections = _sections(run, tables, images)
    title, warnings = _title(run), _warnings(run, tables)
    markdown, page = folder / "report.md", folder / "report.html"
    markdown.write_text(_markdown(folder, title, warnings, claims, sections), encoding="utf-8", newline="\n")
    page.write_text(_html(title, warnings, claims, sections, images), encoding="utf-8", newline="\n")
    return markdown, page


# --- content ----------------------------------------------------------------------------------------------------------


def _title(run: Mapping[str, Any]) -> str:
    return f"Persona vectors on {run.get('model', 'an unnamed model')}, preset {run.get('preset', 'unnamed')}"


def _warnings(run: Mapping[str, Any], tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """What a reader must know before any number: the run's own warnings, the vectors', and judges under the gate."""
    found = [str(text) for text in run.get("warnings") or []]
    vectors = tables["vectors"]
    chosen = vectors[vectors["chosen"].astype(str) == "True"]
    found += [
        f"Vector {row['trait']}, layer {row['layer']:g}: {row['warning']}"
        for _, row in chosen.iterrows()
        if isinstance(row["warning"], str) and row["warning"]
    ]
    judge = tables["judge"]
    in_use = judge[(judge["chosen"].astype(str) == "True") & (judge["half"] == "report")]
    found += [
        f"The judge of {row['trait']} is under the gate (AUROC {row['auroc']:.2f}, balanced accuracy "
        f"{row['balanced_accuracy']:.2f}): its trait scores decide no claim."
        for _, row in in_use.iterrows()
        if str(row["passes"]) != "True"
    ]
    return list(dict.fromkeys(found))


def _best_baseline(judge: pd.DataFrame, trait: str) -> str:
    """The trivial judge with the highest AUROC on the report half."""
    rows = judge[(judge["grader"] == BASELINE) & (judge["trait"] == trait) & (judge["source"] == "all")]
    if rows.empty:
        return "not run"
    best = rows.sort_values("auroc", ascending=False).iloc[0]
    return f"{best['method']} {_number(best['auroc'])}"


def _sections(run: Mapping[str, Any], tables: Mapping[str, pd.DataFrame], images: Sequence[_Image]) -> list[_Section]:
    judge = tables["judge"]
    in_use = judge[(judge["chosen"].astype(str) == "True") & (judge["half"] == "report")]
    checked = [
        f"{row['trait']}: {row['method']} judge by {row['grader']}, AUROC {_number(row['auroc'])} "
        f"[{_number(row['auroc_low'])}, {_number(row['auroc_high'])}], balanced accuracy "
        f"{_number(row['balanced_accuracy'])}, rank correlation {_number(row['spearman'])}, right order in "
        f"{_number(100 * row['pairwise'])} % of clear pairs (the paper's judge: 94.7 % agreement with people), "
        f"kappa {_number(row['kappa'])}, best trivial judge {_best_baseline(judge, row['trait'])}, "
        f"{row['n_scored']} of {row['n']} labelled answers scored: "
        f"{'passes' if str(row['passes']) == 'True' else 'fails'}"
        for _, row in in_use.iterrows()
    ]
    shown = [_cut(_Table(title, tables[name]), name) for name, title in _TABLES.items() if len(tables[name])]
    sections = [
        _Section("Figures", list(images) or [_Text("No figure was drawn.")]),
        _Section("Tables", shown or [_Text("Nothing was measured.")]),
        _Section("Method", [_List(_METHOD)]),
        _Section("Judge validity", [_List(checked) if checked else _Text("The judge was not checked.")]),
        _Section("Limits", [_List(_LIMITS)]),
    ]
    deviations = [str(text) for text in run.get("deviations") or []]
    if deviations:
        sections.append(_Section("Deviations from the paper", [_List(deviations)]))
    return [*sections, _Section("Provenance", _provenance(run))]


def _cut(table: _Table, name: str) -> _Table:
    if len(table.frame) <= MOST_ROWS:
        return table
    note = f"The first {MOST_ROWS} of {len(table.frame)} rows; tables/{name}.csv has them all."
    return _Table(table.title, table.frame.head(MOST_ROWS), note)


def _provenance(run: Mapping[str, Any]) -> list[_Block]:
    blocks: list[_Block] = []
    facts = [f"{key}: {run[key]}" for key in ("model", "preset", "grader", "seed", "date") if run.get(key) is not None]
    if run.get("traits"):
        facts.append("traits: " + ", ".join(str(trait) for trait in run["traits"]))
    blocks.append(_List(facts) if facts else _Text("The run left no record of itself."))
    if run.get("command"):
        blocks += [_Text("The exact command:"), _Code(str(run["command"]))]
    for key, title in (
        ("versions", "Versions"),
        ("weights", "Weights and their hashes"),
        ("timings", "Time by stage, seconds"),
        ("logs", "Logs"),
    ):
        entries = run.get(key)
        if isinstance(entries, Mapping) and entries:
            rows = [(str(name), _value(value)) for name, value in entries.items()]
            blocks.append(_Table(title, pd.DataFrame(rows, columns=["name", "value"])))
    return blocks


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_value(part)}" for key, part in value.items())
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _alt(stem: str) -> str:
    kind, _, trait = stem.partition("_")
    return _ALT.get(kind, stem) + (f": {trait}" if trait else "")


def _claim(claim_id: str) -> Claim | None:
    return next((claim for claim in CLAIMS if claim.id == claim_id), None)


def _number(value: Any) -> str:
    """Three or four significant digits; a dash where there is no value."""
    if isinstance(value, bool | str):
        return str(value)
    if value is None or pd.isna(value):
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _spread(row: pd.Series) -> str:
    if pd.isna(row["estimate"]):
        return "–"
    value = f"{row['estimate']:.3g}"
    return value if pd.isna(row["ci_low"]) else f"{value} [{row['ci_low']:.3g}, {row['ci_high']:.3g}]"


def _tally(claims: pd.DataFrame) -> str:
    counts = claims["verdict"].value_counts().to_dict()
    return (
        ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if verdict in counts) or "no claim was judged"
    )


# --- Markdown ---------------------------------------------------------------------------------------------------------

_MARKUP = re.compile(r"([\\`*_\[\]|!~$#])")


def _md(text: object) -> str:
    """Text that no Markdown reader takes for markup, for HTML, or for the mention of a person."""
    flat = " ".join(str(text).split())
    escaped = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKUP.sub(r"\\\1", escaped).replace("@", "@<!-- -->")


def _md_table(frame: pd.DataFrame) -> str:
    head = [_md(column) for column in frame.columns]
    lines = [head, ["---"] * len(head)]
    lines += [[_md(_number(value)) for value in row] for row in frame.itertuples(index=False, name=None)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _md_block(block: _Block, folder: Path) -> str:
    if isinstance(block, _Text):
        return _md(block.text)
    if isinstance(block, _List):
        return "\n".join(f"- {_md(item)}" for item in block.items)
    if isinstance(block, _Code):
        # A fence longer than any run of backticks inside cannot be closed by the text.
        longest = max((len(ticks) for ticks in re.findall(r"`+", block.text)), default=0)
        fence = "`" * max(3, longest + 1)
        return f"{fence}\n{block.text}\n{fence}"
    if isinstance(block, _Image):
        where = Path(os.path.relpath(block.path, folder)).as_posix()
        return f"![{_md(block.alt)}]({quote(where)})"
    note = f"\n\n{_md(block.note)}" if block.note else ""
    table = _md_table(block.frame)
    return f"<details><summary>{html.escape(block.title)}</summary>\n\n{table}{note}\n\n</details>"


def _markdown(
    folder: Path, title: str, warnings: Sequence[str], claims: pd.DataFrame, sections: Sequence[_Section]
) -> str:
    parts = [f"# {_md(title)}"]
    parts += [f"> **Warning:** {_md(text)}" for text in warnings]
    parts += ["## Claims", f"{_md(_tally(claims).capitalize())}."]
    shown = pd.DataFrame(
        {
            "claim": claims["claim"],
            "trait": claims["trait"],
            "verdict": claims["verdict"],
            "estimate [95 %]": [_spread(row) for _, row in claims.iterrows()],
            "n": claims["n"].astype(str),
            "paper": claims["paper_value"],
            "reason": claims["reason"],
            "p (Holm)": [_number(p) for p in claims["p_holm"]],
            "log": claims["log"],
        }
    )
    parts.append(_md_table(shown))
    used = [claim for claim in CLAIMS if claim.id in set(claims["claim"])]
    rules = "\n".join(
        f"- **{_md(c.id)}** ({_md(c.section)}): {_md(c.statement)} {_md(c.rule)} Needs {c.min_n} valid samples."
        for c in used
    )
    parts.append(f"<details><summary>The claims and their rules</summary>\n\n{rules}\n\n</details>")
    for section in sections:
        parts.append(f"## {_md(section.title)}")
        parts += [_md_block(block, folder) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


# --- HTML -------------------------------------------------------------------------------------------------------------

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_STYLE = """
:root{--line:#d5d5d5;--soft:#f5f5f5}
*{box-sizing:border-box}
body{font:16px/1.5 system-ui,sans-serif;color:#1a1a1a;max-width:72rem;margin:0 auto;padding:1rem}
h1{font-size:1.5rem;line-height:1.25;overflow-wrap:anywhere}
h2{margin-top:2.2rem;border-bottom:1px solid var(--line)}
.warning{background:#fff3cd;border-left:.4rem solid #d55e00;padding:.6rem .8rem;margin:.6rem 0;overflow-wrap:anywhere}
.tools{display:flex;flex-wrap:wrap;gap:.6rem;margin:.8rem 0}
.tools label{display:flex;flex-direction:column;font-size:.85rem}
select,input{font:inherit;padding:.25rem .4rem;max-width:100%}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:left;vertical-align:top;padding:.35rem .5rem;border-bottom:1px solid var(--line)}
td{overflow-wrap:anywhere}
th button{font:inherit;font-weight:600;background:none;border:0;padding:0;cursor:pointer;text-align:left}
th[aria-sort=ascending] button::after{content:" \\2191"}
th[aria-sort=descending] button::after{content:" \\2193"}
.badge{display:inline-block;padding:.05rem .5rem;border-radius:.3rem;border:1px solid #888;white-space:nowrap}
.more td{padding-top:0}
details>summary{cursor:pointer;padding:.25rem 0}
.scroll{overflow-x:auto}
.scroll td,.scroll th{white-space:nowrap;font-size:.85rem}
.scroll td{max-width:28rem;overflow:hidden;text-overflow:ellipsis}
img{max-width:100%;height:auto;border:1px solid var(--line)}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:1rem}
figure{margin:0}
figcaption{font-size:.85rem;color:#555}
pre{background:var(--soft);padding:.7rem;overflow-x:auto}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem .8rem;margin:.4rem 0}
dt{font-weight:600}dd{margin:0;overflow-wrap:anywhere}
[hidden]{display:none!important}
@media(max-width:44rem){
#claims thead{display:none}
#claims,#claims tbody,#claims tr,#claims td{display:block}
#claims tbody{border:1px solid var(--line);border-radius:.4rem;margin:.7rem 0;padding:.3rem}
#claims td{border:0;padding:.15rem .3rem}
#claims td[data-label]::before{content:attr(data-label) ": ";font-weight:600}
dl{grid-template-columns:1fr}
}
"""
_SCRIPT = """
(function(){
var table=document.getElementById('claims');
if(!table)return;
var bodies=Array.prototype.slice.call(table.tBodies);
var verdict=document.getElementById('by-verdict'),trait=document.getElementById('by-trait');
var words=document.getElementById('by-words'),count=document.getElementById('count');
function filter(){
  var shown=0,text=words.value.toLowerCase();
  bodies.forEach(function(body){
    var keep=(!verdict.value||body.dataset.verdict===verdict.value)&&
      (!trait.value||body.dataset.trait===trait.value)&&
      body.textContent.toLowerCase().indexOf(text)>=0;
    body.hidden=!keep;if(keep)shown++;
  });
  count.textContent=shown+' of '+bodies.length+' shown';
}
[verdict,trait].forEach(function(box){box.addEventListener('change',filter);});
words.addEventListener('input',filter);
table.querySelectorAll('th button').forEach(function(button){
  button.addEventListener('click',function(){
    var head=button.parentNode,column=head.cellIndex;
    var up=head.getAttribute('aria-sort')!=='ascending';
    table.querySelectorAll('th').forEach(function(th){th.removeAttribute('aria-sort');});
    head.setAttribute('aria-sort',up?'ascending':'descending');
    function key(body){return body.rows[0].cells[column].dataset.sort;}
    bodies.sort(function(a,b){
      var x=key(a),y=key(b),m=parseFloat(x),n=parseFloat(y);
      if(x===''||y==='')return (x==='')-(y==='');
      var order=isNaN(m)||isNaN(n)?x.localeCompare(y):m-n;
      return up?order:-order;
    });
    bodies.forEach(function(body){table.appendChild(body);});
  });
});
table.querySelectorAll('details').forEach(function(box){
  box.addEventListener('toggle',function(){
    var copy=box.querySelector('img[data-figure]');
    if(!box.open||!copy||copy.src)return;
    var source=document.getElementById(copy.dataset.figure);
    if(source){copy.src=source.src;copy.alt=source.alt;copy.hidden=false;}
  });
});
document.querySelector('.tools').hidden=false;
filter();
})();
"""
_COLUMNS = ("Claim", "Trait", "Verdict", "Estimate [95 %]", "n", "Paper", "Reason")


def _e(text: object) -> str:
    return html.escape(str(text), quote=True)


def _html(
    title: str,
    warnings: Sequence[str],
    claims: pd.DataFrame,
    sections: Sequence[_Section],
    images: Sequence[_Image],
) -> str:
    alarm = "\n".join(f'<p class="warning" role="alert"><strong>Warning:</strong> {_e(text)}</p>' for text in warnings)
    body = "\n".join(
        f"<section><h2>{_e(section.title)}</h2>\n{_html_blocks(section.blocks)}</section>" for section in sections
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_e(_POLICY)}">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>{_e(title)}</title>\n<style>{_STYLE}</style></head>\n<body>\n<h1>{_e(title)}</h1>\n{alarm}\n"
        f"<section><h2>Claims</h2>\n{_html_claims(claims, {image.path.stem for image in images})}</section>\n"
        f"{body}\n<script>{_SCRIPT}</script>\n</body></html>\n"
    )


def _html_claims(claims: pd.DataFrame, figures: set[str]) -> str:
    options = {
        "by-verdict": [verdict for verdict in VERDICTS if (claims["verdict"] == verdict).any()],
        "by-trait": sorted(set(claims["trait"])),
    }
    menus = "".join(
        f'<label>{name.removeprefix("by-").capitalize()}<select id="{name}"><option value="">all</option>'
        + "".join(f'<option value="{_e(value)}">{_e(value)}</option>' for value in values)
        + "</select></label>"
        for name, values in options.items()
    )
    head = "".join(f'<th scope="col"><button type="button">{_e(name)}</button></th>' for name in _COLUMNS)
    rows = "\n".join(_html_claim(row, figures) for _, row in claims.iterrows())
    return (
        f'<p>{_e(_tally(claims).capitalize())}.</p>\n<div class="tools" hidden>{menus}'
        '<label>Words<input id="by-words" type="search"></label><span id="count" aria-live="polite"></span></div>\n'
        f'<table id="claims"><thead><tr>{head}</tr></thead>\n{rows}\n</table>\n'
    )


def _html_claim(row: pd.Series, figures: set[str]) -> str:
    claim, verdict = _claim(str(row["claim"])), str(row["verdict"])
    colour = VERDICT_COLOURS.get(verdict, "#FFFFFF")
    badge = f'<span class="badge" style="background:{colour}">{_e(verdict)}</span>'
    cells = (
        (_e(row["claim"]), row["claim"]),
        (_e(row["trait"]), row["trait"]),
        (badge, verdict),
        (_e(_spread(row)), "" if pd.isna(row["estimate"]) else row["estimate"]),
        (_e(row["n"]), row["n"]),
        (_e(row["paper_value"]), row["paper_value"]),
        (_e(row["reason"]), row["reason"]),
    )
    main = "".join(
        f'<td data-label="{_e(name)}" data-sort="{_e(key)}">{content}</td>'
        for name, (content, key) in zip(_COLUMNS, cells, strict=True)
    )
    facts = [("Statement", row["statement"]), ("Log", row["log"] or "none"), ("p after Holm", _number(row["p_holm"]))]
    if claim is not None:
        facts += [("Section of the paper", claim.section), ("Eval", claim.eval), ("Statistic", claim.statistic)]
        facts += [("Rule", claim.rule), ("Threshold", f"{claim.threshold:g}"), ("Samples needed", claim.min_n)]
    listed = "".join(f"<dt>{_e(name)}</dt><dd>{_e(value)}</dd>" for name, value in facts)
    stem = _FIGURE_OF.get(str(row["claim"]), "").format(slug(str(row["trait"])))
    figure = ""
    if stem in figures:
        figure = (
            f'<p><a href="#figure-{_e(stem)}">Figure</a></p>'
            f'<img data-figure="figure-{_e(stem)}" alt="" hidden>'
        )  # fmt: skip
    return (
        f'<tbody data-verdict="{_e(verdict)}" data-trait="{_e(row["trait"])}"><tr>{main}</tr>'
        f'<tr class="more"><td colspan="{len(_COLUMNS)}"><details><summary>Details</summary><dl>{listed}</dl>'
        f"{figure}</details></td></tr></tbody>"
    )


def _html_blocks(blocks: Sequence[_Block]) -> str:
    pictures = [_html_block(block) for block in blocks if isinstance(block, _Image)]
    rest = [_html_block(block) for block in blocks if not isinstance(block, _Image)]
    return "\n".join([*(['<div class="figures">', *pictures, "</div>"] if pictures else []), *rest])


def _html_block(block: _Block) -> str:
    if isinstance(block, _Text):
        return f"<p>{_e(block.text)}</p>"
    if isinstance(block, _List):
        return "<ul>" + "".join(f"<li>{_e(item)}</li>" for item in block.items) + "</ul>"
    if isinstance(block, _Code):
        return f"<pre><code>{_e(block.text)}</code></pre>"
    if isinstance(block, _Image):
        data = base64.b64encode(block.path.read_bytes()).decode()
        return (
            f'<figure><img id="figure-{_e(block.path.stem)}" src="data:image/png;base64,{data}" alt="{_e(block.alt)}">'
            f"<figcaption>{_e(block.alt)}</figcaption></figure>"
        )
    head = "".join(f'<th scope="col">{_e(column)}</th>' for column in block.frame.columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{_e(_number(value))}</td>" for value in row) + "</tr>"
        for row in block.frame.itertuples(index=False, name=None)
    )
    note = f"<p>{_e(block.note)}</p>" if block.note else ""
    return (
        f"<details><summary>{_e(block.title)} ({len(block.frame)} rows)</summary>{note}"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>'
    )
