"""The figure of class selectivity."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from scipy.stats import gaussian_kde

from nlprobe.plots import draw_selectivity, save_figure, selectivity_data
from nlprobe.stats import class_selectivity
from nlprobe.stats.class_summaries import SelectivitySummary
from nlprobe.stats.intervals import Estimate

NAN = math.nan


def summary(model: str = "baseline", module: str = "layer3.0", channels: int = 30, seed: int = 0) -> SelectivitySummary:
    means = np.random.default_rng(seed).uniform(0, 1, (4, channels))
    means[:, 0] = 0
    means[0, 1] = -1
    found = class_selectivity(means)
    mean = float(np.nanmean(found.index))
    interval = Estimate(mean, mean - 0.01, mean + 0.02, 80)
    return SelectivitySummary(model, module, found, interval, (0.1, 0.2, 0.3), Estimate(0.05, 0.04, 0.06, 80), 80)


def texts(figure: Figure, panel: int = 0) -> list[str]:
    return [text.get_text() for text in figure.axes[panel].texts]


def test_a_line_is_the_kernel_density_of_the_channels_that_have_an_index() -> None:
    one = summary()
    axes = draw_selectivity([one]).axes[0]
    x, density = axes.lines[0].get_data()
    index = one.channels.index[2:]
    np.testing.assert_allclose(density, gaussian_kde(index)(x), rtol=1e-6)
    assert 0 <= x.min() < x.max() <= 1
    assert list(axes.lines[1].get_xdata()) == [one.mean.mean] * 2


def test_the_mean_is_written_with_its_interval_and_what_is_left_out_is_counted() -> None:
    one = summary()
    mean = one.mean.mean
    ends = [f"{mean - 0.01:.3f}"[1:], f"{mean + 0.02:.3f}"[1:]]
    assert texts(draw_selectivity([one])) == [f"mean {mean:.3f} [{ends[0]}, {ends[1]}]; 2 channels left out"]


def test_networks_share_the_panel_of_a_module_and_all_panels_their_axes() -> None:
    shown = [summary(model, module, seed=at) for at, model in enumerate("ab") for module in ("layer3.0", "layer3.1")]
    figure = draw_selectivity(shown)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["layer3.0", "layer3.1"]
    assert [len(axes.lines) for axes in figure.axes] == [4, 4]
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    colours = {to_hex(line.get_color()) for line in figure.axes[0].lines}
    assert len(colours) == 2


def test_networks_of_a_group_have_one_colour_and_the_range_of_their_means() -> None:
    shown = [summary(f"run {seed}", seed=seed) for seed in range(3)]
    figure = draw_selectivity(shown, {f"run {seed}": "baseline" for seed in range(3)})
    axes = figure.axes[0]
    assert len({to_hex(line.get_color()) for line in axes.lines}) == 1
    means = [one.mean.mean for one in shown]
    (text,) = texts(figure)
    low, high = (f"{end:.3f}"[1:] for end in (min(means), max(means)))
    assert text == f"mean {np.mean(means):.3f}, {low} to {high} over 3; 6 channels left out"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["baseline"]


def test_a_module_without_spread_or_without_channels_is_drawn_without_a_density() -> None:
    same = class_selectivity(np.array([[1.0, 1.0], [0.5, 0.5]]))
    dead = class_selectivity(np.zeros((2, 3)))
    nothing = Estimate(NAN, NAN, NAN, 9)
    figure = draw_selectivity(
        [
            SelectivitySummary("a", "m", same, Estimate(0.3, NAN, NAN, 9), (0.3, 0.3, 0.3), nothing, 9),
            SelectivitySummary("b", "m", dead, nothing, (NAN, NAN, NAN), nothing, 9),
        ]
    )
    assert len(figure.axes[0].lines) == 1
    assert texts(figure) == ["mean 0.300", "mean undef.; 3 channels left out"]


@pytest.mark.parametrize("modules", [1, 2, 3, 6, 7])
@pytest.mark.parametrize("models", ["a", ("miniature-imagenet/resnet", "miniature-imagenet/resnet-gc-all")])
def test_texts_stay_inside_and_apart(modules: int, models: Sequence[str]) -> None:
    figure = draw_selectivity([summary(model, f"layer3.{at}") for model in models for at in range(modules)])
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [axes.get_tightbbox(renderer) for axes in figure.axes if axes.get_visible()]
    boxes += [legend.get_window_extent(renderer) for legend in figure.legends]
    for at, box in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0
        assert box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[at + 1 :])


def test_the_data_are_the_channels_with_their_state() -> None:
    frame = selectivity_data([summary(), summary("gc")], ["a", "b", "c", "d"])
    assert len(frame) == 60
    assert frame["state"].head(3).tolist() == ["dead", "signed", "live"]
    live = frame[frame["state"] == "live"]
    expected = (live["mu_max"] - live["mu_others"]) / (live["mu_max"] + live["mu_others"])
    np.testing.assert_allclose(live["index"], expected, rtol=1e-6)
    assert set(live["preferred"]) <= set("abcd")
    assert frame["preferred"].head(2).tolist() == ["", ""]


def test_the_bytes_are_the_same_every_time(tmp_path) -> None:
    first, second = (save_figure(draw_selectivity([summary()]), tmp_path / name) for name in "ab")
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_nothing_to_draw_is_an_error() -> None:
    with pytest.raises(ValueError, match="no summary to draw"):
        draw_selectivity([])
