"""What every table looks like: its columns and the order of its rows, told beside what makes the rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pandas as pd

from persona_bench.analysis.grouping import Row
from persona_bench.analysis.tables.behaviours import BEHAVIOUR_SORT, BEHAVIOUR_TABLES
from persona_bench.analysis.tables.capability import CAPABILITY_SORT, CAPABILITY_TABLES
from persona_bench.analysis.tables.elicitation import ELICITATION_SORT, ELICITATION_TABLES
from persona_bench.analysis.tables.evasion import EVASION_SORT, EVASION_TABLES
from persona_bench.analysis.tables.finetuning import FINETUNING_SORT, FINETUNING_TABLES
from persona_bench.analysis.tables.flagging import FLAGGING_SORT, FLAGGING_TABLES
from persona_bench.analysis.tables.hard_cases import HARD_CASE_SORT, HARD_CASE_TABLES
from persona_bench.analysis.tables.judge import JUDGE_SORT, JUDGE_TABLES
from persona_bench.analysis.tables.limits import LIMIT_SORT, LIMIT_TABLES
from persona_bench.analysis.tables.method import METHOD_SORT, METHOD_TABLES
from persona_bench.analysis.tables.monitoring import MONITORING_SORT, MONITORING_TABLES
from persona_bench.analysis.tables.panel import PANEL_SORT, PANEL_TABLES
from persona_bench.analysis.tables.steering import STEERING_SORT, STEERING_TABLES
from persona_bench.analysis.tables.tradeoff import TRADEOFF_SORT, TRADEOFF_TABLES
from persona_bench.analysis.tables.vectors import VECTOR_SORT, VECTOR_TABLES

_MEASURED: Mapping[str, tuple[str, ...]] = {
    **JUDGE_TABLES,
    **HARD_CASE_TABLES,
    **PANEL_TABLES,
    **ELICITATION_TABLES,
    **STEERING_TABLES,
    **MONITORING_TABLES,
    **CAPABILITY_TABLES,
    **TRADEOFF_TABLES,
    **VECTOR_TABLES,
    **FINETUNING_TABLES,
    **FLAGGING_TABLES,
    **BEHAVIOUR_TABLES,
    **LIMIT_TABLES,
    **EVASION_TABLES,
    **METHOD_TABLES,
}
TABLE_COLUMNS: Mapping[str, tuple[str, ...]] = {
    name: columns if "warning" in columns else (*columns, "warning") for name, columns in _MEASURED.items()
}
"""The columns of each table, in the order of the CSV file; `warning` is the one its trait's vector carries."""

ROW_ORDER: Mapping[str, tuple[str, ...]] = {
    **JUDGE_SORT,
    **HARD_CASE_SORT,
    **PANEL_SORT,
    **ELICITATION_SORT,
    **STEERING_SORT,
    **MONITORING_SORT,
    **CAPABILITY_SORT,
    **TRADEOFF_SORT,
    **VECTOR_SORT,
    **FINETUNING_SORT,
    **FLAGGING_SORT,
    **BEHAVIOUR_SORT,
    **LIMIT_SORT,
    **EVASION_SORT,
    **METHOD_SORT,
}
"""Columns by which a table's rows are sorted; with the names of logs and vectors among them, they tell rows apart."""


def frame(name: str, rows: Iterable[Row]) -> pd.DataFrame:
    """Rows of a table as a frame with all its columns."""
    return pd.DataFrame(list(rows), columns=list(TABLE_COLUMNS[name]))


def ordered(name: str, table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table in their order."""
    return table.sort_values(list(ROW_ORDER[name]), kind="stable", ignore_index=True) if len(table) else table
