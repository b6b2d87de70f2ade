"""How a text's likelihood answers to what is added to the residual stream: a derivative, one backward pass a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from persona_bench.errors import ModelError
from persona_bench.models.attention import SlotCache
from persona_bench.models.loading import LoadedModel


def likelihood_gradients(
    loaded: LoadedModel,
    texts: Sequence[tuple[tuple[int, ...], tuple[int, ...]]],
    layer: int,
    *,
    batch: int = 8,
) -> np.ndarray:
    """Gradient of each continuation's mean log-probability with respect to a vector added at a layer.

    The vector is added where steering acts (`response` positions): at the last prompt token and at every token after
    it. Its product with a direction is the change in log-probability a token, to first order, that steering along that
    direction brings; one gradient answers for every direction.

    Args:
        loaded: the model; its engine must be idle.
        texts: (prompt, continuation) token ids; neither may be empty.
        layer: 1-based.
        batch: rows a pass.

    Returns:
        `(len(texts), d_model)` float64, natural logarithm a token and unit of the residual stream.

    Raises:
        ModelError: a layer outside the model, an empty text, or one longer than its context.
    """
    if not 1 <= layer <= loaded.n_layers:
        raise ModelError(f"layer {layer} is outside 1..{loaded.n_layers} of this model; choose one inside")
    for prompt, continuation in texts:
        if not prompt or not continuation:
            raise ModelError("a likelihood needs at least one token of prompt and one of continuation")
        if len(prompt) + len(continuation) > loaded.max_length:
            raise ModelError(f"a text does not fit the model's context of {loaded.max_length} tokens; shorten it")
    parts = [_gradients(loaded, texts[start : start + batch], layer) for start in range(0, len(texts), batch)]
    return np.concatenate(parts) if parts else np.zeros((0, loaded.d_model))


def _gradients(loaded: LoadedModel, texts: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], layer: int) -> np.ndarray:
    device = loaded.device
    width = max(len(prompt) + len(continuation) for prompt, continuation in texts)
    tokens = torch.zeros(len(texts), width, dtype=torch.long)
    acts = torch.zeros(len(texts), width, 1)
    for index, (prompt, continuation) in enumerate(texts):
        given = prompt + continuation
        tokens[index, : len(given)] = torch.tensor(given)
        acts[index, len(prompt) - 1 : len(given)] = 1
    tokens, acts = tokens.to(device), acts.to(device)
    added = torch.zeros(len(texts), 1, loaded.d_model, device=device, requires_grad=True)

    def add(_module: Any, _args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        hidden = (hidden.float() + added * acts).to(hidden.dtype)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    cache = SlotCache(loaded.n_layers, len(texts), width)
    handle = loaded.blocks[layer - 1].register_forward_hook(add)
    try:
        with torch.enable_grad(), cache.frame(0, [0] * len(texts), width, device) as frame:
            hidden = loaded.decoder(
                input_ids=tokens, position_ids=frame.positions, past_key_values=cache, use_cache=True
            ).last_hidden_state
            total = torch.stack([_mean_logprob(loaded, hidden[i], *text) for i, text in enumerate(texts)]).sum()
            (gradient,) = torch.autograd.grad(total, added)
    finally:
        handle.remove()
    return gradient[:, 0].double().cpu().numpy()


def _mean_logprob(
    loaded: LoadedModel, hidden: Tensor, prompt: tuple[int, ...], continuation: tuple[int, ...]
) -> Tensor:
    """Mean log-probability of the continuation's tokens from one row's final hidden states `(tokens, d_model)`."""
    first = len(prompt) - 1
    logits = loaded.head(hidden[first : first + len(continuation)])
    targets = torch.tensor(continuation, device=hidden.device)
    return -torch.nn.functional.cross_entropy(logits, targets)
