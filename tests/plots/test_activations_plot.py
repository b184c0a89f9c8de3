"""The figure of activations by class."""

import math

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from nlprobe.plots import activation_data, draw_activations
from nlprobe.plots.activations import ALL, drawn_channels
from nlprobe.stats.class_summaries import ActivationSummary
from nlprobe.stats.intervals import Estimate

CLASSES = ["zero", "one", "two", "three"]


def summary(model: str = "gc", module: str = "layer3.0:after_1x1", channels: int = 120) -> ActivationSummary:
    means = np.random.default_rng(0).normal(-0.3, 0.05, size=(4, channels))
    means[1] = math.nan
    counts = np.array([5, 0, 6, 7])
    chosen = (0, 2)
    shares = np.linspace(0, 0.5, channels)
    return ActivationSummary(
        model,
        module,
        "transform",
        means,
        counts,
        means[counts > 0].mean(0),
        chosen,
        means[list(chosen)] - 0.1,
        means[list(chosen)] + 0.2,
        shares,
        Estimate(0.25, 0.2, 0.3, 18),
        Estimate(0.5, 0.4, 0.6, 18),
        18,
    )


def test_channels_are_spread_evenly() -> None:
    assert drawn_channels(120, 4).tolist() == [0, 30, 60, 90]
    assert drawn_channels(3).tolist() == [0, 1, 2]


def test_a_line_for_each_chosen_class_with_its_band_and_one_for_all() -> None:
    one = summary()
    axes = draw_activations([one], CLASSES, 10).axes[0]
    assert [line.get_label() for line in axes.lines] == ["zero", "two", ALL]
    drawn = drawn_channels(120, 10)
    for line, expected in zip(axes.lines, (one.means[0], one.means[2], one.overall), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), drawn)
        np.testing.assert_array_equal(line.get_ydata(), expected[drawn])
    corners = axes.collections[0].get_paths()[0].vertices
    at_first = corners[corners[:, 0] == 0][:, 1]
    assert (at_first.min(), at_first.max()) == pytest.approx((one.means[0][0] - 0.1, one.means[0][0] + 0.2))
    assert [text.get_text() for text in axes.texts] == ["spread 0.500 [.400, .600]\nshare 0.250 [.200, .300]"]


def test_panels_are_named_by_module_and_by_network_where_there_are_several() -> None:
    figure = draw_activations([summary(), summary(module="layer4.0:after_1x1")], CLASSES)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["layer3.0:after_1x1", "layer4.0:after_1x1"]
    figure = draw_activations([summary(), summary("se")], CLASSES)
    assert figure.axes[1].get_title(loc="left") == "se  ·  layer3.0:after_1x1"


def test_the_data_hold_every_channel_and_say_which_are_drawn() -> None:
    frame = activation_data([summary()], CLASSES, 10)
    assert len(frame) == 3 * 120
    assert set(frame["class"]) == {"zero", "two", ALL}
    assert frame.loc[frame["drawn"], "channel"].unique().tolist() == drawn_channels(120, 10).tolist()
    zero = frame[frame["class"] == "zero"]
    np.testing.assert_allclose(zero["high"] - zero["low"], 0.3)
    assert set(zero["n"]) == {5}
    assert frame[frame["class"] == ALL]["low"].isna().all()


@pytest.mark.parametrize("panels", [1, 2, 3, 6, 7])
def test_texts_stay_inside_and_apart(panels: int) -> None:
    figure = draw_activations([summary(module=f"layer3.{at}:after_1x1") for at in range(panels)], CLASSES)
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [axes.get_tightbbox(renderer) for axes in figure.axes if axes.get_visible()]
    boxes += [legend.get_window_extent(renderer) for legend in figure.legends]
    for at, box in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0
        assert box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[at + 1 :])


def test_nothing_to_draw_is_an_error() -> None:
    with pytest.raises(ValueError, match="no summary to draw"):
        draw_activations([], CLASSES)
