"""One pass over labelled images."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nlprobe.activations import (
    Reading,
    collect,
    measure_class_activations,
    measure_selectivity,
    modules_at,
    residual_blocks,
    transforms,
    with_differences,
)
from nlprobe.errors import CaptureError, ConfigError, DataError, NlprobeError
from nlprobe.measuring import Shown
from nlprobe.models import build
from nlprobe.stats.selectivity import EPSILON

CLASSES = 3


def images(count: int = 12, side: int = 64) -> tuple[list[tuple[Tensor, list[str]]], dict[str, int]]:
    """Batches of noise whose mean follows the class, and their labels."""
    generator = torch.Generator().manual_seed(0)
    labels = {f"{at}.png": at % CLASSES for at in range(count)}
    pixels = torch.randn(count, 3, side, side, generator=generator)
    pixels += torch.tensor([labels[name] for name in labels]).view(-1, 1, 1, 1)
    names = list(labels)
    return [(pixels[at : at + 5], names[at : at + 5]) for at in range(0, count, 5)], labels


def network(name: str = "miniature-imagenet/resnet-gc-all") -> nn.Module:
    """A network whose GC blocks do something."""
    model = build(name).eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if ".after_" in path:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return model


@torch.no_grad()
def outputs_of_c4(model: nn.Module, x: Tensor) -> list[Tensor]:
    """What the blocks of c4 give, by calling them one after another."""
    x = model.layer2(model.layer1(model.stem(x)))
    found = []
    for block in model.layer3:
        identity = x if block.downsample is None else block.downsample(x)
        branch = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x)))))
        x = torch.relu(block.after_1x1(branch) + identity)
        found.append(x)
    return found


def test_the_blocks_own_outputs_are_summed_and_not_those_of_their_shared_relu() -> None:
    model, (batches, labels) = network(), images()
    found = collect(model, residual_blocks(model), batches, labels, CLASSES)
    expected = [torch.cat(rows).double() for rows in zip(*(outputs_of_c4(model, x) for x, _ in batches), strict=True)]
    kinds = torch.tensor(list(labels.values()))
    assert found.ids == tuple(labels)
    assert found.labels.tolist() == kinds.tolist()
    for one, x in zip(found.readings, expected, strict=True):
        pooled = x.mean((2, 3))
        assert one.values is not None
        np.testing.assert_allclose(one.values, pooled, rtol=1e-4, atol=1e-6)
        means = [pooled[kinds == k].mean(0) for k in range(CLASSES)]
        np.testing.assert_allclose(one.sums.means, torch.stack(means), rtol=1e-4, atol=1e-6)


def test_the_transform_is_what_the_block_adds() -> None:
    model, (batches, labels) = network(), images()
    added = []
    block = model.layer3[1].after_1x1
    handle = block.register_forward_hook(lambda _, args, z: added.append((z - args[0]).mean((2, 3))))
    found = collect(model, transforms(model, ["layer3.1*"]), batches, labels, CLASSES)
    handle.remove()
    np.testing.assert_allclose(found.readings[0].values, torch.cat(added).detach(), atol=1e-5)


def test_batches_do_not_matter_and_no_hook_is_left_behind() -> None:
    model, (batches, labels) = network(), images()
    single = [(x[at : at + 1], [name]) for x, names in batches for at, name in enumerate(names)]
    one, other = (collect(model, residual_blocks(model), shown, labels, CLASSES) for shown in (batches, single))
    for first, second in zip(one.readings, other.readings, strict=True):
        np.testing.assert_allclose(first.sums.means, second.sums.means, rtol=1e-4, atol=1e-6)
    assert not any(module._forward_hooks for module in model.modules())


def test_images_that_are_too_many_to_keep_have_sums_and_no_intervals() -> None:
    model, (batches, labels) = network(), images()
    readings = residual_blocks(model)
    needed = 4 * 12 * 2 * 64
    kept = collect(model, readings, batches, labels, CLASSES, kept_bytes=needed)
    found = collect(model, readings, batches, labels, CLASSES, kept_bytes=needed - 1)
    assert kept.readings[0].values is not None
    assert found.readings[0].values is None
    np.testing.assert_array_equal(found.readings[0].sums.means, kept.readings[0].sums.means)


def test_images_that_cannot_be_read_are_left_out() -> None:
    model, (batches, labels) = network(), images()
    shown = [(batches[0][0], batches[0][1]), (torch.empty(0), []), (batches[2][0], batches[2][1])]
    found = collect(model, residual_blocks(model), shown, labels, CLASSES)
    assert found.ids == (*batches[0][1], *batches[2][1])
    assert found.readings[0].values is not None
    assert len(found.readings[0].values) == len(found.ids) == 7


class Odd(nn.Module):
    """A part that serves two places, one that is never called, and one that gives no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.unused, self.pair, self.mixed = nn.ReLU(), nn.ReLU(), Pair(), Mixed()
        self.nan = Nan()

    def forward(self, x: Tensor) -> Tensor:
        self.mixed(x)
        self.nan(x)
        return self.pair(self.twice(self.twice(x)))[0]


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Mixed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(0, 1)


class Nan(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 0


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("twice", CaptureError, "`twice` ran twice in one forward call"),
        ("unused", CaptureError, "`unused` did not run"),
        ("pair", CaptureError, "`pair` gives a tuple"),
        ("mixed", CaptureError, "gives 15 rows for 5 images"),
        ("nan", NlprobeError, "NaN or infinity"),
    ],
)
def test_what_would_be_a_wrong_number_is_refused(name: str, error: type[Exception], message: str) -> None:
    model, (batches, labels) = Odd(), images()
    with pytest.raises(error, match=message):
        collect(model, modules_at(model, [name]), batches, labels, CLASSES)
    assert not any(module._forward_hooks for module in model.modules())


def test_images_without_label_padded_ones_and_repeated_ones_are_refused() -> None:
    model, (batches, labels) = network(), images()
    readings = residual_blocks(model)
    with pytest.raises(DataError, match=r"`0\.png` has no label"):
        collect(model, readings, batches, {"other.png": 0}, CLASSES)
    x, names = batches[0]
    with pytest.raises(DataError, match=r"`1\.png` is padded"):
        collect(model, readings, [Shown(x, names, [(64, 64), (60, 64), *[(64, 64)] * 3])], labels, CLASSES)
    with pytest.raises(DataError, match="more than the 12 labelled images"):
        collect(model, readings, batches * 2, labels, CLASSES)
    with pytest.raises(DataError, match="nothing that can be read"):
        collect(model, readings, [], labels, CLASSES)
    with pytest.raises(ConfigError, match="to be read twice"):
        collect(model, [Reading("a", model.fc), Reading("a", model.layer1)], batches, labels, CLASSES)


def test_channels_are_second_but_in_sequences_unless_it_is_said() -> None:
    model, (batches, labels) = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(2), Transposed()), images()
    readings = modules_at(model, ["0", "2"])
    found = collect(model, readings, batches, labels, CLASSES)
    np.testing.assert_allclose(found.readings[0].sums.means, found.readings[1].sums.means, rtol=1e-5, atol=1e-6)
    last = collect(model, modules_at(model, ["0"]), batches, labels, CLASSES, channels_last=True)
    assert last.readings[0].sums.channels == 64


class Transposed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mT


def test_selectivity_of_two_networks_is_compared_image_by_image() -> None:
    batches, labels = images(24)
    summaries = []
    for name in ("miniature-imagenet/resnet", "miniature-imagenet/resnet-gc-all"):
        model = network(name)
        shown = (model, residual_blocks(model), batches, labels, CLASSES)
        summaries.append(measure_selectivity(*shown, label=name, seed=1))
    first, second = with_differences(summaries)
    assert [one.module for one in first] == ["layer3.0", "layer3.1"]
    assert all(one.difference is None for one in first)
    for one, other in zip(first, second, strict=True):
        found = one.channels
        expected = (found.highest - found.others) / (found.highest + found.others + EPSILON)
        assert one.mean.mean == pytest.approx(expected[~found.dead].mean(), rel=1e-9)
        assert one.mean.low < one.mean.mean < one.mean.high
        assert other.difference is not None
        assert other.difference.mean == pytest.approx(other.mean.mean - one.mean.mean)
        assert other.difference.low < other.difference.high
    other_seed = measure_selectivity(*shown, label="b", seed=2)
    with pytest.raises(NlprobeError, match="not shown the same images"):
        with_differences([summaries[0], other_seed])


def test_a_network_less_itself_differs_by_nothing() -> None:
    model, (batches, labels) = network(), images()
    own = [measure_selectivity(model, residual_blocks(model), batches, labels, CLASSES, label=name) for name in "ab"]
    for one in with_differences(own)[1]:
        assert one.difference is not None
        assert (one.difference.mean, one.difference.low, one.difference.high) == (0, 0, 0)


def test_a_single_image_of_a_class_leaves_no_interval_and_signed_channels_no_index() -> None:
    model, (batches, labels) = network(), images(12)
    labels = labels | {"11.png": 3}
    (one,) = measure_selectivity(model, residual_blocks(model)[:1], batches, labels, 5, label="a")
    assert one.channels.classes == 4
    assert np.isnan([one.mean.low, one.mean.high]).all()
    below = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Hardtanh(-2.0, -1.0))
    with pytest.raises(ConfigError, match="never negative: 4 of 4 have negative means"):
        measure_selectivity(below, modules_at(below, ["1"]), batches, labels, 5, label="a")
    with pytest.raises(DataError, match="are of 1 class"):
        measure_selectivity(model, residual_blocks(model), batches, dict.fromkeys(labels, 0), 5, label="a")


def test_activations_by_class_have_means_intervals_and_how_far_they_depend_on_the_class() -> None:
    model, (batches, labels) = network(), images(30)
    (one,) = measure_class_activations(
        model, transforms(model, ["layer2.1*"]), batches, labels, 4, [0, 2], label="gc", seed=3
    )
    assert (one.model, one.module, one.what) == ("gc", "layer2.1:after_1x1", "transform")
    assert one.counts.tolist() == [10, 10, 10, 0]
    np.testing.assert_allclose(one.overall, one.means[:3].mean(0))
    inside = (one.low <= one.means[[0, 2]]) & (one.means[[0, 2]] <= one.high)
    assert inside.mean() > 0.9
    assert 0 <= one.spread.low <= one.spread.mean <= one.spread.high
    assert one.share.low < one.share.mean < one.share.high
    single = {name: at for at, name in enumerate(labels)}
    with pytest.raises(DataError, match="one image of each of 30 classes"):
        measure_class_activations(model, transforms(model), batches, single, 30, [0], label="gc")


def test_an_untrained_gc_block_adds_nothing_and_has_nothing_to_tell() -> None:
    model, (batches, labels) = build("miniature-imagenet/resnet-gc-all"), images()
    (one,) = measure_class_activations(model, transforms(model, ["layer3.0*"]), batches, labels, 3, [0], label="gc")
    assert np.isnan([one.share.mean, one.spread.mean]).all()
    assert np.isnan(one.shares).all()
