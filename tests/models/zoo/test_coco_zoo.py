"""Tables 5, 6 and 7 and the probe targets of Tables 1 to 3: every row by name, with the counts behind the cells."""

from dataclasses import replace

import pytest
import torch

from nlprobe.blocks import ContextConfig, NonLocalConfig
from nlprobe.models import (
    Costs,
    DetectionConfig,
    build,
    costs_of,
    count_costs,
    differing_cells,
    entry,
    names,
    paper_distances,
    rows,
)

FULL = [name for name in names() if name.startswith("coco/")]
TWINS = [name for name in names() if name.startswith("miniature-coco/")]

LABELS = {
    "1": ["baseline", "Gaussian", "E-Gaussian", "Dot product", "Concat"],
    "2": ["c3", "c4", "c5"],
    "3": ["E-Gaussian", "Gaussian"],
    "5a": ["baseline", "+1 NL", "+1 SNL", "+1 GC", "+all GC"],
    "5b": ["baseline", "afterAdd", "after1x1"],
    "5c": ["baseline", "c3", "c4", "c5", "c3+c4+c5"],
    "5d": ["baseline", "w/o ratio", "r16 (ratio 16)", "r16+ReLU", "r16+LN+ReLU"],
    "5e": ["baseline", "ratio 4", "ratio 8", "ratio 16", "ratio 32"],
    "5f": ["baseline", "avg+scale", "avg+add", "att+scale", "att+add"],
    "6a": [
        f"{network} {method}"
        for network in ("fixBN 2fc", "syncBN 2fc", "syncBN 4conv1fc")
        for method in ("baseline", "+GC r16", "+GC r4")
    ],
    "6b": ["2x baseline", "2x +GC r16", "2x +GC r4"],
    "7a": [
        *(
            f"{network} {method}"
            for network in ("R50", "R101", "X101", "X101+Cascade", "X101+DCN+Cascade")
            for method in ("baseline", "+GC r16", "+GC r4")
        ),
        "X101 64x4d+DCN+Cascade 4conv1fc +GC r4",
    ],
    "7b": [
        *(
            f"{network} {method}"
            for network in ("X101+Cascade", "X101+DCN+Cascade")
            for method in ("baseline", "+GC r16", "+GC r4")
        ),
        "X101 64x4d+DCN+Cascade 4conv1fc +GC r4",
    ],
}

# Cells that no honest count reproduces.
DIFFERING = {
    ("5a", "+1 SNL"): ["params"],
    ("5a", "+all GC"): ["flops"],
    ("5b", "afterAdd"): ["flops"],
    ("5b", "after1x1"): ["flops"],
    ("5c", "c5"): ["params"],
    ("5c", "c3+c4+c5"): ["flops"],
    ("5d", "r16 (ratio 16)"): ["flops"],
    ("5d", "r16+ReLU"): ["flops"],
    ("5d", "r16+LN+ReLU"): ["flops"],
    ("5e", "ratio 4"): ["flops"],
    ("5e", "ratio 8"): ["flops"],
    ("5e", "ratio 16"): ["flops"],
    ("5f", "att+scale"): ["flops"],
    ("5f", "att+add"): ["flops"],
    ("7a", "R50 +GC r16"): ["flops"],
    ("7a", "R50 +GC r4"): ["flops"],
    ("7a", "X101 +GC r16"): ["flops"],
    ("7a", "X101 +GC r4"): ["flops"],
    ("7a", "X101+Cascade +GC r4"): ["flops"],
    ("7b", "X101+Cascade +GC r4"): ["flops"],
    ("7a", "X101 64x4d+DCN+Cascade 4conv1fc +GC r4"): ["flops"],
    ("7b", "X101 64x4d+DCN+Cascade 4conv1fc +GC r4"): ["flops"],
}


@pytest.fixture(scope="module")
def costs() -> dict[str, Costs]:
    return {name: costs_of(name) for name in FULL}


@pytest.mark.parametrize("table, labels", LABELS.items(), ids=LABELS)
def test_every_row_of_the_table_has_a_model_in_the_papers_order(table: str, labels: list[str]) -> None:
    assert [row.row for _, row in rows() if row and row.table == table and row.dataset == "COCO"] == labels


def test_only_the_cells_known_to_be_wrong_differ(costs: dict[str, Costs]) -> None:
    found = {}
    for each, row in rows():
        if row and row.dataset == "COCO" and (cells := differing_cells(costs[each.name], row)):
            found[row.table, row.row] = cells
            assert each.remark
    assert found == DIFFERING


def test_the_parameters_are_those_of_the_layers(costs: dict[str, Costs]) -> None:
    trunk = 25_557_032 - 1000 * 2049  # torchvision's ResNet-50 without its classifier
    pyramid = sum((channels + 1) * 256 + (9 * 256 + 1) * 256 for channels in (256, 512, 1024, 2048))
    proposals = (9 * 256 + 1) * 256 + 257 * 3 * 5
    body = (256 * 49 + 1) * 1024 + 1025 * 1024
    mask = 4 * (9 * 256 + 1) * 256 + (4 * 256 * 256 + 256) + 257 * 81
    baseline = trunk + pyramid + proposals + body + 1025 * 81 * 5 + mask
    assert costs["coco/resnet50"].params == baseline
    assert costs["coco/resnet50-nl"].params == baseline + 4 * 1024 * 512
    assert costs["coco/resnet50-nl-c3"].params == baseline + 4 * 512 * 256
    assert costs["coco/resnet50-nl-c5"].params == baseline + 4 * 2048 * 1024
    assert costs["coco/resnet50-snl"].params == baseline + 1025 + 1025 * 1024
    convolutions = 4 * 9 * 256 * 256 + 4 * 512 + (256 * 49 + 1) * 1024  # the convolutions have norms and no biases
    norms = 8 * 256 + 4 * 256  # a bias becomes a scale and a shift, in the pyramid and in the mask head
    assert costs["coco/resnet50-4conv1fc"].params == baseline - body + convolutions + norms
    three = 3 * (body + 1025 * 81 + 1025 * 4 + mask)
    one = body + 1025 * 81 * 5 + mask
    cascade = costs["coco/resnext101_32x4d-cascade"].params
    assert cascade == costs["coco/resnext101_32x4d"].params - one + three
    widths = [256] * 4 + [512] * 23 + [1024] * 3
    offsets = sum((9 * width + 1) * 18 for width in widths)
    assert costs["coco/resnext101_32x4d-dcn-cascade"].params == cascade + offsets


def test_the_multiply_accumulates_are_those_of_the_layers(costs: dict[str, Costs]) -> None:
    with torch.device("meta"):
        trunk = build(replace(entry("coco/resnet50").config.backbone, classes=1))
    macs = count_costs(trunk, (3, 800, 1344)).macs - 2048
    positions = [200 * 336, 100 * 168, 50 * 84, 25 * 42, 13 * 21]
    for channels, n in zip((256, 512, 1024, 2048), positions[:4], strict=True):
        macs += n * (channels * 256 + 9 * 256 * 256)
    macs += sum(positions) * (9 * 256 * 256 + 256 * 15)
    macs += 1000 * (256 * 49 * 1024 + 1024 * 1024 + 1024 * 81 * 5)
    macs += 100 * (4 * 196 * 9 * 256 * 256 + 196 * 256 * 4 * 256 + 784 * 256 * 81)
    assert costs["coco/resnet50"].macs == macs
    n, m, channels, width = 50 * 84, 25 * 42, 1024, 512
    added = 2 * (n + m) * channels * width + 2 * n * m * width
    assert costs["coco/resnet50-nl"].macs == macs + added
    assert all(count.missed_products == () for count in costs.values())


def test_the_blocks_have_the_papers_settings_at_the_papers_sites() -> None:
    nl = entry("coco/resnet50-nl").config
    assert nl.sites() == ["backbone.layer3.4:after_add"]
    assert nl.insertions[0].block == NonLocalConfig(
        "embedded_gaussian", 2, "none", sub_sample="pool_then_project", norm="none", bias=False, output_bias=False
    )
    for suffix, instantiation in (("gaussian", "gaussian"), ("dot", "dot_product"), ("concat", "concat")):
        (insertion,) = entry(f"coco/resnet50-nl-{suffix}").config.insertions
        assert insertion.block == replace(nl.insertions[0].block, instantiation=instantiation)
    assert entry("coco/resnet50-nl-c3").config.sites() == ["backbone.layer2.2:after_add"]
    assert entry("coco/resnet50-nl-c5").config.sites() == ["backbone.layer4.1:after_add"]
    everywhere = entry("coco/resnet50-gc-all").config
    assert len(everywhere.sites()) == 4 + 6 + 3
    assert all(site.endswith(":after_1x1") for site in everywhere.sites())
    assert {each.block for each in everywhere.insertions} == {ContextConfig.gc(16)}
    assert len(entry("coco/resnet101-gc-all-r4").config.sites()) == 4 + 23 + 3


def test_regression_is_by_class_but_for_the_cascades_with_a_2fc_head() -> None:
    for name in FULL:
        config = entry(name).config
        assert isinstance(config, DetectionConfig)
        assert config.class_agnostic == (config.cascade and config.box_head == "2fc")
        assert config.norm == (config.box_head == "4conv1fc")
        assert config.backbone.deformable == (("c3", "c4", "c5") if "dcn" in name else ())
        assert config.classes == 80


def test_networks_whose_heads_have_norms_are_trained_with_synchronised_ones_and_the_strongest_for_longer() -> None:
    recipes = {name: entry(name).recipe for name in FULL if entry(name).recipe != "coco"}
    four = {f"coco/resnet50-4conv1fc{suffix}": "coco-syncbn" for suffix in ("", "-gc-all", "-gc-all-r4")}
    assert recipes == {**four, "coco/resnext101_64x4d-dcn-cascade-4conv1fc-gc-all-r4": "coco-3x"}


def test_the_papers_distances_come_as_printed() -> None:
    found = paper_distances("coco/resnet50-nl")
    assert {quantity: (text, row.table) for quantity, (text, row) in found.items()} == {
        "input": ("0.401", "3"),
        "key": ("0.332", "3"),
        "query": ("0.050", "3"),
        "prod": ("0.005", "3"),
        "att": ("0.020", "3"),
        "output": ("0.012", "3"),
    }
    assert paper_distances("miniature-coco/resnet-nl-c5")["att"][0] == "0.042"


def test_the_networks_that_are_probed_and_compared_have_twins_with_the_same_sites_of_the_same_kind() -> None:
    suffixes = ["", "-nl", "-nl-gaussian", "-nl-dot", "-nl-concat", "-nl-c3", "-nl-c5", "-snl", "-gc", "-gc-all"]
    assert [f"miniature-coco/resnet{suffix}" for suffix in suffixes] == TWINS
    for name in TWINS:
        full_size = entry(name).full_size
        assert full_size is not None
        ours, twins = entry(full_size).config.insertions, entry(name).config.insertions
        assert [(each.stage, each.blocks, each.place) for each in ours] == [
            (each.stage, each.blocks, each.place) for each in twins
        ]
        assert [type(each.block) for each in ours] == [type(each.block) for each in twins]


@pytest.mark.parametrize("name", TWINS)
def test_a_miniature_network_takes_images_alone(name: str) -> None:
    network = build(name, seed=0).eval()
    with torch.no_grad():
        (found,) = network(torch.randn(1, *entry(name).input_shape))
    assert found.boxes.shape == (len(found), 4)
    assert found.masks.shape == (len(found), 28, 28)
