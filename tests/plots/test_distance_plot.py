"""The figure of distances."""

import math

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nlprobe.plots import distance_data, draw_distances, style
from nlprobe.stats.intervals import Estimate
from nlprobe.stats.records import QUANTITIES
from nlprobe.stats.summary import SiteSummary

NAN = math.nan


def summary(kind: str = "trained", model: str = "net", **quantities: Estimate) -> SiteSummary:
    default = {name: Estimate(0.1 * (i + 1), 0.09 * (i + 1), 0.12 * (i + 1), 9) for i, name in enumerate(QUANTITIES)}
    return SiteSummary(model, kind, "layer3.4:after_add", "non_local", {}, {**default, **quantities}, {})


def written(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_the_six_distances_of_each_kind_stand_side_by_side() -> None:
    figure = draw_distances([summary(), summary("init-all")])
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == list(QUANTITIES)
    trained, initial = axes.containers
    assert list(trained.lines[0].get_ydata()) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert all(a < b for a, b in zip(trained.lines[0].get_xdata(), initial.lines[0].get_xdata(), strict=True))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["trained", "at initialisation"]


def test_the_intervals_reach_from_low_to_high() -> None:
    (axes,) = draw_distances([summary()]).axes
    segments = axes.collections[0].get_segments()
    assert segments[0][:, 1].tolist() == pytest.approx([0.09, 0.12])


def test_the_axis_is_linear_until_small_distances_would_vanish() -> None:
    assert draw_distances([summary()]).axes[0].get_yscale() == "linear"
    small = summary(att=Estimate(1e-4, 9e-5, 1.1e-4, 9))
    assert draw_distances([small]).axes[0].get_yscale() == "log"


def test_what_has_no_place_on_the_axis_is_written() -> None:
    fixed = Estimate(0.0, NAN, NAN, 9, by_construction=True)
    figure = draw_distances([summary(att=fixed, output=Estimate(NAN, NAN, NAN, 0))])
    assert sorted(written(figure)) == ["0 by constr.", "undef."]
    zero = draw_distances([summary(att=Estimate(0.0, 0.0, 0.0, 9), prod=Estimate(1e-5, NAN, NAN, 1))])
    assert written(zero) == ["0"]


def test_every_network_has_a_panel_on_the_same_axis() -> None:
    figure = draw_distances([summary(), summary(model="other", input=Estimate(0.9, NAN, NAN, 1))])
    first, second = figure.axes
    assert first.get_ylim() == second.get_ylim()
    assert second.get_title(loc="left") == "other  ·  layer3.4:after_add"
    assert not figure.legends


def test_the_labels_stay_inside_the_figure() -> None:
    figure = draw_distances([summary(att=Estimate(1e-9, NAN, NAN, 1)), summary("init-block")])
    with style():
        FigureCanvasAgg(figure).draw()
    width, height = figure.get_size_inches() * figure.dpi
    axes = figure.axes[0]
    boxes = [axes.yaxis.label.get_window_extent(), *(label.get_window_extent() for label in axes.get_xticklabels())]
    boxes += [text.get_window_extent() for text in figure.legends[0].get_texts()]
    for box in boxes:
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height


def test_networks_without_any_distance_can_be_drawn() -> None:
    empty = SiteSummary("gc", "trained", "s", "context", {}, {}, {})
    assert len(draw_distances([empty]).axes) == 1


def test_the_data_are_what_is_drawn() -> None:
    frame = distance_data([summary()])
    assert frame["quantity"].tolist() == list(QUANTITIES)
    assert frame.loc[1, "high"] == pytest.approx(0.24)


def test_nothing_to_draw_is_an_error() -> None:
    with pytest.raises(ValueError, match="no summary to draw"):
        draw_distances([])
