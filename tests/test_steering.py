"""Steering is algebra: what is added, ablated or capped is exactly that, and nothing else moves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from persona_bench.errors import DataError, ModelError, VectorError
from persona_bench.models.engine import Engine
from persona_bench.models.loaded import LoadedModel, prepare
from persona_bench.models.rows import Row
from persona_bench.models.sampling import Sampling
from persona_bench.models.steering import Capture, Intervention
from tests.builders import CONFIGS, HEADS, SIZES, SPECIAL, tiny
from tests.conftest import one_line, tiny_vector

PROMPT = (5, 9, 17, 33, 2, 8)
ANSWER = (11, 3, 77, 54)


def vector(seed: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(32, generator=torch.Generator().manual_seed(seed)) * scale


@contextmanager
def plain(loaded: LoadedModel) -> Iterator[Any]:
    """The same weights through transformers' own attention and no engine."""
    loaded.model.set_attn_implementation("eager")
    try:
        yield loaded.model
    finally:
        loaded.model.set_attn_implementation("persona_bench")


def reference_states(
    loaded: LoadedModel, tokens: tuple[int, ...], edits: dict[int, Any] | None = None
) -> list[torch.Tensor]:
    """Independent reference: residual streams `(tokens, d)` after each block by plain hooks, edited on the way."""
    states: list[torch.Tensor] = [torch.empty(0)] * (loaded.n_layers + 1)
    handles = []

    def hook(layer: int) -> Any:
        def run(_module: Any, _args: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            if edits and layer in edits:
                hidden = edits[layer](hidden)
            states[layer] = hidden[0].detach().clone()
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return run

    def first(_module: Any, args: Any, kwargs: Any) -> None:
        states[0] = (args[0] if args else kwargs["hidden_states"])[0].detach().clone()

    handles.append(loaded.blocks[0].register_forward_pre_hook(first, with_kwargs=True))
    handles += [block.register_forward_hook(hook(i + 1)) for i, block in enumerate(loaded.blocks)]
    try:
        with plain(loaded) as model, torch.no_grad():
            model(torch.tensor([tokens]), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return states


def captured(engine: Engine, row: Row) -> np.ndarray:
    """All residual streams of a row's response tokens, `(tokens, n_layers + 1, d)`, read one unit axis at a time."""
    n = engine.hooks.n_layers + 1
    axes = torch.eye(32)[:, None, :].expand(32, n, 32).contiguous()
    capture = Capture(axes, per_token=True)
    result = engine.run([Row(row.prompt, row.continuation, interventions=row.interventions, capture=capture)])[0]
    assert result.projections is not None and result.projections.per_token is not None
    assert result.projections.prompt_last is not None
    full = np.concatenate([result.projections.prompt_last[None], result.projections.per_token])
    return full.transpose(0, 2, 1)


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_plain_pass_equals_transformers(kind: str) -> None:
    loaded = tiny(kind)
    ours = captured(Engine(loaded), Row(PROMPT, ANSWER))
    reference = reference_states(loaded, PROMPT + ANSWER)
    for layer in range(1, loaded.n_layers + 1):
        np.testing.assert_allclose(ours[:, layer], reference[layer][len(PROMPT) - 1 :], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_logprobs_are_those_of_transformers(kind: str) -> None:
    loaded = tiny(kind)
    for parameter in loaded.model.parameters():
        if parameter.shape == (4,):
            torch.nn.init.normal_(parameter)  # GPT-OSS's sinks
    (result,) = Engine(loaded).run([Row(PROMPT, ANSWER, alternatives=(7, 8))])
    with plain(loaded) as model, torch.no_grad():
        logits = model(torch.tensor([PROMPT + ANSWER]), use_cache=False).logits[0, len(PROMPT) - 1 :]
    expected = torch.log_softmax(logits.float(), -1)
    np.testing.assert_allclose(result.continuation_logprobs, expected[range(4), ANSWER], atol=2e-5)
    np.testing.assert_allclose(result.alternative_logprobs, expected[-1, [7, 8]], atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_with_another_head_is_refused(dtype: torch.dtype) -> None:
    model = tiny().model.to(dtype)
    forward = model.forward

    def scaled(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = output.logits * 1.1
        return output

    model.forward = scaled
    with pytest.raises(ModelError) as error:
        prepare(model, None, name="odd", weights_hash="0" * 64)
    one_line(error, "odd", "LlamaForCausalLM", "_finished")


def test_a_model_whose_attention_takes_what_the_engine_does_not_know_is_refused() -> None:
    model = tiny().model
    inner = model.get_decoder().layers[1].self_attn.forward
    model.get_decoder().layers[1].self_attn.forward = partial(inner, position_bias=torch.zeros(1))
    with pytest.raises(ModelError) as error:
        prepare(model, None, name="odd", weights_hash="0" * 64)
    one_line(error, "LlamaAttention", "position_bias")


@pytest.mark.parametrize(
    ("kind", "config", "part"),
    [
        ("Lfm2", {"layer_types": ["conv", "full_attention"] * 2}, "AttributeError"),
        (
            "Gemma3nText",
            {"vocab_size_per_layer_input": 128, "num_kv_shared_layers": 0, "laurel_rank": 4},
            "(4, 1, 2, 32)",
        ),
    ],
)
def test_a_model_that_the_engine_cannot_run_or_read_is_refused_when_it_is_loaded(
    kind: str, config: dict[str, Any], part: str
) -> None:
    made = getattr(transformers, f"{kind}Config")(**SIZES, **HEADS, **SPECIAL, **config)
    with pytest.raises(ModelError) as error:
        prepare(transformers.AutoModelForCausalLM.from_config(made), None, name="odd", weights_hash="0" * 64)
    one_line(error, "odd", f"{kind.removesuffix('Text')}ForCausalLM", part)


def test_rows_of_a_model_with_long_rope_depend_on_no_neighbour_and_longer_ones_are_refused() -> None:
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "long_factor": [4.0] * 4, "short_factor": [1.0] * 4}
    config = transformers.Phi3Config(
        **{**SIZES, **HEADS, **SPECIAL, "max_position_embeddings": 128},
        original_max_position_embeddings=24,
        rope_parameters={**rope, "original_max_position_embeddings": 24, "partial_rotary_factor": 1.0},
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    loaded = prepare(model, None, name="long", weights_hash="0" * 64)
    engine, tokens = Engine(loaded), tuple(range(5, 65))
    assert loaded.max_length == 24
    row, other, late = Row(PROMPT, ANSWER), Row(tokens[:4], tokens[4:24]), Row(tokens[:22], (3,), shared_prefix=21)
    alone = [engine.run([item])[0].continuation_logprobs for item in (row, other, late)]
    # The late row's slot starts at 21, and is filled up to where the others' twenty tokens would end.
    for together in ([row, other], [late, row, other], [other, late]):
        for item, result in zip(together, engine.run(together), strict=True):
            expected = alone[[row, other, late].index(item)]
            np.testing.assert_allclose(result.continuation_logprobs, expected, atol=2e-5)
    with plain(loaded) as reference, torch.no_grad():
        logits = reference(torch.tensor([tokens[:24]]), use_cache=False).logits[0, 3:-1]
    np.testing.assert_allclose(alone[1], torch.log_softmax(logits, -1)[range(20), tokens[4:24]], atol=2e-5)
    with pytest.raises(DataError) as error:
        engine.run([Row(tokens[:4], tokens[4:25])])
    one_line(error, "25 tokens", "24")


def test_rows_beside_one_at_the_end_of_the_context() -> None:
    engine = Engine(tiny("gpt2"))  # which has no positions beyond its context
    long, row = Row(tuple(range(3, 103)) * 2 + PROMPT * 9, (9,), shared_prefix=253), Row(PROMPT, ANSWER * 6)
    engine.run([long])
    for result, item in zip(engine.run([long, row]), (long, row), strict=True):
        (expected,) = engine.run([item])
        np.testing.assert_allclose(result.continuation_logprobs, expected.continuation_logprobs, atol=2e-5)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt_neox", "gpt2"])
def test_added_vector_is_exact(kind: str) -> None:
    loaded, layer, alpha = tiny(kind), 2, 1.7
    engine = Engine(loaded)
    before = captured(engine, Row(PROMPT, ANSWER))
    after = captured(engine, Row(PROMPT, ANSWER, interventions=(Intervention(layer, vector(1), alpha),)))
    assert np.array_equal(before[:, 1:layer], after[:, 1:layer])
    expected = torch.tensor(before[:, layer]) + alpha * vector(1)
    assert np.array_equal(after[:, layer], expected.numpy())
    assert not np.allclose(before[:, layer + 1], after[:, layer + 1])


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "gpt2"])
@pytest.mark.parametrize("positions", ["response", "prompt", "all"])
def test_positions_agree_with_reference(kind: str, positions: Any) -> None:
    loaded, layer, v = tiny(kind), 3, vector(2)
    tokens = PROMPT + ANSWER
    where = torch.zeros(len(tokens), 1)
    low = len(PROMPT) - 1 if positions == "response" else 0
    high = len(PROMPT) if positions == "prompt" else len(tokens)
    where[low:high] = 1
    reference = reference_states(loaded, tokens, {layer: lambda hidden: hidden + where * v})
    ours = captured(Engine(loaded), Row(PROMPT, ANSWER, interventions=(Intervention(layer, v, positions=positions),)))
    for check in range(1, loaded.n_layers + 1):
        np.testing.assert_allclose(ours[:, check], reference[check][len(PROMPT) - 1 :], rtol=1e-4, atol=2e-4)


def test_ablated_projection_is_zero_and_cap_caps() -> None:
    engine = Engine(tiny())
    axis = vector(3) / vector(3).norm()
    free = captured(engine, Row(PROMPT, ANSWER))[:, 2] @ axis.numpy()
    ablated = captured(engine, Row(PROMPT, ANSWER, interventions=(Intervention(2, vector(3), operation="ablate"),)))
    np.testing.assert_allclose(ablated[:, 2] @ axis.numpy(), 0, atol=1e-5)
    limit = float(np.median(free))
    capped = captured(engine, Row(PROMPT, ANSWER, interventions=(Intervention(2, vector(3), limit, "cap"),)))
    values = capped[:, 2] @ axis.numpy()
    assert (values <= limit + 1e-5).all()
    assert (free > limit + 1e-3).any()
    # The first token's stream at the capped layer depends on nothing earlier that was capped.
    assert values[0] == pytest.approx(min(free[0], limit), abs=1e-5)


def test_interventions_of_one_layer_act_in_order() -> None:
    engine, v, w = Engine(tiny()), vector(4), vector(5)
    axis = (w / w.norm()).numpy()
    add_first = (Intervention(2, v), Intervention(2, w, operation="ablate"))
    np.testing.assert_allclose(
        captured(engine, Row(PROMPT, ANSWER, interventions=add_first))[:, 2] @ axis, 0, atol=1e-5
    )
    ablate_first = tuple(reversed(add_first))
    np.testing.assert_allclose(
        captured(engine, Row(PROMPT, ANSWER, interventions=ablate_first))[:, 2] @ axis,
        float(v.numpy() @ axis),
        atol=1e-4,
    )


def mixed_rows(n: int, *, sampled: bool = True) -> list[Row]:
    operations = ("add", "ablate", "cap")
    positions = ("response", "prompt", "all")
    n_layers = 4
    rows = []
    for i in range(n):
        generator = np.random.default_rng(i)
        prompt = tuple(int(t) for t in generator.integers(3, 128, generator.integers(2, 20)))
        interventions = tuple(
            Intervention(
                1 + (i + j) % n_layers, vector(100 + i + j), 0.6 + 0.1 * j, operations[(i + j) % 3], positions[i % 3]
            )
            for j in range(i % 4)
        )
        capture = Capture(torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(i % 2)), per_token=True)
        sampling = Sampling(3 + i % 9, temperature=(0.0, 0.7, 1.0)[i % 3], top_p=(1.0, 0.8)[i % 2], seed=i)
        rows.append(
            Row(
                prompt,
                sampling=sampling if sampled else None,
                interventions=interventions,
                capture=capture,
                shared_prefix=i % 3,
            )
        )
    return rows


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2", "gpt2"])
def test_mixed_batch_equals_each_row_alone(kind: str) -> None:
    loaded = tiny(kind)
    rows = mixed_rows(24)
    together = Engine(loaded, max_batch=7).run(rows)
    for row, batched in zip(rows, together, strict=True):
        alone = Engine(loaded).run([row])[0]
        assert alone.tokens == batched.tokens and alone.stop_reason == batched.stop_reason
        assert alone.projections is not None and batched.projections is not None
        for name in ("prompt_last", "response_mean", "per_token"):
            ours, theirs = getattr(alone.projections, name), getattr(batched.projections, name)
            assert (ours is None) == (theirs is None)
            if ours is not None:
                np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
def test_greedy_equals_transformers_generate(kind: str) -> None:
    loaded = tiny(kind)
    steered = Row(
        (7, 8, 9), sampling=Sampling(12, temperature=0, ignore_eos=True), interventions=(Intervention(2, vector(1), 3),)
    )
    prompts = [PROMPT, (3, 4), (9, 8, 7, 6, 5, 4, 3, 10, 11, 12, 13)]
    rows = [Row(p, sampling=Sampling(12, temperature=0, ignore_eos=True)) for p in prompts]
    ours = Engine(loaded).run([steered, *rows])[1:]
    with plain(loaded) as model:
        for prompt, result in zip(prompts, ours, strict=True):
            theirs = model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=12,
                min_new_tokens=12,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
            assert tuple(theirs[0, len(prompt) :].tolist()) == result.tokens


def test_hooks_are_neutral_once_rows_are_gone() -> None:
    loaded = tiny()
    engine = Engine(loaded)
    before = captured(engine, Row(PROMPT, ANSWER))
    engine.run(mixed_rows(20))
    assert np.array_equal(before, captured(engine, Row(PROMPT, ANSWER)), equal_nan=True)
    assert not any(engine.hooks._active)
    for stages in engine.hooks._stages:
        for stage in stages:
            assert not stage.add.any() and not stage.axis.any() and torch.isinf(stage.low).all()


def test_captured_while_generating_equals_teacher_forcing() -> None:
    loaded = tiny()
    engine = Engine(loaded)
    directions = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(0))
    capture = Capture(directions, per_token=True, prompt_mean=True)
    interventions = (Intervention(2, vector(1), 0.5),)
    row = Row(PROMPT, sampling=Sampling(9, seed=3, ignore_eos=True), interventions=interventions, capture=capture)
    made = engine.run([row])[0]
    forced = engine.run([Row(PROMPT, made.tokens, interventions=interventions, capture=capture)])[0]
    assert made.projections is not None and forced.projections is not None
    assert made.projections.per_token is not None
    assert made.projections.per_token.shape == (9, 3, 5)
    for name in ("prompt_last", "prompt_mean", "response_mean", "per_token"):
        np.testing.assert_allclose(
            getattr(made.projections, name), getattr(forced.projections, name), rtol=1e-4, atol=1e-4
        )


def test_hidden_means_agree_with_reference() -> None:
    loaded = tiny("qwen2")
    result = Engine(loaded).run([Row(PROMPT, ANSWER, hidden_means=True)])[0]
    states = reference_states(loaded, PROMPT + ANSWER)
    assert result.hidden_means is not None
    for layer, state in enumerate(states):
        np.testing.assert_allclose(result.hidden_means[0, layer], state[len(PROMPT) - 1], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(result.hidden_means[1, layer], state[: len(PROMPT)].mean(0), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(result.hidden_means[2, layer], state[len(PROMPT) :].mean(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shared", [0, 4])
def test_scores_are_log_probabilities(shared: int) -> None:
    loaded = tiny("gemma2")
    rows = [
        Row(PROMPT, ANSWER, alternatives=(1, 5, 9), shared_prefix=shared),
        Row(PROMPT, alternatives=(4,), shared_prefix=shared),
    ]
    first, second = Engine(loaded).run(rows)
    with plain(loaded) as model, torch.no_grad():
        logits = torch.log_softmax(model(torch.tensor([PROMPT + ANSWER])).logits[0], -1)
    for i, token in enumerate(ANSWER):
        assert first.continuation_logprobs[i] == pytest.approx(float(logits[len(PROMPT) - 1 + i, token]), abs=1e-4)
    np.testing.assert_allclose(first.alternative_logprobs, logits[-1, [1, 5, 9]], atol=1e-4)
    np.testing.assert_allclose(second.alternative_logprobs, logits[len(PROMPT) - 1, [4]], atol=1e-4)


def test_generated_logprobs_match_scores() -> None:
    engine = Engine(tiny())
    made = engine.run([Row(PROMPT, sampling=Sampling(6, seed=1, logprobs=True, top_logprobs=3, ignore_eos=True))])[0]
    scored = engine.run([Row(PROMPT, made.tokens)])[0]
    np.testing.assert_allclose(made.logprobs, scored.continuation_logprobs, atol=1e-4)
    assert all(len(top) == 3 and top[0][1] >= top[1][1] for top in made.top_logprobs)


def test_memory_failure_halves_the_batch(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny()
    rows = mixed_rows(20)
    expected = [result.tokens for result in Engine(loaded).run(rows)]
    engine = Engine(loaded, max_batch=16)
    decoder = engine.loaded.decoder
    forward = decoder.forward

    def cramped(*args: Any, **kwargs: Any) -> Any:
        if kwargs["input_ids"].shape[0] > 5:
            raise torch.OutOfMemoryError("planted")
        return forward(*args, **kwargs)

    monkeypatch.setattr(decoder, "forward", cramped)
    assert [result.tokens for result in engine.run(rows)] == expected
    assert engine.max_batch == 4
    assert "did not fit in memory" in caplog.text


def test_bad_rows_are_refused() -> None:
    engine = Engine(tiny("gpt2"))
    with pytest.raises(ModelError, match=r"outside 1\.\.4"):
        engine.submit(Row(PROMPT, interventions=(Intervention(5, vector(0)),)))
    with pytest.raises(VectorError, match="width 16"):
        engine.submit(Row(PROMPT, interventions=(Intervention(2, torch.ones(16)),)))
    with pytest.raises(VectorError, match="finite"):
        Intervention(2, torch.full((32,), float("nan")))
    with pytest.raises(DataError, match="context of 256"):
        engine.submit(Row(tuple([5] * 300)))
    with pytest.raises(DataError, match="empty prompt"):
        engine.submit(Row(()))


def test_context_end_is_a_stop_reason() -> None:
    result = Engine(tiny("gpt2")).run([Row(tuple([5] * 250), sampling=Sampling(50, ignore_eos=True))])[0]
    assert result.stop_reason == "model_length"
    assert len(result.tokens) == 6


def test_nothing_hangs_on_the_default_dtype() -> None:
    """Loading weights changes torch's default dtype for the whole process, while an engine may be at work."""
    rows = mixed_rows(16)
    loaded = tiny()
    expected = Engine(loaded, max_batch=7).run(rows)
    vector = tiny_vector()
    noise = vector.direction("random:3")
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = Engine(loaded, max_batch=7).run(rows)
        again = vector.direction("random:3")
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(expected, found, strict=True):
        assert one.tokens == other.tokens
        for name in ("prompt_last", "response_mean", "per_token"):
            first, second = getattr(one.projections, name, None), getattr(other.projections, name, None)
            assert (first is None and second is None) or np.array_equal(first, second, equal_nan=True)
    assert again.dtype == torch.float32 and torch.equal(noise, again)
