"""The printed cells."""

from decimal import Decimal

import pytest

from nlprobe.models.zoo.paper import order_in_paper, paper_row


def test_cells_are_texts_as_printed() -> None:
    assert paper_row("8a", "ImageNet", "+1 SNL").cells == {
        "top1": "77.10",
        "top5": "93.56",
        "params": "26.61",
        "flops": "3.86",
    }
    assert paper_row("1", "ImageNet", "Concat").cells["att"] == "0.090"


def test_what_the_paper_leaves_blank_is_absent() -> None:
    assert set(paper_row("1", "ImageNet", "baseline").cells) == {"top1", "top5"}
    assert "key" not in paper_row("3", "ImageNet", "Gaussian").cells


def test_tables_that_repeat_a_number_agree() -> None:
    table_1, table_2, table_3 = (
        paper_row(table, "ImageNet", row).cells
        for table, row in (("1", "E-Gaussian"), ("2", "c4"), ("3", "E-Gaussian"))
    )
    for quantity in ("input", "att", "output"):
        assert table_1[quantity] == table_2[quantity] == table_3[quantity]
    assert paper_row("8a", "ImageNet", "baseline").cells == paper_row("8b", "ImageNet", "baseline").cells
    assert paper_row("8a", "ImageNet", "+all GC").cells == paper_row("8b", "ImageNet", "att+add").cells


def test_distances_lie_between_0_and_1() -> None:
    for table, row in (("1", "Gaussian"), ("2", "c3"), ("3", "E-Gaussian")):
        cells = paper_row(table, "ImageNet", row).cells
        assert all(0 <= Decimal(text) <= 1 for name, text in cells.items() if not name.startswith("top"))


def test_rows_are_ordered_as_in_the_paper() -> None:
    first, second = paper_row("1", "ImageNet", "Concat"), paper_row("8a", "ImageNet", "baseline")
    assert order_in_paper(first) < order_in_paper(second)


def test_an_unknown_row_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        paper_row("8a", "ImageNet", "+2 NL")
