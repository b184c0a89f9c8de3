"""Records to summaries: what is averaged over what, and what is undefined."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlprobe.stats.intervals import Estimate, bootstrap_mean, paired_difference
from nlprobe.stats.records import KEY_COLUMNS, VALUE_COLUMNS, empty_record, to_frame
from nlprobe.stats.summary import SiteSummary, at_positions, heads_of, mean_over_draws, per_image, summarise


def record(image: str, quantity: str, avg_dist: float, **values: object) -> dict[str, object]:
    keys = {"image": image, "view": 0, "site": "layer3", "call": 0, "head": "0", "positions": "all"}
    sizes = {"n_queries": 4, "n_keys": 4, "dim": 3, "groups": 1, "zero_rows": 0}
    return empty_record() | keys | sizes | {"quantity": quantity, "avg_dist": avg_dist} | values


def test_a_frame_has_every_column_of_the_schema_in_its_order() -> None:
    frame = to_frame([record("a", "att", 0.1)])
    assert list(frame.columns) == [*KEY_COLUMNS, *VALUE_COLUMNS]
    assert frame["n_queries"].dtype == np.int64
    assert not frame["by_construction"].iloc[0]
    assert list(to_frame([]).columns) == [*KEY_COLUMNS, *VALUE_COLUMNS]


def test_views_calls_and_heads_are_averaged_within_an_image_before_images_are() -> None:
    frame = to_frame(
        [
            record("a", "att", 0.0),
            record("a", "att", 1.0, view=1),
            record("a", "att", 1.0, call=1),
            record("a", "att", 0.0, head="1"),
            record("a", "att", 9.0, head="avg"),
            record("b", "att", 0.1),
        ]
    )
    assert per_image(frame, "att").to_dict() == {"a": 0.5, "b": 0.1}
    assert summarise(frame, model="m").quantities["att"].mean == pytest.approx(0.3)


def test_a_row_of_several_sites_is_the_mean_over_sites_whatever_their_calls() -> None:
    frame = to_frame(
        [
            record("a", "att", 0.2),
            record("a", "att", 0.2, call=1),
            record("a", "att", 0.6, site="layer4"),
        ]
    )
    summary = summarise(frame, model="m")
    assert summary.site == "mean of 2 sites"
    assert summary.quantities["att"].mean == pytest.approx(0.4)


def test_a_head_and_the_head_averaged_map_are_summarised_by_themselves() -> None:
    frame = to_frame(
        [
            record("a", "att", 0.2, n_queries=4),
            record("a", "att", 0.4, head="1"),
            record("a", "att", 0.6, head="10"),
            record("a", "att", 0.1, head="avg", zero_rows=3),
            record("a", "input", 0.7, head="-"),
        ]
    )
    assert heads_of(frame) == ["0", "1", "10", "avg"]
    whole = summarise(frame, model="m")
    assert (whole.head, set(whole.quantities), whole.zero_rows) == ("", {"att", "input"}, 0)
    assert whole.quantities["att"].mean == pytest.approx(0.4)
    by_head = {head: summarise(frame, model="m", head=head) for head in heads_of(frame)}
    assert {head: one.quantities["att"].mean for head, one in by_head.items()} == pytest.approx(
        {"0": 0.2, "1": 0.4, "10": 0.6, "avg": 0.1}
    )
    assert set(by_head["avg"].quantities) == {"att"}
    assert by_head["avg"].zero_rows == 3


def test_a_single_head_is_no_head_of_its_own() -> None:
    assert heads_of(to_frame([record("a", "att", 0.2), record("a", "input", 0.2, head="-")])) == []


def test_a_map_beside_the_heads_is_a_row_of_its_own_and_part_of_no_mean() -> None:
    frame = to_frame(
        [
            record("a", "att", 0.2),
            record("a", "att", 0.6, head="pairwise"),
            record("a", "att", 0.0, head="unary", by_construction=True),
            record("a", "input", 0.7, head="-"),
        ]
    )
    assert heads_of(frame) == ["0", "pairwise", "unary"]
    assert summarise(frame, model="m").quantities["att"].mean == pytest.approx(0.2)
    assert list(per_image(frame, "att")) == pytest.approx([0.2])
    assert summarise(frame, model="m", head="pairwise").quantities["att"].mean == pytest.approx(0.6)
    assert summarise(frame, model="m", head="unary").quantities["att"].by_construction


def test_positions_that_nobody_asked_for_are_left_out() -> None:
    frame = to_frame(
        [
            record("a", "att", 0.1, n_queries=5, n_keys=5),
            record("a", "att", 0.3, positions="no_prefix", n_queries=4, n_keys=5),
            record("a", "att", 0.9, positions="rectangle", n_queries=2, n_keys=2),
            record("a", "att", 0.5, site="layer4", positions="valid", groups=9),
        ]
    )
    assert per_image(frame, "att").item() == pytest.approx(0.3)
    assert per_image(frame, "att", positions="no_prefix").item() == pytest.approx(0.4)
    assert per_image(frame, "att", positions="rectangle").item() == pytest.approx(0.9)
    whole = summarise(frame, model="m")
    assert (whole.n_queries, whole.groups, whole.positions) == ((4, 5), (1, 9), "valid")
    cut = summarise(frame, model="m", positions="no_prefix")
    assert (cut.n_queries, cut.n_keys, cut.positions) == ((4, 4), (4, 5), "no_prefix")
    alone = summarise(frame, model="m", positions="rectangle")
    assert (alone.site, alone.n_queries) == ("layer3", (2, 2))


def test_metrics_are_there_without_prefix_tokens_too() -> None:
    frame = to_frame(
        [record("a", "att", 0.1, jsd=0.5, entropy=0.9), record("a", "att", 0.3, positions="no_prefix", entropy=0.7)]
    )
    columns = summarise(frame, model="m", positions="no_prefix").columns
    assert (columns["jsd"].mean, columns["entropy"].mean) == (0.5, 0.7)


def test_where_nothing_is_over_the_chosen_positions_nothing_is_summarised() -> None:
    frame = to_frame([record("a", "att", 0.1)])
    assert at_positions(frame, "rectangle").empty
    assert summarise(frame, model="m", positions="rectangle").quantities == {}


def test_metrics_and_flat_are_summarised_where_they_have_values() -> None:
    frame = to_frame([record("a", "att", 0.1, flat=1 / 6, jsd=0.5), record("b", "att", 0.1, flat=1 / 6, jsd=0.7)])
    columns = summarise(frame, model="m").columns
    assert columns["flat"].mean == pytest.approx(1 / 6)
    assert columns["jsd"].mean == pytest.approx(0.6)
    assert "effective_rank" not in columns


def test_absent_undefined_and_fixed_values_are_told_apart() -> None:
    frame = to_frame(
        [
            record("a", "output", math.nan, zero_rows=4, update=0.0),
            record("b", "output", math.nan, zero_rows=4, update=0.0),
            record("a", "att", 0.0, by_construction=True, entropy=0.5, n_eff=2.0),
            record("b", "att", 0.0, by_construction=True, entropy=0.7, n_eff=2.0),
        ]
    )
    summary = summarise(frame, model="m")
    assert set(summary.quantities) == {"att", "output"}
    assert math.isnan(summary.quantities["output"].mean)
    assert summary.quantities["output"].n == 0
    assert summary.quantities["att"].by_construction
    assert "shared" not in summary.columns
    assert math.isnan(summary.columns["mean_map_error"].mean)
    assert summary.zero_rows == 8
    written = summary.as_dict()
    assert written["quantities"]["output"]["mean"] is None
    assert written["columns"]["entropy"]["mean"] == pytest.approx(0.6)


def test_an_image_on_which_a_value_is_undefined_is_left_out_and_counted() -> None:
    estimate = bootstrap_mean(np.array([0.2, math.nan, 0.4]))
    assert estimate.n == 2
    assert estimate.mean == pytest.approx(0.3)


def test_one_image_has_no_interval_and_none_has_no_mean() -> None:
    assert math.isnan(bootstrap_mean(np.array([0.2])).low)
    assert math.isnan(bootstrap_mean(np.array([])).mean)


@settings(deadline=None, max_examples=20, derandomize=True)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=30))
def test_an_interval_lies_within_the_values(values: list[float]) -> None:
    estimate = bootstrap_mean(np.array(values), resamples=200)
    assert min(values) - 1e-12 <= estimate.low <= estimate.high <= max(values) + 1e-12


def test_the_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        estimate = bootstrap_mean(generator.exponential(1.0, 60), seed=seed, resamples=300)
        covered += estimate.low <= 1.0 <= estimate.high
    assert 0.88 <= covered / 200 <= 0.99


def test_a_paired_difference_is_narrower_than_its_parts() -> None:
    generator = np.random.default_rng(0)
    shared = generator.normal(0, 1, 100)
    first, second = shared + 0.1, shared + generator.normal(0, 0.01, 100)
    difference = paired_difference(first, second)
    alone = bootstrap_mean(first)
    assert difference.mean == pytest.approx(0.1, abs=0.01)
    assert difference.high - difference.low < (alone.high - alone.low) / 20


def test_draws_of_a_null_model_give_their_mean_and_range() -> None:
    def draw(value: float) -> SiteSummary:
        estimate = Estimate(value, value - 1, value + 1, 7)
        return SiteSummary(
            "m", "init-block", "s", "non_local", {}, {"att": estimate}, {"entropy": estimate}, {"c": value}
        )

    merged = mean_over_draws([draw(0.1), draw(0.2), draw(0.6)])
    assert merged.quantities["att"].mean == pytest.approx(0.3)
    assert merged.quantities["att"].n == 7
    assert merged.quantities["att"].low == 0.1
    assert merged.quantities["att"].high == 0.6
    assert merged.energy["c"] == pytest.approx(0.3)


def test_the_same_records_in_any_order_of_rows_give_the_same_summary() -> None:
    rows = [record(str(index), "att", value) for index, value in enumerate(np.linspace(0, 1, 9))]
    first = summarise(to_frame(rows), model="m")
    frame = pd.concat([to_frame(rows[5:]), to_frame(rows[:5])])
    assert summarise(frame, model="m").quantities["att"].mean == pytest.approx(first.quantities["att"].mean)
