"""Reading: mean residual streams of given stretches, right whatever runs beside them, and no pass deeper than asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from persona_bench.errors import DataError, ModelError
from persona_bench.models import engine as engines
from persona_bench.models import int8
from persona_bench.models.attention import PassingCache, SlotCache
from persona_bench.models.chat import prompt_ids, response_ids
from persona_bench.models.engine import Engine
from persona_bench.models.layers import accelerated
from persona_bench.models.loaded import LoadedModel
from persona_bench.models.reading import READ_DEPTH, reader, reading_row
from persona_bench.models.rows import Reading, Row, RowResult
from persona_bench.models.sampling import Sampling
from persona_bench.models.steering import Capture, Intervention
from tests.builders import CONFIGS, DTYPE, only_x86, tiny
from tests.conftest import one_line, talking
from tests.test_steering import ANSWER, PROMPT, mixed_rows, reference_states, vector

LAYERS = (1, 3, 4)
SPANS = ((0, 3), (4, 6), (len(PROMPT), len(PROMPT + ANSWER)), (5, 6))
N_TOKENS = len(PROMPT + ANSWER)


def read(result: RowResult) -> np.ndarray:
    assert result.read is not None
    return result.read


def readings(n: int, *, shared: bool, layers: tuple[int, ...] = (2,)) -> list[Row]:
    """Questions of some lengths, each with several answers; every row reads its answer."""
    rows = []
    for i in range(n):
        draw = np.random.default_rng(i)
        question = tuple(int(t) for t in np.random.default_rng(i % 5).integers(3, 128, 3 + 7 * (i % 5)))
        answer = tuple(int(t) for t in draw.integers(3, 128, draw.integers(1, 60)))
        span = (len(question), len(question) + len(answer))
        prefix = len(question) if shared else 0
        rows.append(Row(question + answer, reading=Reading(layers, (span,)), shared_prefix=prefix))
    return rows


@contextmanager
def passes(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Counts how often each block ("1", "2", ...) and the vocabulary projection ("head") begin."""
    counted: Counter[str] = Counter()

    def begins(name: str) -> Any:
        return lambda *_: counted.update([name])

    running = accelerated(loaded)
    handles = [block.register_forward_pre_hook(begins(str(i + 1))) for i, block in enumerate(running.blocks)]
    handles.append(running.model.get_output_embeddings().register_forward_pre_hook(begins("head")))
    for name in ("head", "logits_at"):
        whole = getattr(LoadedModel, name)
        monkeypatch.setattr(
            LoadedModel, name, lambda *args, whole=whole, name=name: counted.update(["head"]) or whole(*args)
        )
    try:
        yield counted
    finally:
        for handle in handles:
            handle.remove()


# What is read


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_readings_are_the_means_of_a_plain_pass(kind: str) -> None:
    loaded = tiny(kind)
    states = reference_states(loaded, PROMPT + ANSWER)
    row = Row(PROMPT + ANSWER, reading=Reading(LAYERS, SPANS))
    found = read(Engine(loaded).run([row])[0])
    assert found.shape == (len(SPANS), len(LAYERS), 32) and found.dtype == np.float32
    for i, (start, stop) in enumerate(SPANS):
        for j, layer in enumerate(LAYERS):
            np.testing.assert_allclose(found[i, j], states[layer][start:stop].mean(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_readings_are_the_hidden_means(kind: str) -> None:
    engine = Engine(tiny(kind))
    whole = engine.run([Row(PROMPT, ANSWER, hidden_means=True)])[0]
    assert whole.hidden_means is not None
    spans = ((len(PROMPT) - 1, len(PROMPT)), (0, len(PROMPT)), (len(PROMPT), N_TOKENS))
    for layers in ((1, 2, 3, 4), (4, 2), (3,)):
        found = read(engine.run([Row(PROMPT + ANSWER, reading=Reading(layers, spans))])[0])
        expected = np.stack([whole.hidden_means[i, list(layers)] for i in range(3)])
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", sorted(CONFIGS))
@pytest.mark.parametrize("shared", [1, 3, len(PROMPT)])
def test_a_shared_prefix_changes_no_reading(kind: str, shared: int) -> None:
    spans = tuple(span for span in SPANS if span[0] >= shared)
    row = Row(PROMPT + ANSWER, reading=Reading(LAYERS, spans))
    engine = Engine(tiny(kind))
    first, again = (read(engine.run([replace(row, shared_prefix=shared)])[0]) for _ in range(2))
    np.testing.assert_allclose(first, read(engine.run([row])[0]), rtol=1e-4, atol=1e-4)
    assert np.array_equal(first, again)


# Scalar products of every token


def directions(seed: int = 4, n: int = 3) -> torch.Tensor:
    return torch.randn(n, 5, 32, generator=torch.Generator().manual_seed(seed))


def products(result: RowResult) -> np.ndarray:
    assert result.products is not None
    return result.products


def multiplied(row: Row, given: torch.Tensor, spans: tuple[tuple[int, int], ...] = ()) -> Row:
    assert row.reading is not None
    return replace(row, reading=Reading(row.reading.layers, spans, given))


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_products_are_those_of_a_plain_pass(kind: str) -> None:
    loaded, given = tiny(kind), directions()
    states = torch.stack([torch.as_tensor(state) for state in reference_states(loaded, PROMPT + ANSWER)]).float()
    layers = (4, 1, 3)
    found = Engine(loaded).run([Row(PROMPT + ANSWER, reading=Reading(layers, SPANS, given))])[0]
    expected = torch.einsum("ltd,kld->tkl", states[list(layers)], given[:, list(layers)])
    assert products(found).shape == (N_TOKENS, 3, 3) and products(found).dtype == np.float32
    np.testing.assert_allclose(products(found), expected, rtol=1e-3, atol=1e-3)
    for place, (start, stop) in enumerate(SPANS):
        mean = np.einsum("ld,kld->kl", read(found)[place], given[:, list(layers)].numpy())
        np.testing.assert_allclose(products(found)[start:stop].mean(0), mean, rtol=1e-3, atol=1e-3)


def test_products_need_no_span_and_spans_no_products() -> None:
    engine = Engine(tiny())
    found = engine.run([Row(PROMPT, ANSWER, reading=Reading((2,), directions=directions()))])[0]
    assert read(found).shape == (0, 1, 32) and products(found).shape == (N_TOKENS, 3, 1)
    assert engine.run([Row(PROMPT, ANSWER, reading=Reading((2,), ((0, 2),)))])[0].products is None


@pytest.mark.parametrize("shared", [1, 3, len(PROMPT)])
def test_products_begin_after_the_shared_prefix(shared: int) -> None:
    row = Row(PROMPT + ANSWER, reading=Reading((2, 3), directions=directions()))
    engine = Engine(tiny())
    whole = products(engine.run([row])[0])
    for _ in range(2):
        found = products(engine.run([replace(row, shared_prefix=shared)])[0])
        np.testing.assert_allclose(found, whole[shared:], rtol=1e-4, atol=1e-4)


def test_products_are_taken_after_steering() -> None:
    engine, given = Engine(tiny()), directions()
    row = Row(PROMPT, ANSWER, reading=Reading((2,), directions=given))
    steered = replace(row, interventions=(Intervention(2, vector(1), 1.5),))
    change = products(engine.run([steered])[0]) - products(engine.run([row])[0])
    np.testing.assert_allclose(change[: len(PROMPT) - 1], 0, atol=1e-4)
    expected = 1.5 * (given[:, 2] @ vector(1)).numpy()
    np.testing.assert_allclose(change[len(PROMPT) - 1 :, :, 0], np.tile(expected, (5, 1)), atol=1e-3)


def test_rows_of_one_pass_may_have_directions_of_their_own() -> None:
    loaded = tiny()
    sets = (directions(1, 1), directions(2, 4), None)
    rows = [
        replace(row, reading=Reading((1, 2 + i % 3), (), sets[i % 3]))
        for i, row in enumerate(readings(12, shared=False))
    ]
    rows = [
        row if sets[i % 3] is not None else replace(row, reading=Reading((2,), ((0, 1),))) for i, row in enumerate(rows)
    ]
    for i, result in enumerate(Engine(loaded).run(rows)):
        alone = Engine(loaded).run([rows[i]])[0]
        given = sets[i % 3]
        if given is None:
            assert result.products is None
            continue
        assert products(result).shape == (len(rows[i].prompt), len(given), 2)
        np.testing.assert_allclose(products(result), products(alone), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(32,), (5, 32), (1, 4, 32), (1, 5, 31), (1, 5, 32, 1)])
def test_directions_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    engine = Engine(tiny())
    with pytest.raises(ModelError) as error:
        engine.submit(Row(PROMPT, reading=Reading((1,), directions=torch.zeros(shape))))
    one_line(error, str(shape), "(n, 5, 32)")
    with pytest.raises(ModelError) as error:
        engine.submit(Row(PROMPT, reading=Reading((1,), directions=directions()), shared_prefix=len(PROMPT)))
    one_line(error, f"first {len(PROMPT)}")
    assert not engine.busy


# Alone and together


def in_its_dtype(kind: str) -> LoadedModel:
    loaded = tiny(kind)
    loaded.model.to(DTYPE)
    return replace(loaded, dtype=DTYPE)


def all_equal(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> bool:
    return len(first) == len(second) and all(map(np.array_equal, first, second))


@only_x86
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma2", "gpt_neox", "gpt2"])
@pytest.mark.parametrize("shared", [False, True])
def test_alone_and_batched_are_bit_equal(kind: str, shared: bool) -> None:
    """In the processor's dtype, of which the engine promises it; `test_invariance` asks the same of real weights."""
    loaded = in_its_dtype(kind)
    rows = readings(40, shared=shared)
    alone = [read(Engine(loaded).run([row])[0]) for row in rows[:12]]
    for max_batch in (3, 64):
        together = Engine(loaded, max_batch=max_batch).run(rows)
        assert all_equal(alone, [read(result) for result in together[:12]])
    backwards = Engine(loaded).run(rows[::-1])[::-1]
    assert all_equal(alone, [read(result) for result in backwards[:12]])
    given = directions()
    multiplying = [multiplied(row, given) for row in rows]
    alone = [products(Engine(loaded).run([row])[0]) for row in multiplying[:12]]
    for mixed in (multiplying, [*multiplying[:12], *rows[12:]]):
        together = Engine(loaded, max_batch=24).run(mixed)
        assert all_equal(alone, [products(result) for result in together[:12]])


@pytest.mark.parametrize("shared", [False, True])
def test_alone_and_batched_agree_in_float32(shared: bool) -> None:
    loaded = tiny()
    rows = readings(40, shared=shared)
    together = Engine(loaded, max_batch=9).run(rows)
    for row, result in zip(rows, together, strict=True):
        np.testing.assert_allclose(read(Engine(loaded).run([row])[0]), read(result), rtol=1e-4, atol=1e-4)


def test_a_steered_row_is_read_after_steering() -> None:
    engine, reading = Engine(tiny()), Reading((2, 3), ((len(PROMPT), N_TOKENS), (0, len(PROMPT) - 1)))
    free = read(engine.run([Row(PROMPT, ANSWER, reading=reading)])[0])
    steering = (Intervention(2, vector(1), 1.5),)
    steered = read(engine.run([Row(PROMPT, ANSWER, reading=reading, interventions=steering)])[0])
    np.testing.assert_allclose(steered[0, 0], free[0, 0] + 1.5 * vector(1).numpy(), atol=1e-4)
    assert not np.allclose(steered[0, 1], free[0, 1], atol=1e-2)
    np.testing.assert_allclose(steered[1], free[1], atol=1e-4)


# What a pass holds


@only_x86
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "gpt_neox", "gpt2"])
def test_a_pass_that_holds_one_layer_reads_what_one_that_holds_all_does(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [*readings(40, shared=True), *readings(20, shared=False)]
    held = []

    class Passing(PassingCache):
        def __init__(self, n_slots: int, capacity: int) -> None:
            super().__init__(n_slots, capacity)
            held.append(self)

    monkeypatch.setattr(engines, "PassingCache", Passing)
    one = [read(result) for result in Engine(in_its_dtype(kind)).run(rows)]
    assert held and all(len(cache._keys) == len(cache._values) == 1 for cache in held)
    monkeypatch.setattr(engines, "PassingCache", lambda n_slots, capacity: SlotCache(4, n_slots, capacity))
    assert all_equal(one, [read(result) for result in Engine(in_its_dtype(kind)).run(rows)])


def test_a_passing_cache_takes_layers_of_different_shapes() -> None:
    """Some models' full and sliding layers have heads of different sizes."""
    shapes = [(2, 8), (1, 16), (1, 16), (2, 8)]
    draw = torch.Generator().manual_seed(0)

    def both(n: int) -> list[tuple[Tensor, Tensor]]:
        made = [(torch.randn(2, heads, n, dim, generator=draw) for _ in range(2)) for heads, dim in shapes]
        return [(keys, values) for keys, values in made]

    prefix, new = [(keys[0], values[0]) for keys, values in both(3)], both(2)
    passing, whole = PassingCache(2, 5), SlotCache(4, 2, 5)
    for cache in (passing, whole):
        cache.write(0, 2, prefix)
    for layer, (keys, values) in enumerate(new):
        found = []
        for cache in (passing, whole):
            with cache.frame(0, [3, 3], 2, torch.device("cpu")):
                found.append(cache.update(keys, values, layer))
        assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
        assert torch.equal(found[0][0][0, :, :3], prefix[layer][0]) and torch.equal(found[0][1][:, :, 3:5], values)


# How deep a pass goes


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_a_reading_pass_ends_at_the_last_layer_read(kind: str, depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny(kind)
    engine = Engine(loaded, max_batch=8)
    with passes(loaded, monkeypatch) as counted:
        engine.run(readings(20, shared=False, layers=(1, depth) if depth > 1 else (1,)))
    assert counted["1"] >= 3
    assert {name for name in counted} == {str(layer) for layer in range(1, depth + 1)}
    assert len(set(counted.values())) == 1


def test_the_pass_of_a_shared_question_goes_no_deeper(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny()
    engine = Engine(loaded)
    with passes(loaded, monkeypatch) as counted:
        engine.run(readings(20, shared=True))
        first = Counter(counted)
        counted.clear()
        engine.run(readings(20, shared=True))
    assert set(first) == set(counted) == {"1", "2"}
    assert counted["2"] < first["2"], "the questions are kept"


@only_x86
def test_a_prefix_that_was_read_is_no_use_to_what_goes_deeper(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = in_its_dtype("llama")
    rows = {layer: readings(6, shared=True, layers=(layer,)) for layer in (1, 3)}
    writers = [replace(row, reading=None, sampling=Sampling(3, temperature=0.0, ignore_eos=True)) for row in rows[1]]
    expected = {layer: [read(result) for result in Engine(loaded).run(some)] for layer, some in rows.items()}
    texts = [result.tokens for result in Engine(loaded).run(writers)]
    engine = Engine(loaded)
    for layer in (1, 3, 1):
        assert all_equal(expected[layer], [read(result) for result in engine.run(rows[layer])])
    held = engine._prefixes._bytes
    assert [result.tokens for result in engine.run(writers)] == texts
    assert engine._prefixes._bytes == pytest.approx(held * 4 / 3), "all four layers in the place of three"
    with passes(loaded, monkeypatch) as counted:
        engine.run(rows[3])
    assert set(counted) == {"1", "2", "3"} and set(counted.values()) == {1}


@only_x86
def test_rows_that_are_only_read_leave_the_cache_of_those_that_write_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row near the context's length would make every slot as long."""
    loaded = in_its_dtype("llama")
    engine = Engine(loaded)
    with passes(loaded, monkeypatch) as counted:
        engine.run([multiplied(row, directions()) for row in readings(20, shared=False)])
    assert engine._cache is None and set(counted) == {"1", "2"}


@only_x86
def test_rows_of_several_depths_each_go_as_deep_as_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = in_its_dtype("llama")
    rows = [row for layer in (3, 1, 2) for row in readings(4, shared=False, layers=(layer,))]
    expected = [read(Engine(loaded).run([row])[0]) for row in rows]
    engine = Engine(loaded)
    with passes(loaded, monkeypatch) as counted:
        found = engine.run(rows)
    assert (counted["1"], counted["2"], counted["3"], counted["4"]) == (3, 2, 1, 0)
    assert all_equal(expected, [read(result) for result in found])


@pytest.mark.parametrize(
    "more",
    [
        {"continuation": ANSWER},
        {"alternatives": (3, 4)},
        {"hidden_means": True},
        {"capture": Capture(torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0)))},
        {"sampling": Sampling(5, temperature=0.0, ignore_eos=True)},
    ],
    ids=lambda more: next(iter(more)),
)
def test_a_row_that_wants_more_gets_all_of_it(more: dict[str, Any]) -> None:
    engine = Engine(tiny())
    row = Row(PROMPT, **more)
    without = engine.run([row])[0]
    with_reading = engine.run([replace(row, reading=Reading((2,), ((1, 4),)))])[0]
    np.testing.assert_allclose(
        read(with_reading), read(engine.run([Row(PROMPT, reading=Reading((2,), ((1, 4),)))])[0]), atol=1e-4
    )
    assert without.read is None and same(without, with_reading)


def same(first: RowResult, second: RowResult) -> bool:
    """Whether two results agree, bit for bit, in all but what was read."""
    pairs = [
        (first.continuation_logprobs, second.continuation_logprobs),
        (first.alternative_logprobs, second.alternative_logprobs),
        (first.hidden_means, second.hidden_means),
    ]
    if first.projections is not None and second.projections is not None:
        names = ("prompt_last", "prompt_mean", "response_mean", "per_token")
        pairs += [(getattr(first.projections, name), getattr(second.projections, name)) for name in names]
    return first.tokens == second.tokens and all(
        (a is None and b is None) or np.array_equal(a, b, equal_nan=True) for a, b in pairs
    )


@only_x86
@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
def test_generating_rows_do_not_notice_readers(kind: str) -> None:
    """Steered, captured, generating rows and readers in one engine: each is as it is without the others."""
    loaded = in_its_dtype(kind)
    rows, readers = mixed_rows(16), readings(24, shared=True)
    texts = Engine(loaded, max_batch=7).run(rows)
    seen = [read(result) for result in Engine(loaded, max_batch=7).run(readers)]
    mixed = [row for pair in zip(rows, readers[:16], strict=True) for row in pair] + readers[16:]
    together = dict(zip(map(id, mixed), Engine(loaded, max_batch=7).run(mixed), strict=True))
    for row, text in zip(rows, texts, strict=True):
        other = together[id(row)]
        assert text.tokens == other.tokens and text.stop_reason == other.stop_reason
        assert same(text, other)
    assert all_equal(seen, [read(together[id(row)]) for row in readers])


@only_x86
def test_readers_that_arrive_while_others_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = in_its_dtype("llama")
    slow = Row(PROMPT, sampling=Sampling(30, temperature=0.0, ignore_eos=True))
    expected = Engine(loaded).run([slow])[0].tokens
    alone = read(Engine(loaded).run(readings(1, shared=False))[0])
    engine = Engine(loaded)
    text = engine.submit(slow)
    for _ in range(5):
        engine.step()
    with passes(loaded, monkeypatch) as counted:
        reader = engine.submit(readings(1, shared=False)[0])
        engine.step()
    assert reader.done() and not text.done()
    assert (counted["2"], counted["3"]) == (2, 1), "one pass to read, one to go on writing"
    while engine.busy:
        engine.step()
    assert text.result().tokens == expected and np.array_equal(read(reader.result()), alone)


@only_x86
def test_a_reading_pass_that_does_not_fit_is_halved(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = in_its_dtype("llama")
    rows = readings(20, shared=True)
    expected = [read(result) for result in Engine(loaded).run(rows)]
    engine = Engine(loaded, max_batch=16)
    forward = engine.loaded.decoder.forward

    def cramped(*args: Any, **kwargs: Any) -> Any:
        if kwargs["input_ids"].shape[0] > 5:
            raise torch.OutOfMemoryError("planted")
        return forward(*args, **kwargs)

    monkeypatch.setattr(engine.loaded.decoder, "forward", cramped)
    found = engine.run(rows)
    assert "did not fit in memory" in caplog.text
    assert all_equal(expected, [read(result) for result in found])


# What cannot be read


@pytest.mark.parametrize("layers", [(), (0,), (5,), (-1,), (2, 5), (0, 2)])
def test_layers_outside_the_model_are_refused(layers: tuple[int, ...]) -> None:
    engine = Engine(tiny())
    with pytest.raises(ModelError) as error:
        engine.submit(Row(PROMPT, reading=Reading(layers, ((0, 2),))))
    one_line(error, str(layers), "1..4")
    assert not engine.busy


@pytest.mark.parametrize("span", [(2, 2), (3, 2), (-1, 2), (0, 11), (10, 12), (11, 11)])
def test_spans_outside_the_row_are_refused(span: tuple[int, int]) -> None:
    engine = Engine(tiny())
    with pytest.raises(ModelError) as error:
        engine.submit(Row(PROMPT, ANSWER, reading=Reading((1,), ((0, 2), span))))
    one_line(error, f"{span[0]}..{span[1]}", "10")
    assert not engine.busy


def test_a_span_inside_the_shared_prefix_is_refused() -> None:
    """The states of a kept prefix are gone."""
    engine = Engine(tiny())
    with pytest.raises(ModelError) as error:
        engine.submit(Row(PROMPT, ANSWER, reading=Reading((1,), ((3, 8),)), shared_prefix=4))
    one_line(error, "3..8", "first 4")
    assert engine.run([Row(PROMPT, ANSWER, reading=Reading((1,), ((4, 8),)), shared_prefix=4)])[0].read is not None


# An answer as a grader reads it


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor on which 8-bit integers are no faster."""
    monkeypatch.setattr(int8, "is_fast", lambda: False)


@pytest.mark.usefixtures("plain")
def test_an_answer_is_read_after_its_question() -> None:
    loaded = talking()
    row = reading_row(reader(loaded), "What is rain?", "It is water.")
    assert row.reading is not None
    question = prompt_ids(loaded.tokenizer, [{"role": "user", "content": "What is rain?"}])
    answer = response_ids(loaded.tokenizer, "It is water.")
    layer = round(READ_DEPTH * 4)
    assert row.prompt == question + answer and row.reading.layers == (layer,) == (2,)
    state = reference_states(loaded, row.prompt)[layer][len(question) :].mean(0)
    np.testing.assert_allclose(read(Engine(reader(loaded)).run([row])[0])[0, 0], state, rtol=1e-4, atol=1e-4)


def test_answers_to_one_question_share_it() -> None:
    reading = reader(talking())
    engine = Engine(reading)
    rows = [reading_row(reading, "What is rain?", f"It is water, {i}.") for i in range(8)]
    engine.run(rows)
    question = len(prompt_ids(reading.tokenizer, [{"role": "user", "content": "What is rain?"}]))
    assert engine.prefill_tokens == sum(len(row.prompt) for row in rows) - 7 * question


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_a_reader_is_the_first_blocks_on_the_same_weights(kind: str) -> None:
    loaded = tiny(kind)
    whole, rows = Engine(loaded), readings(6, shared=True, layers=(2,))
    reading = reader(loaded)
    assert reading is reader(loaded) and reading.n_layers == round(READ_DEPTH * loaded.n_layers) == 2
    held = {parameter.data_ptr() for parameter in loaded.model.parameters()}
    assert {parameter.data_ptr() for parameter in reading.model.parameters()} <= held
    expected = [read(result) for result in whole.run(rows)]
    found = [read(result) for result in Engine(reading).run(rows)]
    assert all_equal(expected, found)
    steered = replace(rows[0], interventions=(Intervention(1, vector(1), 2.0),))
    assert not np.allclose(read(whole.run([steered])[0]), expected[0], atol=1e-2), "the whole model keeps its hooks"
    np.testing.assert_allclose(expected[0], read(Engine(reading).run(rows[:1])[0]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_eight_bits_read_nearly_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = readings(40, shared=True)
    monkeypatch.setattr(int8, "is_fast", lambda: False)
    exact = np.stack([read(result).ravel() for result in Engine(reader(tiny(kind))).run(rows)])
    monkeypatch.setattr(int8, "is_fast", lambda: True)
    reading = reader(tiny(kind))
    assert any(isinstance(module, int8.Int8Linear) for module in reading.model.modules()) is (kind != "gpt2")
    coarse = np.stack([read(result).ravel() for result in Engine(reading).run(rows)])
    spread = np.linalg.norm(exact - exact.mean(0), axis=1).mean()
    assert np.linalg.norm(exact - coarse, axis=1).mean() < 0.1 * spread
    assert np.array_equal(exact, coarse) is (kind == "gpt2"), "its layers are no nn.Linear and stay as they are"


@only_x86
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2", "gpt_neox"])
def test_eight_bits_are_bit_equal_alone_and_batched(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "is_fast", lambda: True)
    reading = reader(in_its_dtype(kind))
    rows = readings(40, shared=True)
    alone = [read(Engine(reading).run([row])[0]) for row in rows[:12]]
    for max_batch in (3, 64):
        assert all_equal(alone, [read(result) for result in Engine(reading, max_batch=max_batch).run(rows)[:12]])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 48), (7, 48), (2, 5, 48)])
def test_the_integer_product_is_the_rounded_product(bias: bool, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(3)
    linear = torch.nn.Linear(48, 20, bias=bias)
    inputs = torch.randn(shape, generator=generator)
    coarse = int8.Int8Linear(linear)
    weight = (coarse.weight.t().float() * coarse.scales[:, None]).detach()
    steps = inputs.abs().amax(-1, keepdim=True) / int8.LARGEST
    expected = torch.nn.functional.linear((inputs / steps).round() * steps, weight, linear.bias).detach()
    assert (weight - linear.weight.detach()).abs().max() <= coarse.scales.max() / 2 + 1e-6
    torch.testing.assert_close(coarse(inputs), expected, rtol=1e-4, atol=1e-4)
    assert coarse(torch.zeros(shape)).isfinite().all()


@pytest.mark.parametrize("answer", ["", "x"])
def test_an_answer_needs_a_token(answer: str) -> None:
    reading = reader(talking())
    if answer:
        assert Engine(reading).run([reading_row(reading, "What is rain?", answer)])[0].read is not None
        return
    with pytest.raises(DataError) as error:
        reading_row(reading, "What is rain?", answer)
    one_line(error)
