"""Sample frames to tidy tables: one row a cell, every number with its interval, its count and its log.

A table is a pure function of the frames, the seed and the number of resamples: no dates, no timings, no paths. The
same frames give byte-identical CSV files.
"""

from collections.abc import Mapping

import pandas as pd

from persona_bench.analysis import statistics as st
from persona_bench.analysis.grouping import Draw
from persona_bench.analysis.samples.frames import SAMPLE_COLUMNS, Samples
from persona_bench.analysis.tables.behaviours import shown_rows
from persona_bench.analysis.tables.capability import capability_rows
from persona_bench.analysis.tables.elicitation import elicitation_rows
from persona_bench.analysis.tables.evasion import evasion_rows
from persona_bench.analysis.tables.finetuning import finetuning_rows
from persona_bench.analysis.tables.flagging import flagging_rows
from persona_bench.analysis.tables.hard_cases import hard_case_rows
from persona_bench.analysis.tables.judge import case_rows, judge_rows, outcome_rows
from persona_bench.analysis.tables.layout import frame, ordered
from persona_bench.analysis.tables.limits import limit_rows
from persona_bench.analysis.tables.method import method_rows
from persona_bench.analysis.tables.monitoring import monitoring_rows
from persona_bench.analysis.tables.panel import panel_rows
from persona_bench.analysis.tables.steering import choose_steering, steering_table, with_layer_share
from persona_bench.analysis.tables.tradeoff import summary_rows, tradeoff_rows
from persona_bench.analysis.tables.vectors import chosen_layers, vector_table, vector_warnings


def build_tables(
    samples: Samples,
    *,
    seed: int = 0,
    resamples: int = st.RESAMPLES,
    judge_methods: Mapping[str, str] | None = None,
) -> dict[str, pd.DataFrame]:
    """All tables of a run.

    Args:
        samples: what was measured.
        seed: of the resampling.
        resamples: bootstrap resamples for each interval.
        judge_methods: trait -> the judging method the run used. Where a trait is missing, the method with the
            highest AUROC on the calibrate half is taken as the one used.

    Returns:
        Table name -> frame with the columns of `TABLE_COLUMNS`; an empty frame where nothing was measured.
    """
    draw = Draw(seed, resamples)
    steering = steering_table(samples.steering, draw)
    choice = with_layer_share(choose_steering(steering), samples.steering, draw)
    layers = chosen_layers(samples.vectors, choice)
    mmlu = frame("mmlu", capability_rows(samples.mmlu, draw))
    tables = {
        "judge": frame("judge", judge_rows(samples.judge, draw, judge_methods or {})),
        "judge_cases": frame("judge_cases", case_rows(samples.judge, draw)),
        "judge_outcomes": frame("judge_outcomes", outcome_rows(samples.judge, draw)),
        "hard_cases": frame("hard_cases", hard_case_rows(samples.judge, samples.twins, draw)),
        "judge_panel": frame("judge_panel", panel_rows(samples.panel, draw)),
        "elicitation": frame("elicitation", elicitation_rows(samples.elicitation, draw)),
        "steering": steering,
        "steering_choice": choice,
        **{name: frame(name, rows) for name, rows in monitoring_rows(samples, layers, draw).items()},
        "mmlu": mmlu,
        "tradeoff": frame("tradeoff", tradeoff_rows(steering, mmlu)),
        "tradeoff_summary": frame("tradeoff_summary", summary_rows(samples.steering, samples.mmlu, mmlu, draw)),
        "vectors": vector_table(samples.vectors),
        "cosines": samples.cosines[list(SAMPLE_COLUMNS["cosines"])],
        **{name: frame(name, rows) for name, rows in finetuning_rows(samples, draw).items()},
        **{name: frame(name, rows) for name, rows in flagging_rows(samples, draw).items()},
        "behaviours": frame("behaviours", shown_rows(samples.scenes, draw)),
        "limits": frame("limits", limit_rows(samples.scenes, samples.monitors, draw)),
        "evasion": frame("evasion", evasion_rows(samples, draw)),
        **{name: frame(name, rows) for name, rows in method_rows(samples, draw).items()},
    }
    warnings = vector_warnings(samples.vectors)
    return {name: ordered(name, _warned(table, warnings)) for name, table in tables.items()}


def _warned(table: pd.DataFrame, warnings: Mapping[str, str]) -> pd.DataFrame:
    return table.assign(warning=[warnings.get(str(trait), "") for trait in table["trait"]])
