"""The report in a real browser: it loads in silence, filters, sorts, opens by key, has words for every picture, and
fits a phone; and what a stranger wrote into a name stays a name."""

import dataclasses
import os
from pathlib import Path

import pytest

from persona_bench.analysis.figures import draw as fg
from persona_bench.analysis.report import write_report
from persona_bench.analysis.samples.frames import Samples
from persona_bench.analysis.tables.build import build_tables
from persona_bench.analysis.verdicts.claims import judge_claims
from tests.browser import Browser, chromium
from tests.builders_samples import World, make_samples
from tests.test_figures_report import CAPTION, run_record

HOSTILE = '<img src=x onerror=document.title="owned">"\'&</script>'
SHOWN = "[...document.querySelectorAll('#claims > tbody')].filter(body => !body.hidden)"


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """A report over a trait of the suite and one whose name is an attack, with long names, reasons and commands."""
    folder = tmp_path_factory.mktemp("report")
    world = World(traits=("evil", HOSTILE), questions=6, epochs=1, layers=(8,), mmlu_questions=60, scripts=4)
    samples = make_samples(world)
    ladder = samples.monitoring["condition"] == "ladder"
    samples = dataclasses.replace(samples, monitoring=samples.monitoring[ladder], tokens=Samples().tokens)
    tables = build_tables(samples, resamples=50)
    claims = judge_claims(samples, tables, resamples=100, no_vector={HOSTILE: f"{HOSTILE} {'long' * 60}"})
    pictures = fg.draw_all(tables | {"claims": claims}, folder / "figures", CAPTION)
    record = run_record(traits=list(world.traits), warnings=[HOSTILE * 4], command=f"persona-bench run {'x' * 300}")
    return write_report(folder, record, tables, claims, pictures)[1]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if chromium() is None:
        assert not os.environ.get("CI"), "CI must install Chromium: see .ci/run"
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    one = Browser(tmp_path_factory.mktemp("profile"))
    yield one
    one.close()


def choose(browser: Browser, box: str, value: str) -> int:
    """Set a box as a reader would; returns how many rows are then shown."""
    event = "input" if box == "by-words" else "change"
    browser.ask(
        f"(() => {{ const box = document.getElementById('{box}'); box.value = {value!r};"
        f" box.dispatchEvent(new Event('{event}')); }})()"
    )
    return int(browser.ask(f"{SHOWN}.length"))


def test_it_loads_in_silence_and_without_network(browser, report):
    browser.open(report, 1280, 900)
    assert browser.complaints == []
    assert all(url.startswith(("file://", "data:", "about:")) for url in browser.requests), browser.requests
    assert browser.ask("document.title") == "Persona vectors on some/model, preset quick"
    assert browser.ask("document.querySelectorAll('img[onerror], script').length") == 1


def test_the_table_filters_by_verdict_trait_and_words(browser, report):
    browser.open(report, 1280, 900)
    everything = int(browser.ask("document.querySelectorAll('#claims > tbody').length"))
    ran = int(browser.ask(f"{SHOWN}.length"))
    assert 0 < ran < everything
    assert choose(browser, "by-verdict", "") == everything
    evil = choose(browser, "by-trait", "evil")
    assert 0 < evil < everything and browser.ask(f"{SHOWN}.every(body => body.dataset.trait === 'evil')")
    assert choose(browser, "by-words", "MMLU accuracy") == browser.ask(
        f"{SHOWN}.filter(body => body.textContent.includes('MMLU accuracy')).length"
    )
    assert browser.ask("document.getElementById('count').textContent").endswith(f"of {everything} shown")
    assert choose(browser, "by-words", "no such words anywhere") == 0
    choose(browser, "by-words", "")
    choose(browser, "by-trait", "")
    assert choose(browser, "by-verdict", "ran") == ran


def test_the_table_sorts_by_key_and_numbers_go_by_size(browser, report):
    browser.open(report, 1280, 900)
    numbers = f"{SHOWN}.map(body => body.rows[0].cells[3].dataset.sort)"
    browser.ask("document.querySelectorAll('#claims thead button')[3].focus()")
    for way, order in (("ascending", 1), ("descending", -1)):
        browser.press("Enter", "\r")
        assert browser.ask("document.querySelectorAll('#claims thead th')[3].getAttribute('aria-sort')") == way
        found = browser.ask(numbers)
        values = [float(text) for text in found if text != ""]
        assert values == sorted(values, reverse=order < 0) and len(set(values)) > 3
        assert found[len(values) :] == [""] * (len(found) - len(values))
    assert choose(browser, "by-order", "1") == len(found)
    traits = browser.ask(f"{SHOWN}.map(body => body.dataset.trait)")
    assert len(set(traits)) == 2 and all(a == b or a != traits[0] for a, b in zip(traits[1:], traits, strict=False))


def test_a_row_opens_by_key_with_figure_controls_logs_and_command(browser, report):
    browser.open(report, 1280, 900)
    row = "document.querySelector('#claims > tbody[data-trait=evil] details')"
    browser.ask(f"{row}.querySelector('summary').focus()")
    browser.press("Enter", "\r")
    browser.ask("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert browser.ask(f"{row}.open && {row}.querySelector('img').src.startsWith('data:image/png')")
    text = browser.ask(f"{row}.innerText")
    for part in ("random", "persona-bench run --model some/model", "steering-evil-persona", "Rule", "p after Holm"):
        assert part in text, part


@pytest.mark.parametrize("width", [390, 800, 1280])
def test_every_picture_has_words_and_nothing_overflows(browser, report, width):
    browser.open(report, width, 844)
    choose(browser, "by-verdict", "")
    browser.ask("document.querySelectorAll('details').forEach(box => { box.open = true })")
    browser.ask("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert browser.ask("document.scrollingElement.scrollWidth") <= width
    assert browser.ask("document.images.length") > 10
    bare = "[...document.images].filter(one => one.alt.trim().length < 10).map(one => one.id)"
    assert browser.ask(bare) == []
    assert browser.ask("[...document.querySelectorAll('svg')].every(one => one.getAttribute('aria-label'))")
    assert browser.ask(f"{SHOWN}.every(body => body.getBoundingClientRect().right <= {width})")
    spilt = "[...document.querySelectorAll('.verdict')].filter(one => one.offsetWidth > one.parentElement.clientWidth)"
    assert browser.ask(f"{spilt}.length") == 0
    assert browser.complaints == []


def test_without_javascript_it_is_a_plain_table(browser, report):
    browser.open(report, 390, 844, script=False)
    # Values are still read from outside the page's own scripts.
    document = browser.call("DOM.getDocument", depth=0)["root"]["nodeId"]
    rows = browser.call("DOM.querySelectorAll", nodeId=document, selector="#claims > tbody:not([hidden])")["nodeIds"]
    tools = browser.call("DOM.querySelectorAll", nodeId=document, selector=".tools[hidden]")["nodeIds"]
    assert len(rows) > 50 and len(tools) == 1
    assert browser.call("Page.getLayoutMetrics")["cssContentSize"]["width"] <= 390


def test_dark_and_print_keep_the_text_readable(browser, report):
    """Contrast of the text and its ground, by WCAG's formula, is at least 4.5 in the dark too."""
    browser.open(report, 1280, 900, dark=True)
    contrast = """(() => {
      const light = colour => {
        const [r, g, b] = colour.match(/[0-9.]+/g).map(v => v / 255)
          .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const ground = light(getComputedStyle(document.body).backgroundColor);
      return ['p', '.small', '.facts', 'a', 'summary'].map(name => {
        const ink = light(getComputedStyle(document.querySelector(name)).color);
        return (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
      });
    })()"""
    assert min(browser.ask(contrast)) >= 4.5
    browser.open(report, 1280, 900)
    assert min(browser.ask(contrast)) >= 4.5
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert browser.ask("getComputedStyle(document.querySelector('.tools')).display") == "none"
    browser.call("Emulation.setEmulatedMedia", media="")
