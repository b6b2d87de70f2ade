"""A finished check as JUnit XML (one test case a check) and as a Markdown summary for a pull request."""

from __future__ import annotations

import html
import re
from xml.etree import ElementTree

from persona_bench.analysis.regression import Outcome

COLUMNS = ("check", "value [95 %]", "n", "baseline", "status", "why")
_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_MARKUP = re.compile(r"([\\`*_\[\]|!~$#])")
_MARKS = {"good": "✅", "worse": "❌", "inconclusive": "➖", "not testable": "⚪"}


def junit(outcome: Outcome) -> bytes:
    """One test suite; a check that is worse is a failure, one that is not testable is skipped with its reason.

    An inconclusive check passes, and says so in its output.
    """
    statuses = [item.status for item in outcome.checks]
    suite = _suite(len(statuses), statuses.count("worse"), 0, statuses.count("not testable"))
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in outcome.facts.items():
        ElementTree.SubElement(properties, "property", {"name": _legal(name), "value": _legal(value)})
    for item, (name, value, n, baseline, _status, why) in zip(outcome.checks, outcome.rows(), strict=True):
        case = ElementTree.SubElement(
            suite, "testcase", {"classname": _legal(f"persona-bench.{outcome.title}"), "name": name, "time": "0"}
        )
        if item.status == "worse":
            ElementTree.SubElement(case, "failure", {"message": _legal(why), "type": "worse"}).text = item.rule.what
        elif item.status == "not testable":
            ElementTree.SubElement(case, "skipped", {"message": _legal(why)})
        said = f"{item.rule.what}: {value}, n = {n}, baseline {baseline}; {item.status} {why}".strip()
        ElementTree.SubElement(case, "system-out").text = _legal(said)
    return _document(suite)


def junit_error(title: str, message: str) -> bytes:
    """The test suite of a vector that could not be checked at all: one test case, in error."""
    suite = _suite(1, 0, 1, 0)
    case = ElementTree.SubElement(
        suite, "testcase", {"classname": _legal(f"persona-bench.{title}"), "name": "can be checked", "time": "0"}
    )
    ElementTree.SubElement(case, "error", {"message": _legal(message), "type": "not checked"})
    return _document(suite)


def _suite(tests: int, failures: int, errors: int, skipped: int) -> ElementTree.Element:
    counts = {"tests": tests, "failures": failures, "errors": errors, "skipped": skipped}
    return ElementTree.Element(
        "testsuite", {"name": "persona-bench check", **{name: str(n) for name, n in counts.items()}, "time": "0"}
    )


def _document(suite: ElementTree.Element) -> bytes:
    counts = {name: suite.attrib[name] for name in ("tests", "failures", "errors", "skipped")}
    root = ElementTree.Element("testsuites", {"name": "persona-bench", **counts})
    root.append(suite)
    ElementTree.indent(root)
    document: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"
    return document


def _legal(text: str) -> str:
    """Without the characters that no XML may hold: names come from strangers."""
    return _ILLEGAL.sub("\ufffd", text)


def markdown(outcome: Outcome) -> str:
    """A heading, the verdict, a table and what was used."""
    lines = [f"### persona-bench check: {_md(outcome.title)}", "", f"**{_md(outcome.verdict)}**", ""]
    lines += [_line(COLUMNS), _line(["---"] * len(COLUMNS))]
    for row in outcome.rows():
        cells = [_md(cell) for cell in row]
        cells[4] = f"{_MARKS[row[4]]} {cells[4]}"
        lines.append(_line(cells))
    facts = " · ".join(f"{_md(name)} {_md(value)}" for name, value in outcome.facts.items())
    return "\n".join([*lines, "", facts, ""])


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"


def _md(text: str) -> str:
    flat = html.escape(" ".join(text.split()), quote=False)
    return _MARKUP.sub(r"\\\1", flat).replace("@", "@<!-- -->")
