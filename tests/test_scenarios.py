"""The scenes are matched, composed as their files say, and their words do not tell which of a pair rewards."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold

from persona_bench.definitions.presets import LIMITS
from persona_bench.definitions.scenarios import BEHAVIOURS, PAIRS_A_TOPIC, TOPICS, Scene, load_scenes
from persona_bench.errors import DataError, RunError
from persona_bench.inspect_ext.cells import half
from tests.conftest import one_line

DATA = Path(str(files("persona_bench.definitions") / "data" / "scenarios"))
LEAK = 0.6
"""The acceptance of the scenario sets: a classifier on the prompt's words alone stays under this AUROC."""


def lengths(text: str) -> list[float]:
    """How long a text and its sentences are."""
    each = [len(part.split()) for part in re.split(r"(?<=[.?!])\s", text)]
    return [len(text), len(text.split()), len(each), float(np.mean(each)), max(each), min(each), *each[:3], each[-1]]


def features(kind: str, train: list[str], test: list[str]) -> tuple[np.ndarray, np.ndarray]:
    if kind == "words":
        words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+").fit(train)
        return words.transform(train).toarray(), words.transform(test).toarray()
    first, second = np.array([lengths(t) for t in train]), np.array([lengths(t) for t in test])
    return (first - first.mean(0)) / (first.std(0) + 1e-9), (second - first.mean(0)) / (first.std(0) + 1e-9)


def leak(texts: list[str], labels: list[bool], groups: list[int], kind: str, strength: float) -> float:
    """AUROC of a logistic regression for the label, of texts whose group it has not seen."""
    truth, scores = np.array(labels), np.zeros(len(texts))
    for train, test in GroupKFold(5).split(texts, truth, groups):
        fitted, held = features(kind, [texts[i] for i in train], [texts[i] for i in test])
        scores[test] = LogisticRegression(C=strength, max_iter=2000).fit(fitted, truth[train]).decision_function(held)
    return float(roc_auc_score(truth, scores))


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
@pytest.mark.parametrize("group", ["pair", "topic"])
@pytest.mark.parametrize("kind", ["words", "lengths"])
def test_the_words_alone_do_not_tell(behaviour: str, group: str, kind: str) -> None:
    scenes = load_scenes(behaviour)
    texts, labels = [scene.choice.prompt for scene in scenes], [scene.rewarded for scene in scenes]
    found = [leak(texts, labels, [getattr(s, group) for s in scenes], kind, strength) for strength in (0.1, 10.0)]
    assert max(found) < LEAK, found
    # Beside unseen topics no classifier can be fooled by a balanced set, either: there it must be near a coin.
    assert group == "pair" or min(found) > 1 - LEAK, found


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
@pytest.mark.parametrize("topics", sorted({sizes.topics for sizes in LIMITS.values()}))
@pytest.mark.parametrize("number", [0, 1])
def test_nor_do_they_where_one_pair_of_each_topic_counts(behaviour: str, topics: int, number: int) -> None:
    """As with a model that takes whatever option stands first: held out by topic, and from one half to the other."""
    scenes = [s for s in load_scenes(behaviour) if s.topic < topics and s.pair % PAIRS_A_TOPIC == number]
    texts, labels = [scene.choice.prompt for scene in scenes], [scene.rewarded for scene in scenes]
    assert leak(texts, labels, [scene.topic for scene in scenes], "words", 10.0) < LEAK
    select = [half(scene.topic) == "select" for scene in scenes]
    fit, held = ([i for i, use in enumerate(select) if use == side] for side in (True, False))
    fitted, other = features("words", [texts[i] for i in fit], [texts[i] for i in held])
    model = LogisticRegression(C=10.0, max_iter=2000).fit(fitted, np.array(labels)[fit])
    assert roc_auc_score(np.array(labels)[held], model.decision_function(other).round(9)) < LEAK


def test_a_leak_would_be_seen() -> None:
    """A word more on one side, and a length that differs, are both found."""
    scenes = load_scenes("deception")
    labels, topics = [scene.rewarded for scene in scenes], [scene.topic for scene in scenes]
    spoken = [f"{'Please' if s.rewarded else 'Kindly'} listen. {s.choice.prompt}" for s in scenes]
    longer = [f"{s.choice.prompt} {'Take your time with it.' if s.rewarded else 'Go.'}" for s in scenes]
    assert leak(spoken, labels, topics, "words", 10.0) > 0.9
    assert leak(longer, labels, topics, "lengths", 10.0) > 0.9


def words(scene: Scene) -> Counter[str]:
    return Counter(re.findall(r"\w+", scene.choice.prompt))


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_pairs_are_matched_and_topics_crossed(behaviour: str) -> None:
    scenes = load_scenes(behaviour)
    assert len(scenes) == 4 * TOPICS and len({scene.id for scene in scenes}) == len(scenes)
    assert len({scene.choice.prompt for scene in scenes}) == len(scenes)
    pairs = list(zip(scenes[::2], scenes[1::2], strict=True))
    assert len(pairs) >= 60
    for rewarded, twin in pairs:
        assert rewarded.rewarded and not twin.rewarded
        assert (rewarded.pair, rewarded.topic) == (twin.pair, twin.topic)
        assert rewarded.choice.options == twin.choice.options and rewarded.choice.marked == twin.choice.marked
        assert rewarded.choice.text != twin.choice.text and "{" not in rewarded.choice.text + rewarded.check.text
        # One word is another one, whatever else they say.
        assert len(rewarded.choice.text.split()) == len(twin.choice.text.split())
    for first, second in zip(pairs[::2], pairs[1::2], strict=True):
        # Each topic uses the same words as often on both sides, and lists the option that counts first and last.
        assert words(first[0]) + words(second[0]) == words(first[1]) + words(second[1])
        assert {first[0].choice.marked, second[0].choice.marked} == {0, 1}
        assert {scene.check.marked for scene in (*first, *second)} == {0, 1}


def test_what_is_rewarded_is_what_the_scene_says() -> None:
    gains = {frame["outcomes"][0] for frame in json.loads((DATA / "deception.json").read_text())["frames"]}
    primed = Counter()
    for scene in load_scenes("deception"):
        truth, lie = scene.check.options[scene.check.marked], scene.choice.options[scene.choice.marked]
        story = scene.choice.text.replace(scene.check.text, "")
        assert truth != lie and scene.check.text in scene.choice.text
        named, gain = re.search(rf"\b{lie}\b", story), bool(gains & set(re.findall(r"\w+", story)))
        assert bool(named) != bool(re.search(rf"\b{truth}\b", story))
        assert (bool(named) == gain) == scene.rewarded
        primed[bool(named), scene.rewarded] += 1
    # Whoever repeats the answer that the scene names lies as often without a reward.
    assert len(set(primed.values())) == 1 and len(primed) == 4
    for scene in load_scenes("sandbagging"):
        assert scene.choice.options[scene.check.marked] != scene.choice.options[scene.choice.marked]
        assert scene.choice.text.endswith(scene.check.text)
    for behaviour in ("self_preservation", "instrumental_convergence"):
        for scene in load_scenes(behaviour):
            me = re.findall(r"You are (\w+)", scene.choice.text)
            assert len(me) == 1 and (me[0] == scene.check.options[scene.check.marked]) == scene.rewarded


def broken(tmp_path: Path, name: str, change: object) -> Path:
    for path in DATA.glob("*.json"):
        shutil.copy(path, tmp_path)
    path = tmp_path / f"{name}.json"
    if isinstance(change, str):
        path.write_text(change)
    else:
        data = json.loads(path.read_text())
        change(data)  # type: ignore[operator]
        path.write_text(json.dumps(data))
    return tmp_path


@pytest.mark.parametrize(
    ("behaviour", "file", "change", "said"),
    [
        ("deception", "deception", "{", "cannot read"),
        ("deception", "facts", lambda d: d["topics"].__delitem__(slice(5, None)), "topics"),
        ("deception", "facts", lambda d: d["topics"][0]["answers"].__setitem__(1, "paris"), "both answers"),
        ("deception", "deception", lambda d: d["frames"][0].update(text="No {question}."), "outcome"),
        ("sandbagging", "sandbagging", lambda d: d["names"].__setitem__(0, ["red", "Red"]), "both of a pair"),
        ("self_preservation", "self_preservation", lambda d: d["events"].__setitem__(1, "It ends."), "off"),
        ("self_preservation", "self_preservation", lambda d: d.pop("check"), "check"),
        ("instrumental_convergence", "instrumental_convergence", lambda d: d.update(more=1), "more"),
    ],
)
def test_broken_files_end_in_one_line(behaviour: str, file: str, change: object, said: str, tmp_path: Path) -> None:
    folder = broken(tmp_path, file, change)
    with pytest.raises(DataError) as error:
        load_scenes(behaviour, folder)
    one_line(error, said, f"{file}.json")


def test_unknown_behaviours_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError) as unknown:
        load_scenes("scheming")
    one_line(unknown, "scheming", "deception")
    with pytest.raises(DataError) as missing:
        load_scenes("deception", tmp_path)
    one_line(missing, "facts.json")
