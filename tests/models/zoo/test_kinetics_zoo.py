"""Tables 10 and 11 and the probe targets of Tables 1 to 3: every row by name, with the counts behind the cells."""

from dataclasses import replace

import pytest
import torch

from nlprobe.blocks import ContextConfig, GloReConfig, NonLocalConfig
from nlprobe.models import (
    Costs,
    VideoConfig,
    build,
    costs_of,
    differing_cells,
    entry,
    load_backbone,
    names,
    paper_distances,
    rows,
)

FULL = [name for name in names() if name.startswith("kinetics/")]
PRINTED = [name for name in FULL if entry(name).paper]
# Cells that no honest count reproduces.
DIFFERING = {
    ("10", "+5 NL"): ["flops"],
    ("11", "NLNet"): ["flops"],
    ("10", "+all GC"): ["params"],
    ("11", "GCNet"): ["params"],
    ("11", "GloRe"): ["flops"],  # of another network
}


@pytest.fixture(scope="module")
def costs() -> dict[str, Costs]:
    return {name: costs_of(name) for name in FULL}


def test_the_printed_rows_are_those_of_the_paper() -> None:
    printed = [(row.table, row.row) for _, row in rows() if row and row.dataset == "Kinetics"]
    assert [row for table, row in printed if table == "1"] == [
        *("baseline", "Gaussian", "E-Gaussian", "Dot product", "Concat")
    ]
    assert [row for table, row in printed if table == "2"] == ["c3", "c4"]
    assert [row for table, row in printed if table == "3"] == ["E-Gaussian", "Gaussian"]
    assert [row for table, row in printed if table == "10"] == ["baseline", "+5 NL", "+5 SNL", "+5 GC", "+all GC"]
    assert [row for table, row in printed if table == "11"] == ["Slow-only", "GloRe", "NLNet", "GCNet"]


def test_only_the_cells_known_to_be_wrong_differ(costs: dict[str, Costs]) -> None:
    found = {}
    for each, row in rows():
        if row and each.name in costs and (cells := differing_cells(costs[each.name], row)):
            found[row.table, row.row] = cells
            assert each.remark
    assert found == DIFFERING


def test_the_parameters_are_those_of_the_layers(costs: dict[str, Costs]) -> None:
    baseline = 25_557_032 - 1000 * 2049 + 400 * 2049  # torchvision's ResNet-50 with another classifier
    # two frames more in the first convolutions of c4 and c5
    baseline += 2 * ((512 + 5 * 1024) * 256 + (1024 + 2 * 2048) * 512)
    assert costs["kinetics/slowonly50"].params == baseline

    def non_local(channels: int) -> int:
        width = channels // 2
        return 3 * (channels + 1) * width + (width + 1) * channels + 2 * channels

    assert costs["kinetics/slowonly50-nl"].params == baseline + 2 * non_local(512) + 3 * non_local(1024)
    assert costs["kinetics/slowonly50-nl-c3"].params == baseline + 2 * non_local(512)
    assert costs["kinetics/slowonly50-nl-c4"].params == baseline + 3 * non_local(1024)
    simplified = [channels + 1 + (channels + 1) * channels for channels in (512, 1024)]
    assert costs["kinetics/slowonly50-snl"].params == baseline + 2 * simplified[0] + 3 * simplified[1]

    def global_context(channels: int) -> int:
        hidden = channels // 4
        return channels + 1 + (channels + 1) * hidden + 2 * hidden + (hidden + 1) * channels

    five = 2 * global_context(512) + 3 * global_context(1024)
    everywhere = 4 * global_context(512) + 6 * global_context(1024) + 3 * global_context(2048)

    def global_reasoning(channels: int) -> int:
        nodes, states = channels // 4, channels // 2
        projections = (channels + 1) * (nodes + states)
        return projections + (nodes + 1) * nodes + states * states + states * channels + 2 * channels

    units = 2 * global_reasoning(512) + 3 * global_reasoning(1024)
    assert costs["kinetics/slowonly50-glore"].params == baseline + units
    assert costs["kinetics/slowonly50-gc"].params == baseline + five
    assert costs["kinetics/slowonly50-gc-all"].params == baseline + everywhere


def test_five_blocks_cost_their_written_out_products_with_keys_pooled_in_space(costs: dict[str, Costs]) -> None:
    added = 0
    for channels, n, count in ((512, 8 * 28 * 28, 2), (1024, 8 * 14 * 14, 3)):
        m, width = n // 4, channels // 2
        added += count * (2 * (n + m) * channels * width + 2 * n * m * width)
    assert costs["kinetics/slowonly50-nl"].macs - costs["kinetics/slowonly50"].macs == added
    assert all(count.missed_products == () for count in costs.values())


def test_the_blocks_stand_where_the_costs_and_the_code_have_them() -> None:
    sites = ["layer2.1", "layer2.3", "layer3.1", "layer3.3", "layer3.5"]
    for suffix in ("nl", "nl-gaussian", "nl-dot", "nl-concat", "snl", "gc"):
        assert entry(f"kinetics/slowonly50-{suffix}").config.sites() == [f"{site}:after_block" for site in sites]
    assert entry("kinetics/slowonly50-nl-c3").config.sites() == ["layer2.1:after_block", "layer2.3:after_block"]
    assert entry("kinetics/slowonly50-nl-c4").config.sites() == [f"{site}:after_block" for site in sites[2:]]
    everywhere = entry("kinetics/slowonly50-gc-all").config.sites()
    assert len(everywhere) == 4 + 6 + 3
    assert all(site.endswith(":after_1x1") for site in everywhere)
    block = entry("kinetics/slowonly50-nl").config.insertions[0].block
    assert block == NonLocalConfig("embedded_gaussian", reduction=2, scale="none", sub_sample="pool_then_project")
    assert {each.block for each in entry("kinetics/slowonly50-gc").config.insertions} == {ContextConfig.gc(4)}


def test_the_placements_of_other_projects_have_names_of_their_own() -> None:
    config = entry("kinetics/slowonly50-nl-mmaction2").config
    assert config.sites() == [
        f"{site}:after_block" for site in ("layer2.0", "layer2.2", "layer3.0", "layer3.2", "layer3.4")
    ]
    assert {each.block for each in config.insertions} == {
        NonLocalConfig("embedded_gaussian", scale="inv_sqrt", sub_sample="project_then_pool")
    }
    units = entry("kinetics/slowonly50-glore").config
    assert units.sites() == config.sites()
    assert {each.block for each in units.insertions} == {GloReConfig(4)}
    deep = entry("kinetics/slowonly101-nl").config
    assert deep.sites() == [
        f"{site}:after_block" for site in ("layer2.1", "layer2.3", "layer3.6", "layer3.13", "layer3.20")
    ]


def test_every_printed_model_has_a_miniature_twin_with_the_same_blocks() -> None:
    twins = {entry(name).full_size: entry(name) for name in names() if name.startswith("miniature-kinetics/")}
    assert set(twins) >= set(PRINTED)
    for name in PRINTED:
        ours, twin = entry(name).config, twins[name].config
        assert [(each.stage, each.place) for each in ours.insertions] == [
            (each.stage, each.place) for each in twin.insertions
        ]
        for full, small in zip(ours.insertions, twin.insertions, strict=True):
            unpooled = {"sub_sample": "none"} if isinstance(full.block, NonLocalConfig) else {}
            assert small.block == replace(full.block, **unpooled)
        if name in ("kinetics/slowonly50-nl", "kinetics/slowonly50-gc"):
            assert len(ours.sites()) == 5
            assert len(twin.sites()) == 4


@pytest.mark.parametrize("name", [name for name in names() if name.startswith("miniature-kinetics/")])
def test_a_miniature_network_gives_logits_of_a_clip(name: str, device: torch.device) -> None:
    network = build(name, seed=0).to(device).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 3, 4, 32, 48, device=device)).shape == (1, 10)


def test_the_miniature_imagenet_network_is_a_beginning_for_the_twins() -> None:
    pictures = build("miniature-imagenet/resnet", seed=3).eval()
    clips = build("miniature-kinetics/slowonly-gc", seed=4).eval()
    load_backbone(clips, pictures.state_dict(), classifier=False, inflation="centre")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = pictures.features(images)["c5"]
        found = clips.features(images.unsqueeze(2).repeat(1, 1, 4, 1, 1))["c5"]
    torch.testing.assert_close(found, expected.unsqueeze(2).expand_as(found), rtol=1e-3, atol=1e-4)


def test_the_networks_start_from_the_same_trunk() -> None:
    plain = build("miniature-kinetics/slowonly", seed=0).state_dict()
    other = build("miniature-kinetics/slowonly-gc-all", seed=0).state_dict()
    assert all(torch.equal(plain[name], other[name]) for name in plain)


def test_the_distances_come_as_printed_and_the_two_stages_add_up_to_all_five_blocks() -> None:
    found = {quantity: text for quantity, (text, _) in paper_distances("miniature-kinetics/slowonly-nl").items()}
    assert list(found.items()) == [
        *(("input", "0.358"), ("key", "0.356"), ("query", "0.264"), ("prod", "0.404")),
        *(("att", "0.004"), ("output", "0.003")),
    ]
    c3, c4 = (float(paper_distances(f"kinetics/slowonly50-nl-{stage}")["input"][0]) for stage in ("c3", "c4"))
    assert (2 * c3 + 3 * c4) / 5 == pytest.approx(float(found["input"]), abs=0.0025)


def test_every_model_is_one_of_clips() -> None:
    for name in names():
        if "kinetics" in name:
            known = entry(name)
            assert isinstance(known.config, VideoConfig)
            assert known.task == "action_recognition"
            assert known.input_shape[:2] == (3, 8)
            assert known.config.classes == (10 if "miniature" in name else 400)
