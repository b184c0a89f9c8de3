"""The figure of a training's distances."""

import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from nlprobe.emergence import COLUMNS
from nlprobe.plots import draw_emergence, emergence_data
from nlprobe.plots.emergence import BESIDE, SHARE_OF_KEYS, UNDEFINED, ZERO

STEPS = (0, 25, 50)
DISTANCES = {
    "input": (0.2, 0.4, 0.4),
    "key": (0.1, 0.3, 0.4),
    "query": (0.2, 0.3, 0.3),
    "prod": (0.05, 0.4, 0.4),
    "att": (1e-4, 0.01, 0.1),
    "output": (math.nan, 1e-6, 0.05),
}
OTHERS = {
    ("att", "entropy"): (1.0, 0.9, 0.6),
    ("att", "n_eff"): (64.0, 60.0, 16.0),
    ("att", "shared"): (0.7, 0.1, 0.3),
    ("output", "mean_map_error"): (math.nan, 0.1, 0.7),
    ("output", "update"): (0.0, 0.1, 0.7),
}


def table(sites=("layer3.0:after_add",), **changed: tuple[float, float, float]) -> pd.DataFrame:
    numbers = {(name, "avg_dist"): values for name, values in (DISTANCES | changed).items()} | OTHERS
    lines = [
        (
            step,
            step / 25,
            8 * step,
            site,
            *names,
            value,
            value * 0.9,
            value * 1.1,
            0 if math.isnan(value) else 6,
            64,
            False,
        )
        for site in sites
        for names, values in numbers.items()
        for step, value in zip(STEPS, values, strict=True)
    ]
    return pd.DataFrame(lines, columns=list(COLUMNS))


def lines_of(axes) -> list[np.ndarray]:
    return [np.asarray(line.get_ydata()) for line in axes.lines if line.get_gid() is None]


def marks(axes, mark: str) -> list[list[float]]:
    return [list(line.get_xdata()) for line in axes.lines if line.get_gid() == mark]


def test_distances_stand_above_and_what_tells_them_apart_below() -> None:
    figure = draw_emergence(emergence_data({"nl": table()}))
    upper, lower = figure.axes
    np.testing.assert_array_equal(lines_of(upper), list(DISTANCES.values()))
    expected = [OTHERS["att", "entropy"], np.array(OTHERS["att", "n_eff"]) / 64, OTHERS["att", "shared"]]
    np.testing.assert_array_equal(lines_of(lower), [*expected, OTHERS["output", "mean_map_error"]])
    assert upper.get_yscale() == "log"
    assert (lower.get_ylim()[0], lower.get_yscale()) == (0, "linear")
    assert lower.get_xlabel() == "iteration"


def test_what_is_undefined_is_a_cross_at_the_foot_and_no_point() -> None:
    figure = draw_emergence(emergence_data({"nl": table()}))
    for axes in figure.axes:
        assert marks(axes, UNDEFINED) == [[0]]
        assert marks(axes, ZERO) == []
    assert "undefined" in [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_a_zero_is_a_triangle_on_a_logarithmic_axis_and_a_point_on_a_linear_one() -> None:
    upper = draw_emergence(emergence_data({"nl": table(att=(0.0, 0.01, 0.1))})).axes[0]
    assert marks(upper, ZERO) == [[0]]
    assert np.isnan(lines_of(upper)[4][0])
    near = dict.fromkeys(DISTANCES, (0.1, 0.2, 0.3))
    upper = draw_emergence(emergence_data({"nl": table(**near | {"att": (0.0, 0.2, 0.3)})})).axes[0]
    assert upper.get_yscale() == "linear"
    assert marks(upper, ZERO) == []
    assert lines_of(upper)[4][0] == 0


def test_bands_are_the_intervals() -> None:
    upper = draw_emergence(emergence_data({"nl": table()})).axes[0]
    corners = upper.collections[0].get_paths()[0].vertices
    for step, value in zip(STEPS, DISTANCES["input"], strict=True):
        own = corners[corners[:, 0] == step][:, 1]
        assert own.min() == pytest.approx(0.9 * value)
        assert own.max() == pytest.approx(1.1 * value)


def test_several_runs_and_sites_stand_side_by_side_on_one_scale() -> None:
    sites = ("layer2.0:after_add", "layer3.0:after_add")
    figure = draw_emergence(emergence_data({"a": table(sites), "b": table(sites, att=(1e-8, 0.1, 0.1))}))
    titles = [axes.get_title(loc="left") for axes in figure.axes[:4]]
    assert titles == [f"{run}\n{site}" for run in "ab" for site in sites]
    assert len({axes.get_ylim() for axes in figure.axes[:4]}) == 1
    assert figure.axes[0].get_ylim()[0] < 1e-8


def test_overlaid_runs_are_lines_in_a_panel_for_each_number() -> None:
    figure = draw_emergence(emergence_data({"a": table(), "b": table(att=(1e-4, 0.2, 0.3))}), overlay=True)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert len(shown) == len(DISTANCES) + len(BESIDE)
    att = shown[4]
    assert att.get_title(loc="left") == "att"
    np.testing.assert_array_equal(lines_of(att), [DISTANCES["att"], (1e-4, 0.2, 0.3)])
    assert len({line.get_color() for line in att.lines}) == 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "undefined"]


def test_what_is_zero_by_construction_is_said_and_not_drawn() -> None:
    frame = table(att=(0.0, 0.0, 0.0))
    frame.loc[(frame["quantity"] == "att") & (frame["measure"] == "avg_dist"), "by_construction"] = True
    upper = draw_emergence(emergence_data({"gc": frame})).axes[0]
    assert [text.get_text() for text in upper.texts] == ["att: 0 by construction"]
    assert len(lines_of(upper)) == 5


@pytest.mark.parametrize("overlay", [False, True])
@pytest.mark.parametrize("runs", [1, 2, 3, 6])
def test_texts_do_not_overlap_and_stay_inside(runs: int, overlay: bool) -> None:
    data = emergence_data({f"run{number}": table() for number in range(runs)})
    figure = draw_emergence(data, overlay=overlay)
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [axes.get_tightbbox(renderer) for axes in figure.axes if axes.get_visible()]
    boxes += [legend.get_window_extent(renderer) for legend in figure.legends]
    for box in boxes:
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0
        assert box.y1 <= figure.bbox.y1
    for i, first in enumerate(boxes):
        assert not any(first.overlaps(second) for second in boxes[i + 1 :])


def test_the_data_hold_what_is_drawn_and_no_more() -> None:
    data = emergence_data({"nl": table()})
    assert list(data.columns) == ["run", *(name for name in COLUMNS if name != "n_keys")]
    assert set(data["measure"]) == {"avg_dist", *BESIDE}
    share = data[data["measure"] == SHARE_OF_KEYS]
    assert share["mean"].tolist() == [1, 60 / 64, 0.25]
    assert share["low"].tolist() == pytest.approx([0.9, 54 / 64, 0.225])


def test_nothing_to_draw_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        draw_emergence(emergence_data({"nl": table().iloc[:0]}))
