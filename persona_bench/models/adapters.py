"""LoRA adapters: attached to a copy of the model that shares its weights, written as peft reads them, and merged."""

from __future__ import annotations

import copy
import hashlib
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from persona_bench.errors import ModelError
from persona_bench.files import atomic_path, write_atomic
from persona_bench.models.gradients import use_own_products
from persona_bench.models.loaded import LoadedModel, find_blocks, prepare, shallow_copy

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SHORT = 256
"""Up to as many tokens a processor holds all scores of attention: fused attention is slow to differentiate there."""


def own_copy(loaded: LoadedModel, longest: int = 0) -> Any:
    """The model with modules and configuration of its own and an attention of transformers, on the same weights.

    The engine's model keeps its hooks and its attention, which knows no gradients.

    Args:
        loaded: the model.
        longest: tokens of the longest row that it is trained on; 0 where it is not.
    """
    bare = shallow_copy(loaded.model)
    model: Any = copy.deepcopy(bare, {id(tensor): tensor for tensor in (*bare.parameters(), *bare.buffers())})
    # Fused attention has no place for a cap on the scores, nor for sinks, whose models say that they do not support it.
    plain = getattr(model.config.get_text_config(), "attn_logit_softcapping", None) or not model._supports_sdpa
    short = loaded.device.type == "cpu" and 0 < longest <= SHORT
    model.set_attn_implementation("eager" if plain or short else "sdpa")
    return model


def attach(loaded: LoadedModel, rank: int, alpha: int, seed: int, longest: int) -> Any:
    """A peft model with a fresh rank-stabilised LoRA on every linear layer of the blocks (2312.03732).

    For Llama, Qwen and their like these are q, k, v, o, gate, up and down, as in the paper. The adapter is in float32
    whatever the weights are in. There is no dropout anywhere, so that training draws no random number after this.
    """
    from peft import LoraConfig, get_peft_model

    model = own_copy(loaded, longest)
    everywhere, blocks = _linear_layers(model), find_blocks(model)
    path = next(name for name, module in model.named_modules() if module is blocks)
    ours = {name for name in everywhere if name.startswith(f"{path}.")}
    ends = {name.rpartition(".")[2] for name in ours}
    # A vision tower's layers may be called like those of the blocks, which are then named in full.
    alike = any(name.rpartition(".")[2] in ends for name in everywhere.keys() - ours)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        use_rslora=True,
        target_modules=sorted(ours if alike else ends),
        fan_in_fan_out=not all(isinstance(everywhere[name], nn.Linear) for name in ours),
    )
    with torch.random.fork_rng(), _quiet():
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
    # peft puts the model's own idea of its name, often empty or a cache folder, into the configuration.
    adapted.peft_config["default"].base_model_name_or_path = loaded.name
    use_own_products(adapted)
    return adapted.eval()


def _linear_layers(model: Any) -> dict[str, nn.Module]:
    """Every linear layer by its name; those of GPT-2 are of a type of transformers' own."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    }


def trained_parameters(adapted: Any) -> dict[str, nn.Parameter]:
    """The adapter's parameters by name, in order of name."""
    return {name: value for name, value in sorted(adapted.named_parameters()) if value.requires_grad}


def save_adapter(adapted: Any, folder: Path) -> None:
    """Write the two files that `peft.PeftModel.from_pretrained` reads, each whole or not at all."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save

    state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    with atomic_path(folder / WEIGHTS) as temporary:
        temporary.write_bytes(save({name: value.detach().cpu().contiguous() for name, value in state.items()}))
    said = {name: _plain(value) for name, value in adapted.peft_config["default"].to_dict().items()}
    write_atomic(folder / CONFIG, json.dumps(said | {"inference_mode": True}, indent=1, sort_keys=True) + "\n")


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else value


def hash_adapter(folder: Path) -> str:
    """Sha256 over the configuration and weights of an adapter's folder.

    Raises:
        ModelError: the folder holds no adapter, or one in pickled weights, which are not read.
    """
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise ModelError(
            f"{folder} is no adapter: it needs {CONFIG} and {WEIGHTS}; `persona-bench finetune` or peft's "
            "save_pretrained write both"
        )
    digest = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        digest.update(hashlib.sha256((folder / name).read_bytes()).digest())
    return digest.hexdigest()


def merge(base: LoadedModel, folder: Path, name: str) -> LoadedModel:
    """The model with an adapter added to its weights, in memory of its own where it differs from the base.

    The sum is taken in float32 and rounded once to the weights' dtype.

    Raises:
        ModelError: the adapter is none, is of another kind than LoRA, or does not fit the model.
    """
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    held = hash_adapter(folder)
    try:
        said = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if said.get("peft_type") != "LORA":
            raise ModelError(f"{folder} holds an adapter of type {said.get('peft_type')!r}; only LORA can be merged")
        bare = own_copy(base)
        if said.get("bias", "none") != "none" or said.get("lora_bias"):
            _own_biases(bare)
        with _quiet():
            adapted = PeftModel.from_pretrained(bare, str(folder), local_files_only=True)
            for module in adapted.modules():
                if isinstance(module, BaseTunerLayer):
                    layer: Any = module.get_base_layer()
                    layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
            merged = adapted.merge_and_unload(safe_merge=True)
    except ModelError:
        raise
    except Exception as error:
        # peft and safetensors raise errors of their own kinds for what is broken or does not fit.
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(f"the adapter {folder} does not fit {base.name}: {first.strip()}") from error
    together = hashlib.sha256(f"{base.weights_hash}+{held}".encode()).hexdigest()
    return prepare(merged, base.tokenizer, name=name, weights_hash=together, source="adapter")


def _own_biases(model: Any) -> None:
    """Give a model biases of its own: peft writes those of an adapter over them. It knows them by their name."""
    for path, module in model.named_modules():
        for name, value in list(module.named_parameters(recurse=False)):
            if "bias" in f"{path}.{name}":
                setattr(module, name, nn.Parameter(value.detach().clone(), requires_grad=False))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what peft's use of older names of transformers warns of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield
