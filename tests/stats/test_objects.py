"""Attention on objects by size and class, from lines by hand."""

import math

import pandas as pd
import pytest

from nlprobe.stats.objects import size_of, summarise_objects
from nlprobe.tables import object_table


def lines(*rows: tuple) -> pd.DataFrame:
    names = ["image", "view", "object", "class", "size", "area", "mass", "within"]
    return pd.DataFrame(rows, columns=names).assign(site="layer3.0")


LINES = lines(
    ("a", 0, 0, "cat", "small", 0.01, 0.03, math.nan),
    ("a", 0, 1, "dog", "large", 0.30, 0.60, 0.90),
    ("b", 0, 0, "cat", "small", 0.02, 0.02, 0.04),
    ("b", 0, 1, "cat", "large", 0.40, 0.20, 0.40),
    ("b", 0, 2, "cat", "large", 0.0, 0.0, math.nan),
)


def test_sizes_are_those_of_coco_in_original_pixels() -> None:
    assert [size_of(area) for area in (0, 1023, 1024, 9215, 9216)] == ["small", "small", "medium", "medium", "large"]


def test_ratios_are_sums_over_the_objects_of_an_image_and_means_over_images() -> None:
    found = {(one.group, one.name): one for one in summarise_objects(LINES, "m", ["cat", "dog", "bird"])}
    assert set(found) == {("all", ""), ("size", "small"), ("size", "large"), ("class", "cat"), ("class", "dog")}
    everything = found["all", ""]
    assert everything.mass.mean == pytest.approx((0.63 / 0.31 + 0.22 / 0.42) / 2)
    assert everything.within.mean == pytest.approx((0.90 / 0.30 + 0.44 / 0.42) / 2)  # without what no query lies in
    assert (everything.mass.n, everything.objects) == (2, 4)
    assert everything.area == pytest.approx((0.31 + 0.42) / 2)
    small = found["size", "small"]
    assert small.mass.mean == pytest.approx((3 + 1) / 2)
    assert (small.within.mean, small.within.n) == (pytest.approx(2), 1)
    assert found["class", "dog"].mass.mean == pytest.approx(2)
    assert math.isnan(found["class", "dog"].mass.low)
    assert found["class", "dog"].as_dict()["mass"] == {"mean": pytest.approx(2), "low": None, "high": None, "n": 1}


def test_several_views_of_an_image_are_one_image() -> None:
    twice = pd.concat([LINES, LINES.assign(view=1, mass=LINES["mass"] * 3)])
    found = summarise_objects(twice, "m", [])[0]
    assert found.mass.n == 2
    assert found.mass.mean == pytest.approx(2 * (0.63 / 0.31 + 0.22 / 0.42) / 2)


def test_the_table_has_a_row_for_each_size_or_class() -> None:
    found = summarise_objects(LINES, "NL", ["cat", "dog"])
    text = object_table(found).render("table")
    assert [line.split()[0] for line in text.splitlines() if line.strip().startswith(("small", "large"))] == [
        "small",
        "large",
    ]
    assert "uniform over the picture" in text
    classes = object_table(found, by_class=True).render("csv")
    assert "class,cat" in classes
    assert "size,small" not in classes
