"""The table of distances."""

import csv
import dataclasses
import io
import math

import pytest

from nlprobe.stats.intervals import Estimate
from nlprobe.stats.records import QUANTITIES
from nlprobe.stats.summary import SiteSummary
from nlprobe.tables import PaperRow, distance_table

NAN = math.nan


def summary(
    model: str = "net",
    kind: str = "trained",
    site: str = "layer3.4:after_add",
    *,
    energy: bool = False,
    **quantities: Estimate,
) -> SiteSummary:
    """A summary whose distances are 0.1, 0.2, … unless given."""
    default = {name: Estimate(0.1 * (i + 1), 0.1 * i, 0.1 * (i + 2), 50) for i, name in enumerate(QUANTITIES)}
    return SiteSummary(
        model=model,
        kind=kind,
        site=site,
        block="non_local",
        settings={},
        quantities={**default, **quantities},
        columns={"entropy": Estimate(0.9, 0.8, 0.95, 50), "n_eff": Estimate(101.23, 99.0, 103.0, 50)},
        energy={"constant": 0.2, "context": 0.7, "pairwise_part": 0.1} if energy else {},
        n_queries=(196, 196),
        n_keys=(49, 49),
    )


def lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_the_columns_are_the_papers_then_what_goes_beside() -> None:
    header = next(line for line in lines(distance_table([summary()]).render()) if "input" in line)
    assert header == [*QUANTITIES, "entropy", "n_eff", "images"]


def test_the_data_hold_every_column_in_a_fixed_order() -> None:
    (header, *_) = csv.reader(io.StringIO(distance_table([summary()]).render("csv")))
    plain = [name for name in header if not name.endswith(("_low", "_high", "_n"))]
    assert plain == [
        "model", "kind", "site", "head", *QUANTITIES,
        "entropy", "n_eff", "shared", "flat", "padding_mass", "logit_std", "pairwise", "unary",
        "attention_distance", "prefix_mass", "sink_mass", "jsd", "effective_rank",
        "frame_mass", "flat_frame_mass", "update", "mean_map_error", "n",
    ]  # fmt: skip


def test_null_models_and_the_papers_cells_stand_below_their_network() -> None:
    paper = {"a": PaperRow("Table 3", {"input": "0.301", "att": "0.115"})}
    kinds = ("trained", "init-block", "init-all")
    table = distance_table([*(summary("a", kind) for kind in kinds), summary("b")], paper, draws=3)
    labels = [(row.cells[0].value, row.child) for row in table.rows]
    assert labels == [
        ("a", False),
        ("init-block (3 draws)", True),
        ("at initialisation", True),
        ("paper, Table 3", True),
        ("b", False),
    ]
    text = table.render()
    assert ["paper,", "Table", "3", "0.301", "-", "-", "-", "0.115", "-", "-", "-", "-"] in lines(text)
    assert "its intervals are the range over the draws" in text
    assert "the whole network before training" in text


def test_undefined_is_never_printed_as_zero() -> None:
    table = distance_table([summary(output=Estimate(NAN, NAN, NAN, 0))])
    assert ["net", "0.100", "0.200", "0.300", "0.400", "0.500", "undef.", "0.900", "101.2", "50"] in lines(
        table.render()
    )
    assert "no row has a direction" in table.render()
    assert "0.000" not in table.render()
    assert table.records()[0]["output"] is None


def test_what_the_formula_fixes_is_marked() -> None:
    fixed = Estimate(0.0, NAN, NAN, 50, by_construction=True)
    table = distance_table([summary(att=fixed, output=fixed)])
    for format in ("table", "tex", "md"):
        assert table.render(format).count("0 (by construction)") == 2
    record = table.records()[0]
    assert (record["att"], record["att_note"]) == (0.0, "0 (by construction)")


def test_a_quantity_that_the_block_does_not_have_is_a_dash() -> None:
    bare = SiteSummary("gc", "trained", "s", "context", {}, {"input": Estimate(0.3, 0.2, 0.4, 9)}, {})
    table = distance_table([summary(), bare])
    assert ["gc", "s", "0.300", "-", "-", "-", "-", "-", "-", "-", "9"] in lines(table.render())
    assert "key" not in table.records()[1]


def test_several_sites_are_named_and_one_goes_into_the_notes() -> None:
    one = distance_table([summary()]).render()
    assert "Site: layer3.4:after_add." in one
    two = distance_table([summary(), summary(site="layer4.0:after_add")])
    assert [row.cells[0].value for row in two.rows] == ["layer3.4:after_add", "layer4.0:after_add"]
    assert "Network: net." in two.render()
    assert "Site:" not in two.render()
    several = distance_table([summary("a"), summary("a", site="s"), summary("b")])
    assert [row.cells[0].value for row in several.rows] == ["a, layer3.4:after_add", "a, s", "b, layer3.4:after_add"]


def test_every_panel_of_a_broken_table_names_the_sites() -> None:
    table = distance_table([summary(), summary(site="layer4.0:after_add")])
    panels = table.render("table", width=60).split("\n\n")[1:]
    assert len([panel for panel in panels if "layer4.0:after_add" in panel]) > 1


def test_null_models_stand_below_their_own_site() -> None:
    kinds = ("trained", "init-all")
    table = distance_table([summary(kind=kind, site=site) for kind in kinds for site in ("s", "t")])
    assert [row.cells[0].value for row in table.rows] == ["s", "at initialisation", "t", "at initialisation"]
    assert [row.cells[3].value for row in table.rows] == ["s", "s", "t", "t"]


def test_the_energy_shares_are_there_when_they_were_measured() -> None:
    assert "output energy" in distance_table([summary(energy=True)]).render()
    assert "output energy" not in distance_table([summary()]).render()


def test_centred_distances_are_there_when_they_were_measured() -> None:
    one = summary()
    centred = dataclasses.replace(one, columns={**one.columns, "centred_output": Estimate(0.45, 0.4, 0.5, 50)})
    text = distance_table([centred]).render()
    assert "distance, data-set mean removed" not in distance_table([one]).render()
    assert "data-set mean" in text
    assert "0.450" in text


def test_the_number_of_positions_is_stated() -> None:
    assert "196 queries and 49 keys per image." in distance_table([summary()]).render()


@pytest.mark.parametrize("n", [1, 50])
def test_an_interval_is_printed_only_where_there_is_one(n: int) -> None:
    quantities = {name: Estimate(0.3, NAN, NAN, 1) if n == 1 else Estimate(0.3, 0.2, 0.4, n) for name in QUANTITIES}
    one = SiteSummary("net", "trained", "s", "non_local", {}, quantities, {})
    assert (".200–.400" in distance_table([one]).render()) == (n > 1)
    assert ("bootstrap" in distance_table([one]).render()) == (n > 1)


def test_single_heads_stand_below_their_site_and_are_named() -> None:
    heads = [dataclasses.replace(summary(), head=head) for head in ("0", "1", "avg")]
    initial = dataclasses.replace(summary(kind="init-all"), head="1")
    table = distance_table([summary(), *heads, initial])
    assert [(row.cells[0].value, row.child) for row in table.rows] == [
        ("net", False),
        ("head 0", True),
        ("head 1", True),
        ("head-averaged map", True),
        ("at initialisation, head 1", True),
    ]
    assert [record.get("head") for record in table.records()] == [None, "0", "1", "avg", "1"]


def test_maps_beside_the_heads_are_named_in_words() -> None:
    maps = [dataclasses.replace(summary(), head=head) for head in ("pairwise", "unary", "composed")]
    labels = [row.cells[0].value for row in distance_table([summary(), *maps]).rows]
    assert labels == ["net", "pairwise map", "unary map", "all steps composed"]


def test_windows_and_chosen_positions_are_told() -> None:
    windowed = dataclasses.replace(summary(), groups=(1, 64), positions="no_prefix")
    text = distance_table([windowed], notes=["net: random weights (seed 0)."]).render()
    assert "196 queries and 49 keys in each of the 1–64 windows of an image." in text
    assert "Prefix tokens are left out." in text
    assert text.rstrip().endswith("net: random weights (seed 0).")
    assert "Prefix" not in distance_table([summary()]).render()


def test_metrics_have_columns_where_they_were_measured() -> None:
    one = summary()
    metrics = {"flat": Estimate(1 / 6, NAN, NAN, 1), "jsd": Estimate(0.321, NAN, NAN, 1)}
    header = next(
        line
        for line in lines(distance_table([dataclasses.replace(one, columns=one.columns | metrics)]).render())
        if "input" in line
    )
    assert header == [*QUANTITIES, "entropy", "n_eff", "flat", "JSD", "images"]


def test_no_summaries_make_an_empty_table() -> None:
    assert distance_table([]).rows == ()


def test_a_block_without_keys_is_said_to_have_no_map() -> None:
    words = "Where there are no keys, the block has no attention map."
    assert words not in distance_table([summary()]).notes
    gate = dataclasses.replace(summary(), n_keys=(0, 0), quantities={"input": Estimate(0.1, 0.1, 0.1, 50)}, columns={})
    assert words in distance_table([summary(), gate]).notes
