"""Tables 12 and 13: every row by name, with the counts that the paper's cells come from."""

from decimal import Decimal

import pytest
import torch

from nlprobe.blocks import ContextConfig, NonLocalConfig
from nlprobe.models import Costs, build, costs_of, differing_cells, entry, names, paper_distances, rows

FULL = [name for name in names() if name.startswith("cityscapes/resnet101")]
# Cells that no honest count reproduces: the printed NL head repeats SNL, the GC backbone is cut off, CCNet
# lacks a part of its products, and the parameters of DANet, ANN and CCNet fit nothing.
DIFFERING = {
    ("12a", "NL Head"): ["params"],
    ("13", "NLNet"): ["params"],
    ("12a", "GC backbone (c3-c5)"): ["flops"],
    ("13", "DANet"): ["params"],
    ("13", "ANN"): ["params"],
    ("13", "CCNet"): ["params", "flops"],
}


@pytest.fixture(scope="module")
def costs() -> dict[str, Costs]:
    return {name: costs_of(name) for name in FULL}


def conv3x3(channels_in: int, channels: int) -> int:
    """Without bias, with its norm."""
    return 9 * channels_in * channels + 2 * channels


def test_the_printed_rows_are_those_of_the_paper() -> None:
    printed = {(row.table, row.row) for _, row in rows() if row and row.dataset == "Cityscapes"}
    assert {row for table, row in printed if table == "12a"} == {
        *("baseline", "NL Head", "SNL Head", "GC head", "GC backbone (c3-c5)", "GC backbone + GC Head")
    }
    assert {row for table, row in printed if table == "12b"} == {
        *("baseline", "avg+scale", "avg+add", "att+scale", "att+add")
    }
    assert {row for table, row in printed if table == "13"} == {
        *("baseline", "DANet", "ANN", "CCNet", "NLNet", "GCNet")
    }
    assert {row for table, row in printed if table == "4"} == {"Gaussian", "E-Gaussian", "Dot product", "Concat"}


def test_only_the_cells_known_to_be_wrong_differ(costs: dict[str, Costs]) -> None:
    found = {}
    for each, row in rows():
        if row and each.name in costs and (cells := differing_cells(costs[each.name], row)):
            found[row.table, row.row] = cells
    assert found == DIFFERING


def test_the_parameters_are_those_of_the_layers(costs: dict[str, Costs]) -> None:
    trunk = 44_549_160 - (2048 * 1000 + 1000)  # torchvision's ResNet-101 without its classifier
    trunk += 9 * (3 * 64 + 64 * 64 + 64 * 128) + 2 * (64 + 64 + 128) - (49 * 3 * 64 + 2 * 64)  # the deep stem
    trunk += 64 * 64 + 64 * 256  # the first block of c2 gets 128 channels
    head = conv3x3(2048, 512) + conv3x3(512, 512) + conv3x3(2560, 512) + 513 * 19
    auxiliary = conv3x3(1024, 512) + 513 * 19
    baseline = trunk + head + auxiliary
    assert costs["cityscapes/resnet101"].params == baseline
    assert costs["cityscapes/resnet101-nl"].params == baseline + 3 * (512 * 256 + 256) + 256 * 512 + 2 * 512
    assert costs["cityscapes/resnet101-snl"].params == baseline + 512 + 1 + 512 * 512 + 512
    cross = 2 * (512 * 64 + 64) + 512 * 512 + 512 + 1
    assert costs["cityscapes/resnet101-ccnet"].params == baseline + cross
    dual = 2 * (conv3x3(2048, 512) + conv3x3(512, 512)) + cross + 1 + 3 * 513 * 19
    assert costs["cityscapes/resnet101-danet"].params == trunk + dual + auxiliary
    fusion = (2048 + 1024) * 256 + 4 * 256 + 1025 * 256 + 257 * 2048 + 4096 * 2048 + 2 * 2048
    pyramid = 512 * 256 + 2 * 256 + 513 * 256 + 257 * 512 + 1024 * 512 + 2 * 512
    asymmetric = fusion + conv3x3(2048, 512) + pyramid + 513 * 19
    assert costs["cityscapes/resnet101-ann"].params == trunk + asymmetric + auxiliary
    assert costs["cityscapes/resnet101-gc"].params == baseline + 512 + 1 + 512 * 128 + 3 * 128 + 128 * 512 + 512


def test_the_non_local_head_costs_its_written_out_products(costs: dict[str, Costs]) -> None:
    n = 97 * 97
    added = costs["cityscapes/resnet101-nl"].macs - costs["cityscapes/resnet101"].macs
    assert added == n * (4 * 512 * 256) + 2 * n * n * 256
    assert costs["cityscapes/resnet101"].missed_products == ()


def test_the_non_local_head_has_the_settings_that_the_costs_imply() -> None:
    config = entry("cityscapes/resnet101-nl").config
    assert config.context == NonLocalConfig("embedded_gaussian", reduction=2, sub_sample="none", output_bias=False)
    assert config.sites() == ["head.context"]
    assert entry("cityscapes/resnet101-gc").config.context == ContextConfig.gc(4)
    assert len(entry("cityscapes/resnet101-gc-all-gc").config.sites()) == 4 + 23 + 3 + 1


def test_every_model_has_a_miniature_twin_with_the_same_operator() -> None:
    twins = {entry(name).full_size: entry(name) for name in names() if name.startswith("miniature-cityscapes/")}
    assert set(twins) == set(FULL)
    for name in FULL:
        if "psanet" in name:  # whose mask has the size of the picture
            assert type(twins[name].config.context) is type(entry(name).config.context)
        else:
            assert twins[name].config.context == entry(name).config.context
        assert twins[name].config.head == entry(name).config.head


@pytest.mark.parametrize("name", [name for name in names() if name.startswith("miniature-cityscapes/")])
def test_a_miniature_network_gives_every_pixel_scores(name: str, device: torch.device) -> None:
    network = build(name, seed=0).to(device).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 3, 64, 96, device=device)).shape == (1, 19, 64, 96)


def test_the_distances_of_table_4_come_as_printed() -> None:
    distances = paper_distances("miniature-cityscapes/resnet-nl-dot")
    assert {quantity: text for quantity, (text, _) in distances.items()} == {
        "input": "0.323",
        "att": "0.331",
        "output": "0.386",
    }


def test_the_networks_on_resnet_50_are_the_same_but_for_the_depth(costs: dict[str, Costs]) -> None:
    for name in names():
        if name.startswith("cityscapes/resnet50"):
            with torch.device("meta"):
                lighter = build(name)
            deeper = costs[name.replace("resnet50", "resnet101")]
            blocks = (23 - 6) * (2 * 1024 * 256 + 9 * 256 * 256 + 2 * (256 + 256 + 1024))
            assert deeper.params - sum(parameter.numel() for parameter in lighter.parameters()) == blocks


def test_danet_costs_its_two_maps(costs: dict[str, Costs]) -> None:
    n = 97 * 97
    added = costs["cityscapes/resnet101-danet"].macs - costs["cityscapes/resnet101"].macs
    branches = n * (2 * 9 * (2048 + 512) * 512 + 3 * 512 * 19)
    plain = n * (9 * (2048 + 512 + 2560) * 512 + 512 * 19)
    assert added == branches - plain + n * 512 * (2 * 64 + 512) + n * n * (64 + 512) + 2 * n * 512 * 512


def test_printed_scores_are_percentages() -> None:
    for _, row in rows():
        if row and row.dataset == "Cityscapes":
            assert 75 < Decimal(row.cells["miou"]) < 80
