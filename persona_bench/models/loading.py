"""A model name -> model, tokenizer and decoder blocks, loaded once a process."""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from persona_bench.errors import ModelError, first_line
from persona_bench.files import write_atomic
from persona_bench.models import assets
from persona_bench.models.adapters import hash_adapter, merge
from persona_bench.models.attention import ATTENTION_NAME, register
from persona_bench.models.loaded import LoadedModel, prepare
from persona_bench.models.memory import reuse_large_blocks

logger = logging.getLogger(__name__)

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def default_device() -> torch.device:
    """CUDA where there is one, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def default_dtype(device: torch.device) -> torch.dtype:
    """Bfloat16 where the hardware computes in it (on CPU: AVX-512 BF16 or AMX), else float32."""
    if device.type == "cuda":
        # Older GPUs emulate it, in many times the time.
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "mps":
        return torch.bfloat16
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    return torch.bfloat16 if "avx512_bf16" in flags or "amx_bf16" in flags else torch.float32


def as_device(name: str | None) -> torch.device:
    """A device by name that can be computed on, or the default.

    Raises:
        ModelError: for an unknown or absent device.
    """
    if name in (None, "auto"):
        return default_device()
    try:
        device = torch.device(str(name))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device {name!r} cannot be used: {first_line(error)}; use cpu or auto") from error
    return device


def as_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """A dtype by name, or the default of the device.

    Raises:
        ModelError: for an unknown name.
    """
    if name is None or name == "auto":
        return default_dtype(device)
    if name not in DTYPES:
        raise ModelError(f"unknown dtype {name!r}; use {', '.join(DTYPES)} or auto")
    return DTYPES[name]


_loaded: dict[tuple[str, str, str], LoadedModel] = {}
_loading = threading.Lock()


def load(name: str, *, dtype: str | None = None, device: str | None = None, revision: str | None = None) -> LoadedModel:
    """Load weights, or hand out those this process holds already.

    Args:
        name: a catalogue name (`persona-bench assets list`), a Hub id, a local folder or a `.gguf` file; with
            `+ADAPTER` after it, a peft adapter's folder, merged in memory.
        dtype: bfloat16, float16, float32 or auto (what the hardware computes fast).
        device: cpu, cuda, mps, ... or auto.
        revision: of a Hub id.

    Raises:
        ModelError: unknown name, unknown architecture, broken folder.
        AssetError: weights that cannot be fetched.
    """
    where = as_device(device)
    kind = as_dtype(dtype, where)
    weights, adapter = split_adapter(name)
    if adapter is not None:
        return _load_merged(name, load(weights, dtype=dtype, device=device, revision=revision), adapter)
    with _loading:
        path, source = resolve(name, revision)
        key = (str(path), str(kind), str(where))
        if key not in _loaded:
            _loaded[key] = _load(name, path, source, kind, where)
        return _loaded[key]


def split_adapter(name: str) -> tuple[str, Path | None]:
    """`<weights>+<adapter>` as its parts; a name without an adapter comes back whole, with None."""
    if "+" not in name or Path(name).exists():
        return name, None
    cuts = [index for index, character in enumerate(name) if character == "+"]
    # Either part may hold a plus of its own: the adapter is the folder that is there.
    cut = next((index for index in cuts if Path(name[index + 1 :]).is_dir()), cuts[-1])
    return name[:cut], Path(os.path.expanduser(name[cut + 1 :])).resolve()  # noqa: PTH111 - as in resolve


def _load_merged(name: str, base: LoadedModel, adapter: Path) -> LoadedModel:
    key = (f"{base.weights_hash}+{hash_adapter(adapter)}", str(base.dtype), str(base.device))
    with _loading:
        if key not in _loaded:
            _loaded[key] = merge(base, adapter, name)
        return _loaded[key]


def forget(loaded: LoadedModel) -> None:
    """Hold weights no longer, so that their memory is free once nobody else does."""
    with _loading:
        for key in [key for key, held in _loaded.items() if held is loaded]:
            del _loaded[key]


def resolve(name: str, revision: str | None = None, *, weights: bool = True) -> tuple[Path, str]:
    """Where a model's files are on this machine, fetching them if need be: (folder or .gguf file, source).

    Of `<weights>+<adapter>` those of the weights; that the adapter is one is checked. Without `weights` a Hub id's
    config is enough.

    Raises:
        ModelError: there is no such model, or not all of it can be had.
        AssetError: a catalogue's weights cannot be fetched.
    """
    base, adapter = split_adapter(name)
    if adapter is not None:
        hash_adapter(adapter)
        return resolve(base, revision, weights=weights)
    if isinstance(assets.CATALOGUE.get(name), assets.WeightsAsset):
        folder = assets.fetch_weights(name, progress=logger.info)
        return folder, str(json.loads((folder / "source.json").read_text())["source"])
    path = Path(os.path.expanduser(name))  # noqa: PTH111 - Path.expanduser raises for an unknown user
    if path.is_file() and path.suffix == ".gguf":
        return path.resolve(), "gguf"
    if path.is_dir():
        if not (path / "config.json").exists():
            raise ModelError(f"{path} is a folder without config.json; give a transformers model folder")
        return path.resolve(), "folder"
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _hub_snapshot(name, revision, weights), "hub"
    known = ", ".join(item for item, asset in assets.CATALOGUE.items() if isinstance(asset, assets.WeightsAsset))
    raise ModelError(f"unknown model {name!r}; use one of {known}, a Hub id (owner/name), a folder or a .gguf file")


def _hub_snapshot(name: str, revision: str | None, weights: bool) -> Path:
    """The folder of a Hub id: the local Hub cache where it has all of it, else a download."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    options: dict[str, Any] = {
        "revision": revision,
        "allow_patterns": ["*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model"] if weights else ["*.json"],
        # The same weights once more, as some publishers have them besides.
        "ignore_patterns": ["consolidated*", "original/*"],
    }
    try:
        held = Path(snapshot_download(name, local_files_only=True, **options))
        if not _lacking(held, weights):
            return held
        logger.info("%s is only partly in the local Hub cache; asking the Hub.", name)
    except LocalEntryNotFoundError:
        logger.info("%s is not in the local Hub cache; asking the Hub.", name)
    except HFValidationError as error:
        raise ModelError(f"{name!r} is no Hub id: {error}") from error
    alike = [
        key for key, asset in assets.CATALOGUE.items() if isinstance(asset, assets.WeightsAsset) and asset.hub == name
    ]
    instead = f"use the catalogue's {alike[0]}, or " if alike else ""
    try:
        # Where the Hub cannot be reached this is what the local cache has of it.
        held = Path(snapshot_download(name, etag_timeout=5, **options))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"{name} is neither in the local Hub cache nor can the Hub be reached or have it; {instead}"
            f"download it where there is a network ({type(error).__name__})"
        ) from error
    if lacking := _lacking(held, weights):
        raise ModelError(
            f"{name} lacks {lacking[0]} in the local Hub cache, and the Hub cannot be reached or does not have it; "
            f"{instead}download it where there is a network (pickled weights are not read)"
        )
    return held


def _lacking(folder: Path, weights: bool) -> list[str]:
    """What a model is loaded from and a folder lacks: its config and, with `weights`, each of their files."""
    index, files = folder / "model.safetensors.index.json", ["model.safetensors"]
    if index.is_file() and not (folder / files[0]).is_file():
        try:
            files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise ModelError(f"{index} is broken: {first_line(error)}; remove it and load the model again") from error
    return [name for name in ("config.json", *(files if weights else ())) if not (folder / name).is_file()]


def _load(name: str, path: Path, source: str, dtype: torch.dtype, device: torch.device) -> LoadedModel:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils.logging import disable_progress_bar

    register()
    disable_progress_bar()  # type: ignore[no-untyped-call]
    where = path.parent if path.is_file() else path
    gguf: dict[str, Any] = {"gguf_file": path.name} if path.is_file() else {}
    # Packed GGUF blocks are no matrices to read rows from: the engine needs plain weights.
    plain = {"quantization_config": GgufConfig(dequantize=True)} if gguf else {"use_safetensors": True}
    try:
        # A stranger's folder is data: neither its code nor its pickles are run.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            where,
            dtype=dtype,
            attn_implementation=ATTENTION_NAME,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            **gguf,
            **plain,
        )
        tokenizer = AutoTokenizer.from_pretrained(where, local_files_only=True, trust_remote_code=False, **gguf)
    except Exception as error:
        # Broken files make transformers, safetensors, gguf and torch raise errors of their own kinds.
        first = first_line(error)
        raise ModelError(f"cannot load {name} from {path}: {first}") from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{path} lacks {len(missing)} of the model's weights, the first {missing[0]}; fetch the folder again"
        )
    if device.type == "cpu":
        reuse_large_blocks()
        _into_huge_pages(model)
    return prepare(model.to(device), tokenizer, name=name, weights_hash=hash_weights(path), source=source)


def _into_huge_pages(model: Any) -> None:
    """Move CPU weights into one block of huge pages: every decoding step reads them all."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return
    align = 4096
    distinct = {parameter.data_ptr(): parameter.data for parameter in model.parameters()}
    offsets, size = {}, 0
    for pointer, tensor in distinct.items():
        offsets[pointer] = size
        size += -(-tensor.numel() * tensor.element_size() // align) * align
    block = mmap.mmap(-1, size)
    block.madvise(mmap.MADV_HUGEPAGE)
    memory = torch.frombuffer(block, dtype=torch.uint8)
    moved: dict[int, Tensor] = {}
    for pointer, tensor in distinct.items():
        begin = offsets[pointer]
        moved[pointer] = (
            memory[begin : begin + tensor.numel() * tensor.element_size()].view(tensor.dtype).view(tensor.shape)
        )
        moved[pointer].copy_(tensor)
    for parameter in model.parameters():
        parameter.data = moved[parameter.data_ptr()]


def hash_weights(path: Path) -> str:
    """Sha256 over the weight files of a folder (or of one file), remembered by size and modification time."""
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{path} holds no .safetensors weights; convert them, pickled weights are not read")
    stamp = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    memo = assets.cache_dir() / "hashes" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:32]}.json"
    if memo.exists():
        held = json.loads(memo.read_text())
        if held["stamp"] == stamp:
            return str(held["sha256"])
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    memo.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(memo, json.dumps({"path": os.fspath(path), "stamp": stamp, "sha256": digest.hexdigest()}))
    return digest.hexdigest()
