"""The figure of a training run."""

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from nlprobe.plots.curves import curve_data, draw_curves

POINTS = [
    {"epoch": (step + 1) / 4, "learning_rate": 0.1 - 0.01 * step, "loss": 2.0 - 0.1 * step, "top1": 0.05 * step}
    for step in range(8)
]
EPOCHS = [
    {"epoch": 1, "learning_rate": 0.1, "train_loss": 1.8, "val_loss": 1.9, "val_top1": 0.2, "val_top5": 0.5},
    {"epoch": 2, "learning_rate": 0.05, "train_loss": 1.4, "val_loss": 1.5, "val_top1": 0.4, "val_top5": 0.7},
]


def test_the_data_are_every_point_and_the_validations() -> None:
    data = curve_data(POINTS, EPOCHS)
    assert len(data) == 8 * 3 + 2 * 3
    loss = data[(data["measure"] == "loss") & (data["split"] == "train")]
    assert loss["value"].tolist() == [point["loss"] for point in POINTS]
    top5 = data[data["measure"] == "top5"]
    assert top5[["epoch", "split", "value"]].to_numpy().tolist() == [[1, "val", 0.5], [2, "val", 0.7]]


def test_each_measure_has_a_panel_with_its_values() -> None:
    figure = draw_curves(curve_data(POINTS, EPOCHS))
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["loss", "top1", "top5", "learning rate"]
    train, val = figure.axes[0].lines
    assert list(train.get_ydata()) == [point["loss"] for point in POINTS]
    assert list(val.get_xdata()) == [1, 2]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["training", "validation"]


def test_texts_do_not_overlap_and_stay_inside() -> None:
    figure = draw_curves(curve_data(POINTS, EPOCHS))
    renderer = FigureCanvasAgg(figure).get_renderer()
    whole = figure.bbox
    boxes = [axes.get_tightbbox(renderer) for axes in figure.axes] + [figure.legends[0].get_window_extent(renderer)]
    for box in boxes:
        assert box is not None
        assert whole.x0 <= box.x0
        assert box.x1 <= whole.x1
        assert whole.y0 <= box.y0
        assert box.y1 <= whole.y1
    for i, first in enumerate(boxes):
        assert not any(first.overlaps(second) for second in boxes[i + 1 :])


def test_a_run_before_its_first_validation_is_drawn_too() -> None:
    figure = draw_curves(curve_data(POINTS[:2], []))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["loss", "top1", "learning rate"]


def test_nothing_to_draw_is_an_error() -> None:
    with pytest.raises(ValueError, match="no step"):
        draw_curves(curve_data([], []))
