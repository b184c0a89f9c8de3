"""Costs of squeeze-and-excitation, CBAM, gather-excite and GloRe by both definitions, from formulas by hand."""

import pytest
import torch

from nlprobe.blocks import CBAM, CBAMConfig, GatherExcite, GatherExciteConfig, GloRe, SqueezeExcitation
from nlprobe.models import build, count_costs, differing_cells, rows

C, R, H, W = 32, 2, 6, 10
N = H * W

# Residual blocks, channels and positions of c2 to c5 in a ResNet-50 at 224 x 224.
STAGES = ((3, 256, 56), (4, 512, 28), (6, 1024, 14), (3, 2048, 7))
PLAIN = 25_557_032


def test_squeeze_and_excitation_by_hand() -> None:
    costs = count_costs(SqueezeExcitation(C), (C, H, W))
    assert costs.params == 2 * C * R + R + C
    assert costs.macs == 2 * C * R
    average_pool, reduce, relu, expand = C * (N + 1), R * (C + 1), R, C * (R + 1)
    assert costs.paper_counter == average_pool + reduce + relu + expand
    assert costs.segmentation_counter == C * N + reduce + relu + expand
    assert costs.missed_products == ()


@pytest.mark.parametrize("size", [(H, W), (2, 3, W)])
def test_a_global_reasoning_unit_by_hand(size: tuple[int, ...]) -> None:
    costs = count_costs(GloRe(C), (C, *size))
    nodes, states = C // 4, C // 2
    projections, back = N * C * (nodes + states), N * states * C
    reasoning = states * nodes * nodes + nodes * states * states
    products = 2 * N * nodes * states
    biases, norm, relu = N * (nodes + states) + states * nodes, N * C, nodes * states
    assert costs.params == (C + 1) * (nodes + states) + (nodes + 1) * nodes + states * states + states * C + 2 * C
    assert costs.macs == projections + products + reasoning + back
    assert costs.paper_counter == costs.macs + biases + 4 * norm + relu
    assert costs.segmentation_counter == costs.macs + biases + 2 * norm + relu
    assert costs.missed_products == ()


@pytest.mark.parametrize("bias", [True, False])
def test_cbam_by_hand(bias: bool) -> None:
    costs = count_costs(CBAM(C, CBAMConfig(bias=bias)), (C, H, W))
    assert costs.params == 2 * C * R + (R + C if bias else 0) + 2 * 49 + 2
    assert costs.macs == 2 * (2 * C * R) + N * 2 * 49
    mlp = R * (C + bias) + R + C * (R + bias)
    average_pool, max_pool = C * (N + 1), C * N
    assert costs.paper_counter == average_pool + max_pool + 2 * mlp + N * 2 * 49 + 4 * N
    assert costs.segmentation_counter == 2 * C * N + 2 * mlp + N * 2 * 49 + 2 * N
    assert costs.missed_products == ()


@pytest.mark.parametrize("variant", ["theta_minus", "theta", "theta_plus"])
def test_gather_excite_of_global_extent_by_hand(variant: str) -> None:
    size = None if variant == "theta_minus" else (H, W)
    costs = count_costs(GatherExcite(C, GatherExciteConfig(variant, size=size)), (C, H, W))  # type: ignore[arg-type]
    weighted, plus = variant != "theta_minus", variant == "theta_plus"
    bottleneck = C + R * (C + 1) + R + C * (R + 1)  # with the ReLUs before it and in it
    assert costs.params == (C * (N + 2) if weighted else 0) + (2 * C * R + R + C if plus else 0)
    assert costs.macs == (C * N if weighted else 0) + (2 * C * R if plus else 0)
    gathering = C * N + 4 * C if weighted else C * (N + 1)
    assert costs.paper_counter == gathering + (bottleneck if plus else 0)
    assert costs.missed_products == ()


@pytest.mark.parametrize("variant", ["theta_minus", "theta", "theta_plus"])
def test_gather_excite_of_extent_4_by_hand(variant: str) -> None:
    costs = count_costs(GatherExcite(C, GatherExciteConfig(variant, 4)), (C, H, W))  # type: ignore[arg-type]
    half, quarter = 3 * 5, 2 * 3
    plus = variant == "theta_plus"
    if variant == "theta_minus":
        assert (costs.params, costs.macs, costs.paper_counter) == (0, 0, C * quarter * (49 + 1))
        return
    assert costs.params == 2 * C * (9 + 2) + (2 * C * R + R + C if plus else 0)
    products = C * 9 * (half + quarter)
    assert costs.macs == products + (2 * C * R * quarter if plus else 0)
    norms_and_relu = 4 * C * (half + quarter) + C * half
    bottleneck = quarter * (C + R * (C + 1) + R + C * (R + 1)) if plus else 0
    assert costs.paper_counter == products + norms_and_relu + bottleneck


def by_hand(block: object) -> int:
    return PLAIN + sum(count * block(channels, side) for count, channels, side in STAGES)  # type: ignore[operator]


def bottleneck(channels: int, side: int) -> int:
    return 2 * channels * (channels // 16) + channels // 16 + channels


NETWORKS = {
    "imagenet/resnet50-se": by_hand(bottleneck),
    "imagenet/resnet50-cbam": by_hand(lambda c, s: bottleneck(c, s) + 2 * 49 + 2),
    "imagenet/resnet50-ge-theta-minus": PLAIN,
    "imagenet/resnet50-ge-theta": by_hand(lambda c, s: c * (s * s + 2)),
    "imagenet/resnet50-ge-theta-plus": by_hand(lambda c, s: c * (s * s + 2) + bottleneck(c, s)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_networks_have_these_parameters(name: str) -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in build(name).parameters()) == NETWORKS[name]


def test_table_9_has_three_cells_that_the_authors_own_blocks_do_not_give() -> None:
    differing, counted = [], {}
    for entry, row in rows():
        if row is None or row.table != "9":
            continue
        with torch.device("meta"):
            counted[row.row] = count_costs(build(entry.name), entry.input_shape)
        cells = differing_cells(counted[row.row], row)
        differing += [(row.row, cell) for cell in cells]
        assert bool(entry.remark) >= bool(cells)
    assert differing == [("SENet", "params"), ("CBAM", "params"), ("CBAM", "flops")]
    # what the remarks say of them
    biases = sum(count * (channels // 16 + channels) for count, channels, _ in STAGES)
    assert [f"{(counted[row].params - biases) / 1e6:.3f}" for row in ("SENet", "CBAM")] == ["28.072", "28.074"]
    pools = sum(count * channels * (2 * side * side + 1) for count, channels, side in STAGES)
    assert f"{(counted['CBAM'].paper_counter - pools) / 2**30:.3f}" == "3.868"
