"""The main job: eval sets, vectors, tables, verdicts, figures and report, each step done only if it is missing.

`settings` says what is asked; `core`, `limits` and `training` hold the stages; `job` puts them in order; `rejudging`
has another grader judge what a run left.
"""

from persona_bench.pipeline.job import Checked, Run, check_evals, extract_one, run
from persona_bench.pipeline.rejudging import rejudge
from persona_bench.pipeline.settings import (
    ALL_EVALS,
    CORE_EVALS,
    DEFAULT_GRADER,
    DEFAULT_MODEL,
    Say,
    Settings,
    finished,
    model_spec,
    run_folder,
)

__all__ = [
    "ALL_EVALS",
    "CORE_EVALS",
    "DEFAULT_GRADER",
    "DEFAULT_MODEL",
    "Checked",
    "Run",
    "Say",
    "Settings",
    "check_evals",
    "extract_one",
    "finished",
    "model_spec",
    "rejudge",
    "run",
    "run_folder",
]
