"""The record: one line of results, from which every table, interval and figure is drawn."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

SCHEMA_VERSION = 1

QUANTITIES = ("input", "key", "query", "prod", "att", "output")
"""The paper's six, in the order of its Table 3."""

KEY_COLUMNS = ("image", "view", "site", "call", "head", "quantity", "positions")
"""What identifies a record."""

METRIC_COLUMNS = ("attention_distance", "prefix_mass", "sink_mass", "jsd", "effective_rank")
"""Further numbers of an attention map, each measured only when it is asked for."""

SPACE_TIME = "space_time"
"""The name by which what clips have beyond pictures is asked for: the columns below."""

SPACE_TIME_COLUMNS = ("avg_dist_same_frame", "avg_dist_other_frames", "avg_dist_same_place")
"""The distance of every quantity, split by what two positions of a clip have in common."""

FRAME_COLUMNS = ("frame_mass", "flat_frame_mass")
"""How much attention stays in the query's frame, and what a flat map keeps there."""

ASKED_METRICS = (*METRIC_COLUMNS, SPACE_TIME)
"""The names of all that is measured only when it is asked for."""

VALUE_COLUMNS = (
    "n_queries",
    "n_keys",
    "dim",
    "groups",
    "zero_rows",
    "avg_dist",
    "centred_dist",
    "entropy",
    "n_eff",
    "shared",
    "logit_std",
    "pairwise",
    "unary",
    "update",
    "mean_map_error",
    "flat",
    "padding_mass",
    *METRIC_COLUMNS,
    *SPACE_TIME_COLUMNS,
    *FRAME_COLUMNS,
    "agreement",
    "agreement_shuffled",
    "by_construction",
)
"""What a record holds; a column that does not apply is empty."""

POSITIONS = ("all", "valid", "no_prefix", "rectangle")
"""Which rows a record is over: all; those that are no padding; all but the prefix tokens; a chosen rectangle."""

BASE_POSITIONS = ("all", "valid")
"""The rows over which a site is measured unless something else is asked for: where there is padding, both, or only the
valid ones where the model itself leaves the others out."""

AVERAGED_HEAD = "avg"
"""The `head` of records of the head-averaged map."""

COMPOSED_HEAD = "composed"
"""The `head` of records of the map that several steps make together, and of the output of all steps."""

PAIRWISE_HEAD, UNARY_HEAD = "pairwise", "unary"
"""The `head` of records of the two maps whose sum a block uses: one for every query, and one for all of them."""


def stands_alone(head: str) -> bool:
    """Whether a record's `head` names a row of its own, which is none of the heads and not averaged with them."""
    return head != "-" and not head.isdigit()


INTEGER_COLUMNS = ("view", "call", "n_queries", "n_keys", "dim", "groups", "zero_rows")

ACCOMPANYING = {
    "input": ("centred_dist",),
    "key": ("centred_dist",),
    "query": ("centred_dist",),
    "prod": ("logit_std", "pairwise", "unary"),
    "att": ("entropy", "n_eff", "shared", "flat", "padding_mass", *METRIC_COLUMNS, *FRAME_COLUMNS),
    "output": ("centred_dist", "update", "mean_map_error"),
}
"""The columns that stand beside `avg_dist`, and beside its split, in the records of each quantity."""


def summary_name(quantity: str, column: str) -> str:
    """What a summary calls a column of a quantity's records: `centred_input`, `att_same_frame`, `entropy`."""
    if column == "centred_dist":
        return f"centred_{quantity}"
    return f"{quantity}_{column.removeprefix('avg_dist_')}" if column in SPACE_TIME_COLUMNS else column


def to_frame(records: Sequence[dict[str, object]]) -> pd.DataFrame:
    """The records as a tidy table with every column of the schema, in its order.

    Args:
        records: One mapping from column name to value for each record.

    Returns:
        A table with the columns `KEY_COLUMNS` and `VALUE_COLUMNS`; values that do not apply are NaN, counts are
        integers.
    """
    return _typed(pd.DataFrame(list(records), columns=[*KEY_COLUMNS, *VALUE_COLUMNS]))


def typed(columns: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """The same from whole columns.

    Args:
        columns: Every column of the schema, by name; the value columns as float64, with NaN where they do not apply.
    """
    return _typed(pd.DataFrame({name: columns[name] for name in (*KEY_COLUMNS, *VALUE_COLUMNS)}))


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    for column in KEY_COLUMNS:
        frame[column] = frame[column].astype("int64" if column in INTEGER_COLUMNS else "str")
    for column in INTEGER_COLUMNS:
        frame[column] = frame[column].astype("int64")
    frame["by_construction"] = frame["by_construction"].eq(True)
    for column in VALUE_COLUMNS:
        if column not in INTEGER_COLUMNS and column != "by_construction":
            frame[column] = frame[column].astype("float64")
    return frame


def empty_record() -> dict[str, object]:
    """A record whose values are all absent."""
    record: dict[str, object] = dict.fromkeys(VALUE_COLUMNS, math.nan)
    return record | {"by_construction": False}
