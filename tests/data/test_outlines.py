"""Outlines: packed runs as pycocotools writes them, and shapes as it draws them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as official

from nlprobe.data.outlines import filled, outline_fault, outline_size, packed, unpack_runs


def runs_of(mask: np.ndarray) -> list[int]:
    """Lengths of the runs of 0, 1, 0, … down the columns, one pixel at a time."""
    lengths, value = [0], 0
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            lengths.append(0)
            value = pixel
        lengths[-1] += 1
    return lengths


@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(1, 60), st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]))
def test_packed_runs_are_unpacked_as_pycocotools_packed_them(seed: int, height: int, width: int, share: float) -> None:
    mask = np.asfortranarray(np.random.default_rng(seed).random((height, width)) < share, dtype=np.uint8)
    text = official.encode(mask)["counts"].decode("ascii")
    assert unpack_runs(text).tolist() == runs_of(mask)
    outline = {"size": [height, width], "counts": text}
    assert outline_fault(outline) == ""
    assert outline_size(outline) == (height, width)
    np.testing.assert_array_equal(filled(outline, (height, width)), mask)
    plain = {"size": [height, width], "counts": runs_of(mask)}
    np.testing.assert_array_equal(filled(plain, (height, width)), mask)


@given(st.text(st.characters(codec="ascii"), max_size=30))
def test_any_text_is_told_from_packed_runs_before_pycocotools_sees_it(text: str) -> None:
    outline = {"size": [7, 9], "counts": text}
    if outline_fault(outline) == "":
        assert filled(outline, (7, 9)).sum() == unpack_runs(text)[1::2].sum()


def test_a_triangle_is_filled_and_a_corner_pair_beside_it_changes_nothing() -> None:
    triangle = [0, 0, 10, 0, 0, 10]
    drawn = filled([triangle], (12, 12))
    rows, columns = np.mgrid[:12, :12] + 0.5
    certain = np.abs(rows + columns - 10) > 1
    np.testing.assert_array_equal(drawn[certain], (rows + columns < 10)[certain])
    np.testing.assert_array_equal(filled([triangle, [3, 3, 9, 9]], (12, 12)), drawn)
    assert outline_fault([triangle, [3, 3, 9, 9]]) == ""


def test_polygons_of_one_object_are_joined() -> None:
    left, right = [0, 0, 4, 0, 4, 4, 0, 4], [6, 6, 9, 6, 9, 9, 6, 9]
    joined = filled([left, right], (10, 10))
    np.testing.assert_array_equal(joined, filled([left], (10, 10)) | filled([right], (10, 10)))
    assert int(official.area(packed([left, right], (10, 10)))) == joined.sum()


def test_a_polygon_beyond_the_picture_is_drawn_within_it() -> None:
    assert filled([[-5, -5, 30, -5, 30, 4, -5, 4]], (8, 6)).sum() == 4 * 6


@pytest.mark.parametrize(
    ("outline", "fault"),
    [
        ([], "is neither a list of polygons nor run lengths"),
        (7, "is neither a list of polygons nor run lengths"),
        ([[1, 2, 3, 4]], "has no polygon of three corners or more"),
        ([[0, 0, 5, 0, 5, 5], [1, 2, 3]], "has a polygon that is no list of corners"),
        ([[0, 0, 5, None, 5, 5]], "has a polygon with corners that are no numbers"),
        ([[0, 0, 5, 1e7, 5, 5]], "has a polygon with a corner that lies nowhere near the picture"),
        ({"size": [0, 5], "counts": []}, "has run lengths without a `size` of two positive numbers"),
        ({"size": [2, 5], "counts": [4, 5]}, "has run lengths of 9 pixels in all, in a picture of 5x2"),
        ({"size": [2, 5], "counts": [4, 6, 1.5]}, "has `counts` that are no run lengths"),
        ({"size": [2, 5], "counts": [14, -4]}, "has negative run lengths"),
        ({"size": [2, 5], "counts": "é"}, "has `counts` that are no run lengths"),
        ({"size": [2, 5], "counts": "o" * 40}, "has `counts` that are no run lengths"),
        ({"size": [2, 5], "counts": [2**70]}, "has `counts` that are no run lengths"),
    ],
)
def test_what_is_wrong_with_an_outline_is_said(outline: object, fault: str) -> None:
    assert outline_fault(outline) == fault
