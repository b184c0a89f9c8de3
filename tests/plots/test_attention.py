"""Attention maps over photographs."""

import dataclasses
import io

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from nlprobe.plots import attention_data, draw_attention, style
from nlprobe.plots.attention import difference_scale, key_extent, map_scale
from nlprobe.plots.style import PAGE_WIDTH, QUERY_COLOUR
from nlprobe.probe.maps import AttentionMaps


def example(
    size: tuple[int, int] = (60, 90),
    grid: tuple[int, int] = (4, 6),
    queries: tuple[tuple[int, int], ...] = ((10, 20), (50, 80)),
    *,
    query_grid: tuple[int, int] | None = None,
    spread: float = 0.1,
    signed: bool = False,
) -> AttentionMaps:
    generator = np.random.default_rng(0)
    logits = generator.standard_normal(grid) + spread * generator.standard_normal((len(queries), *grid))
    weights = np.exp(logits)
    maps = logits / logits[0].size if signed else weights / weights.sum(axis=(1, 2), keepdims=True)
    return AttentionMaps(
        site="layer3.4:after_add",
        instantiation="dot_product" if signed else "embedded_gaussian",
        image=generator.integers(0, 256, (*size, 3), dtype=np.uint8),
        image_id="china.jpg",
        label="net",
        queries=queries,
        maps=maps,
        mean=maps.mean(0),
        grid=grid,
        query_grid=query_grid or grid,
        avg_dist=0.0123,
        n_keys=grid[0] * grid[1],
    )


def panels(figure: Figure) -> dict[str, Axes]:
    return {axes.get_title() or axes.get_title(loc="left"): axes for axes in figure.axes}


def texts(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.texts)


def rendered(figure: Figure) -> np.ndarray:
    file = io.BytesIO()
    with style():
        figure.savefig(file, format="png", dpi=200)
    return np.asarray(Image.open(file).convert("RGB")).astype(int)


def region(pixels: np.ndarray, axes: Axes) -> np.ndarray:
    """The pixels of a panel."""
    box = axes.get_position()
    height, width = pixels.shape[:2]
    rows = slice(round((1 - box.y1) * height), round((1 - box.y0) * height))
    return pixels[rows, round(box.x0 * width) : round(box.x1 * width)]


def test_a_row_has_the_photograph_each_query_and_the_mean() -> None:
    figure = draw_attention([example()])
    assert list(panels(figure)) == ["image", "query 1", "query 2", "mean map", "× uniform"]


def test_all_maps_of_an_image_share_one_linear_scale() -> None:
    maps = example(spread=1.0)
    figure = draw_attention([maps], percentile=100.0)
    shown = [panels(figure)[name].images[1] for name in ("query 1", "query 2", "mean map")]
    assert {image.get_clim() for image in shown} == {(0.0, maps.maps.max() * 24)}
    for image, weights in zip(shown, (*maps.maps, maps.mean), strict=True):
        np.testing.assert_allclose(image.get_array(), weights * 24)


def test_each_image_has_a_scale_of_its_own() -> None:
    figure = draw_attention([example(spread=0.1), example(spread=2.0)])
    limits = [axes.images[1].get_clim()[1] for axes in figure.axes if axes.get_title() == "query 1"]
    assert len(limits) == 2
    assert limits[0] != limits[1]


def test_equal_maps_look_equal() -> None:
    maps = example(spread=0.0, queries=((30, 45), (30, 45)))
    figure = draw_attention([maps])
    pixels = rendered(figure)
    one, other = (region(pixels, panels(figure)[name]) for name in ("query 1", "query 2"))
    rows, columns = (min(a, b) for a, b in zip(one.shape[:2], other.shape[:2], strict=True))
    # The panels begin at different fractions of a pixel, so only edges of the noisy photograph may differ.
    assert np.median(np.abs(one[:rows, :columns] - other[:rows, :columns])) == 0


def test_a_flat_map_does_not_look_bright() -> None:
    maps = example()
    flat = np.full_like(maps.maps, 1 / 24)
    scale = map_scale(dataclasses.replace(maps, maps=flat, mean=flat[0]))
    assert (scale.limit, scale.clipped, scale.signed) == (2.0, False, False)


def test_a_percentile_clips_and_says_so() -> None:
    maps = example((60, 90), (20, 30), spread=1.0)
    scale = map_scale(maps, 95.0)
    drawn = np.concatenate([maps.maps.ravel(), maps.mean.ravel()]) * 600
    assert scale.limit == np.percentile(drawn, 95)
    assert scale.clipped
    assert "scale to percentile 95, largest" in texts(draw_attention([maps], percentile=95.0))
    assert "percentile" not in texts(draw_attention([maps], percentile=100.0))


def test_negative_weights_get_a_diverging_scale_about_zero() -> None:
    maps = example(signed=True)
    figure = draw_attention([maps], percentile=100.0)
    image = panels(figure)["query 1"].images[1]
    low, high = image.get_clim()
    assert low == -high
    assert high == np.abs(maps.maps).max() * 24
    assert image.get_cmap().name == "PuOr_r"
    assert "weight × N" in panels(figure)


def test_positive_maps_that_do_not_sum_to_one_are_not_in_units_of_uniform() -> None:
    maps = example()
    assert not map_scale(dataclasses.replace(maps, maps=maps.maps * 30)).of_uniform


def test_maps_of_zeros_can_be_drawn() -> None:
    maps = example()
    zero = dataclasses.replace(
        maps, maps=np.zeros_like(maps.maps), mean=np.zeros_like(maps.mean), avg_dist=float("nan")
    )
    figure = draw_attention([zero], difference=True)
    assert "avg_dist of the maps undef." in texts(figure)
    rendered(figure)


def test_differences_have_their_own_symmetric_scale_and_its_size_is_stated() -> None:
    maps = example(spread=0.05)
    figure = draw_attention([maps], difference=True, percentile=100.0)
    image = panels(figure)["query 2 − mean"].images[1]
    np.testing.assert_allclose(image.get_array(), (maps.maps[1] - maps.mean) * 24)
    scale = difference_scale(maps, 100.0)
    assert image.get_clim() == (-scale.limit, scale.limit)
    assert f"{scale.limit / map_scale(maps, 100.0).limit:.2g} times the maps" in " ".join(texts(figure).split())
    above, below = panels(figure)["query 2"], panels(figure)["query 2 − mean"]
    assert above.get_position().x0 == below.get_position().x0


def test_the_distance_of_the_maps_is_printed_below() -> None:
    assert "avg_dist of the maps 0.012" in texts(draw_attention([example()]))
    tiny = dataclasses.replace(example(), avg_dist=3.2e-7)
    assert "avg_dist of the maps 3.2e-7" in texts(draw_attention([tiny]))


def test_the_query_is_a_red_point_with_a_white_edge_on_its_pixel() -> None:
    figure = draw_attention([example()])
    (point,) = panels(figure)["query 2"].lines
    assert (point.get_xdata()[0], point.get_ydata()[0]) == (80.5, 50.5)
    assert point.get_markeredgecolor() == "white"
    pixels = rendered(figure)
    red = np.abs(pixels - np.array(to_rgb(QUERY_COLOUR)) * 255).max(axis=-1) < 3
    rows, columns = np.nonzero(region(red, panels(figure)["query 2"]))
    height, width = region(red, panels(figure)["query 2"]).shape
    assert rows.mean() / height == pytest.approx(50.5 / 60, abs=0.02)
    assert columns.mean() / width == pytest.approx(80.5 / 90, abs=0.02)


@pytest.mark.parametrize("smooth", [False, True], ids=["cells", "smooth"])
@pytest.mark.parametrize(("row", "column"), [(0, 0), (1, 4), (3, 5)])
def test_a_cell_is_drawn_over_its_part_of_the_photograph(smooth: bool, row: int, column: int) -> None:
    maps = example((80, 120))
    black = np.zeros_like(maps.image)
    weights = np.zeros((1, 4, 6))
    weights[0, row, column] = 1.0
    hot = dataclasses.replace(maps, image=black, maps=weights, mean=weights[0], queries=((0, 0),))
    figure = draw_attention([hot], smooth=smooth, percentile=100.0)
    shown = region(rendered(figure), panels(figure)["mean map"])
    # viridis ends in yellow: where green and red are high, the weight is.
    brightness = (shown[..., 0] + shown[..., 1] - shown[..., 2]).astype(float)
    rows, columns = np.nonzero(brightness > 0.98 * brightness.max())
    height, width = brightness.shape
    if smooth:
        assert (row + 0.25) / 4 < rows.mean() / height < (row + 0.75) / 4
        assert (column + 0.25) / 6 < columns.mean() / width < (column + 0.75) / 6
    else:
        assert rows.min() / height == pytest.approx(row / 4, abs=0.02)
        assert (rows.max() + 1) / height == pytest.approx((row + 1) / 4, abs=0.02)
        assert columns.min() / width == pytest.approx(column / 6, abs=0.02)
        assert (columns.max() + 1) / width == pytest.approx((column + 1) / 6, abs=0.02)


@pytest.mark.parametrize(
    ("queries", "keys", "extent"),
    [
        ((4, 6), (4, 6), (0, 90, 60, 0)),
        ((8, 12), (4, 6), (0, 90, 60, 0)),
        ((9, 13), (4, 6), (0, 90 * 12 / 13, 60 * 8 / 9, 0)),
        ((3, 1), (1, 1), (0, 90, 40, 0)),
    ],
    ids=["same", "pooled", "pooled odd", "one key"],
)
def test_pooled_keys_cover_the_queries_that_they_were_pooled_from(
    queries: tuple[int, int], keys: tuple[int, int], extent: tuple[float, ...]
) -> None:
    assert key_extent(example(grid=keys, query_grid=queries)) == pytest.approx(extent)


@pytest.mark.parametrize(
    "size",
    [(60, 90), (20, 900), (900, 20), (1, 1), (7, 5), (1000, 1500), (224, 224)],
    ids=lambda size: f"{size[0]}x{size[1]}",
)
@pytest.mark.parametrize("count", [1, 9])
def test_any_photograph_is_shown_whole_and_undistorted(size: tuple[int, int], count: int) -> None:
    height, width = size
    queries = tuple((height * index // count, width * index // count) for index in range(count))
    figure = draw_attention([example(size, queries=queries)], difference=True)
    total_width, total_height = figure.get_size_inches()
    assert total_width <= PAGE_WIDTH + 1e-9
    boxes = []
    for title, axes in panels(figure).items():
        box = axes.get_position()
        assert min(box.x0, box.y0) >= -1e-9
        assert max(box.x1, box.y1) <= 1 + 1e-9
        boxes.append(box)
        if title != "× uniform":
            assert (axes.get_xlim(), axes.get_ylim()) == ((0, width), (height, 0))
            shape = (box.height * total_height) / (box.width * total_width)
            assert shape == pytest.approx(height / width)
    for index, box in enumerate(boxes):
        for other in boxes[index + 1 :]:
            apart = box.x1 <= other.x0 + 1e-9 or other.x1 <= box.x0 + 1e-9
            assert apart or box.y1 <= other.y0 + 1e-9 or other.y1 <= box.y0 + 1e-9


def test_a_long_name_is_wrapped_below_its_row() -> None:
    figure = draw_attention([dataclasses.replace(example(), label="a/very/long/name-" * 12)])
    renderer_width = figure.get_size_inches()[0] * figure.dpi
    for text in figure.texts:
        assert text.get_window_extent().x1 <= renderer_width


def test_the_data_have_every_weight_that_is_drawn() -> None:
    maps = example()
    frame = attention_data([maps], percentile=100.0)
    assert len(frame) == 3 * 24
    second = frame[frame["map"] == "query 2"]
    assert (second["query_y"].unique(), second["query_x"].unique()) == ([50], [80])
    np.testing.assert_array_equal(second["weight"].to_numpy().reshape(4, 6), maps.maps[1])
    cell = second[(second["row"] == 2) & (second["column"] == 5)]
    assert cell["times_uniform"].item() == maps.maps[1, 2, 5] * 24
    assert cell["minus_mean"].item() == pytest.approx((maps.maps[1, 2, 5] - maps.mean[2, 5]) * 24)
    assert cell["scale_limit"].item() == map_scale(maps, 100.0).limit
    assert frame[frame["map"] == "mean"]["query_y"].isna().all()


def test_nothing_to_draw_is_an_error() -> None:
    with pytest.raises(ValueError, match="no image to draw"):
        draw_attention([])
