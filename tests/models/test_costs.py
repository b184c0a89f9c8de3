"""Counts against torch's own counter, against formulas written out by hand, and against the paper."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nlprobe.blocks import (
    AsymmetricPyramid,
    ChannelAttention,
    ContextBlock,
    ContextConfig,
    Disentangled,
    DisentangledConfig,
    NonLocal,
    NonLocalConfig,
    ObjectContext,
    PositionAttention,
)
from nlprobe.errors import ConfigError
from nlprobe.models import ARCHITECTURES, Costs, ResNet, build, count_costs, differing_cells, rows
from nlprobe.models.deformable import DeformableConvolution
from nlprobe.models.zoo.paper import paper_row

TABLE_8_PARAMS = {
    "baseline": 25_557_032,
    "+1 NL": 27_658_792,
    "+1 SNL": 26_607_657,
    "+1 GC": 25_690_345,
    "+all GC": 28_078_773,
    "avg+scale": 28_064_424,
    "avg+add": 28_064_424,
    "att+scale": 28_078_773,
    "att+add": 28_078_773,
}


def on_meta(architecture: str) -> ResNet:
    with torch.device("meta"):
        return ResNet(ARCHITECTURES[architecture])


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_macs_are_half_of_what_torch_counts_as_flops(name: str) -> None:
    network = on_meta(name)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, 3, 224, 192, device="meta"))
    costs = count_costs(network, (3, 224, 192))
    assert 2 * costs.macs == counter.get_total_flops()
    assert costs.missed_products == ()


@pytest.mark.parametrize("instantiation", ["gaussian", "embedded_gaussian", "dot_product"])
@pytest.mark.parametrize("sub_sample", ["none", "pool_then_project", "project_then_pool"])
def test_a_non_local_block_costs_its_written_out_formula(instantiation: str, sub_sample: str) -> None:
    channels, width, n = 8, 4, 6 * 10
    m = n if sub_sample == "none" else n // 4
    projected = m if sub_sample == "pool_then_project" else n
    block = NonLocal(channels, 2, NonLocalConfig(instantiation=instantiation, sub_sample=sub_sample))
    gaussian = instantiation == "gaussian"
    query_width = channels if gaussian else width
    queries_and_keys = 0 if gaussian else (n + projected) * channels * width
    values, last = projected * channels * width, n * width * channels
    expected = queries_and_keys + values + last + n * m * query_width + n * m * width
    assert count_costs(block, (channels, 6, 10)).macs == expected


def test_concat_weighs_every_pair() -> None:
    block = NonLocal(8, 2, NonLocalConfig(instantiation="concat"))
    n, d = 36, 4
    assert count_costs(block, (8, 6, 6)).macs == 4 * n * 8 * d + n * n * 2 * d + n * n * d


@pytest.mark.parametrize(
    "config, macs",
    [
        (ContextConfig.gc(4), 36 * 8 + 36 * 8 + 2 * 8 * 2),
        (ContextConfig.snl(), 36 * 8 + 36 * 8 + 8 * 8),
        (ContextConfig.se_with_ln(4), 2 * 8 * 2),
    ],
)
def test_a_context_block_costs_mask_pooling_and_transform(config: ContextConfig, macs: int) -> None:
    assert count_costs(ContextBlock(8, config), (8, 6, 6)).macs == macs


N, C = 6 * 10, 16
SEGMENTATION_BLOCKS = {
    # projections, then the products of queries and keys, and of the map and the values
    "position_attention": (PositionAttention(C), 2 * N * C * 2 + N * C * C + N * N * (2 + C)),
    "channel_attention": (ChannelAttention(C), 2 * C * C * N),
    "object_context": (ObjectContext(C), 3 * N * C * 8 + N * N * 2 * 8 + N * 2 * C * C),
    "asymmetric_pyramid": (AsymmetricPyramid(C), 3 * N * C * 8 + N * 110 * 2 * 8 + N * 2 * C * C),
    # the mask and its product with the values; W_z of the pairwise rows and of the one unary row
    "mmseg": (
        Disentangled(C, DisentangledConfig.mmseg()),
        3 * N * C * 8 + N * N * 2 * 8 + N * C + N * 8 + (N + 1) * 8 * C,
    ),
    "scene_parsing": (
        Disentangled(C, DisentangledConfig.scene_parsing()),
        2 * N * C * 8 + N * C * C + N * N * (8 + C) + N * C + N * C,
    ),
}


@pytest.mark.parametrize("block, macs", SEGMENTATION_BLOCKS.values(), ids=SEGMENTATION_BLOCKS)
def test_a_context_operator_of_segmentation_costs_its_written_out_formula(block: nn.Module, macs: int) -> None:
    costs = count_costs(block, (C, 6, 10))
    assert costs.macs == macs
    assert costs.missed_products == ()


def test_the_paper_counter_of_a_small_network_by_hand() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    )
    maps, pooled = 4 * 8 * 8, 4 * 4 * 4
    expected = maps * (27 + 1) + 4 * maps + maps + 4 * pooled + (16 + 1) * 4 + (2 * 4 - 1) * 5
    assert count_costs(network, (3, 8, 8)).paper_counter == expected


def test_the_counters_of_a_small_network_for_clips_by_hand() -> None:
    network = nn.Sequential(
        nn.Conv3d(3, 4, (3, 1, 1), padding=(1, 0, 0), bias=False),
        nn.BatchNorm3d(4),
        nn.ReLU(),
        nn.MaxPool3d((1, 2, 2)),
        nn.AvgPool3d(2),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    )
    maps, pooled, averaged = 4 * 6 * 8 * 8, 4 * 6 * 4 * 4, 4 * 3 * 2 * 2
    costs = count_costs(network, (3, 6, 8, 8))
    common = maps * 9 + maps
    assert costs.macs == maps * 9 + 4 * 5
    assert costs.paper_counter == common + 4 * maps + 4 * pooled + 9 * averaged + (averaged + 4) + (2 * 4 - 1) * 5
    assert costs.segmentation_counter == common + 2 * maps + maps + pooled + averaged + (4 + 1) * 5
    assert costs.missed_products == ()


def test_macs_of_a_network_for_clips_are_half_of_what_torch_counts_as_flops() -> None:
    with torch.device("meta"):
        network = build("miniature-kinetics/slowonly")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.empty(1, 3, 8, 64, 80, device="meta"))
    assert 2 * count_costs(network, (3, 8, 64, 80)).macs == counter.get_total_flops()


@pytest.mark.parametrize("config, extra", [(ContextConfig.gc(4), 288), (ContextConfig.se_with_ln(4), 37 * 8)])
def test_the_paper_counter_of_context_blocks_by_hand(config: ContextConfig, extra: int) -> None:
    mask = 36 * (8 + 1) if config.pooling == "attention" else 0
    transform = 2 * (8 + 1) + 2 + 8 * (2 + 1)
    assert count_costs(ContextBlock(8, config), (8, 6, 6)).paper_counter == mask + extra + transform


class Unknown(nn.Module):
    """Multiplies outside of any module, and has one that counts as nothing known."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.ConvTranspose1d(3, 3, 2)
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.linear(self.convolution(x.flatten(2)).mT)
        return (rows @ rows.mT).softmax(2).sin()


def test_an_upsampling_convolution_meets_each_input_once_and_the_papers_counter_sees_all_taps_at_every_output() -> None:
    costs = count_costs(nn.ConvTranspose2d(6, 4, 2, stride=2), (6, 5, 7))
    assert costs.macs == 5 * 7 * 6 * 4 * 4
    assert costs.paper_counter == 10 * 14 * 4 * (6 * 4 + 1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        nn.ConvTranspose2d(6, 4, 2, stride=2, device="meta")(torch.empty(1, 6, 5, 7, device="meta"))
    assert 2 * costs.macs == counter.get_total_flops()


def test_a_deformable_convolution_costs_the_plain_one_and_its_offsets() -> None:
    costs = count_costs(DeformableConvolution(8, 8, groups=2), (8, 5, 7))
    assert costs.macs == 5 * 7 * (8 * 9 * 4 + 18 * 9 * 8)
    assert costs.paper_counter == costs.macs + 5 * 7 * 18
    assert costs.missed_products == ()


def test_products_outside_of_known_modules_are_reported() -> None:
    costs = count_costs(Unknown(), (3, 4, 4))
    assert costs.missed_products == ("bmm", "convolution")
    assert costs.not_counted == {"bmm": 1, "convolution": 1, "sin": 1, "softmax": 1}
    assert costs.macs == 17 * 9


def test_what_is_not_counted_is_listed_with_its_calls() -> None:
    costs = count_costs(build("imagenet/resnet50-nl", seed=0), (3, 224, 224))
    assert costs.not_counted == {
        "AdaptiveAvgPool2d": 1,
        "BatchNorm1d": 1,
        "BatchNorm2d": 53,
        "MaxPool2d": 1,
        "ReLU": 49,
        "add": 17,
        "max_pool2d_with_indices": 1,
        "softmax": 1,
    }


def test_counting_leaves_the_network_as_it_was(device: torch.device) -> None:
    network = build("miniature-imagenet/resnet-nl", seed=0).to(device).train()
    fired: list[nn.Module] = []
    network.fc.register_forward_hook(lambda module, inputs, output: fired.append(module))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    classes = [type(module) for module in network.modules()]
    count_costs(network, (3, 128, 128))
    assert fired == []
    assert network.training
    assert [type(module) for module in network.modules()] == classes
    assert sum(len(module._forward_hooks) for module in network.modules()) == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert next(network.parameters()).device.type == device.type


def test_a_shared_parameter_counts_once() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    network[1].weight = network[0].weight
    assert count_costs(network, (4,)).params == 16 + 4 + 4


def test_an_input_that_does_not_fit_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match=r"does not take an input of shape \(4, 8, 8\)"):
        count_costs(nn.Conv2d(3, 3, 3), (4, 8, 8))


@pytest.mark.parametrize("table, row", [("8a", "+1 NL"), ("8b", "avg+add"), ("8b", "baseline")])
def test_a_cell_differs_where_ours_does_not_round_to_it(table: str, row: str) -> None:
    printed = paper_row(table, "ImageNet", row)
    exact = {name: float(printed.cells[name]) for name in ("params", "flops")}
    ours = Costs(round(exact["params"] * 1e6) + 4_999, 0, round((exact["flops"] + 0.0049) * 2**30), 0, {}, ())
    assert differing_cells(ours, printed) == []
    assert differing_cells(replace(ours, params=ours.params + 2), printed) == ["params"]
    assert differing_cells(replace(ours, paper_counter=ours.paper_counter + 2**20), printed) == ["flops"]


def test_table_8_has_these_parameters_and_two_cells_that_no_count_gives() -> None:
    differing = []
    for entry, row in rows():
        if row is None or not row.table.startswith("8"):
            continue
        with torch.device("meta"):
            costs = count_costs(build(entry.name), entry.input_shape)
        assert costs.params == TABLE_8_PARAMS[row.row]
        differing += [(row.table, row.row, cell) for cell in differing_cells(costs, row)]
    assert differing == [("8b", "avg+scale", "params"), ("8b", "avg+add", "params")]
