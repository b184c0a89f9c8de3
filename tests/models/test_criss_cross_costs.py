"""CCNet's operator: parameters and products by their formulas, alone and in the paper's segmentation head."""

from dataclasses import replace

import pytest
import torch

from nlprobe.blocks import CrissCross, CrissCrossConfig
from nlprobe.models import build, count_costs
from nlprobe.models.zoo.cityscapes import FULL


@pytest.mark.parametrize("recurrence", [1, 2])
def test_every_step_costs_its_projections_and_its_crosses(recurrence: int) -> None:
    channels, width, height, columns = 16, 2, 6, 10
    n = height * columns
    block = CrissCross(channels, 2, CrissCrossConfig(recurrence=recurrence))
    costs = count_costs(block, (channels, height, columns))
    projections = n * channels * (2 * width + channels)
    assert costs.macs == recurrence * (projections + n * (height + columns - 1) * (width + channels))
    assert costs.missed_products == ()


def test_ccnets_row_has_its_parameters_and_its_true_operations() -> None:
    """71.287 M where the paper prints 71.49, and 655.15 G by its counter where it prints 653.52."""
    with torch.device("meta"):
        network = build(replace(FULL, context=CrissCrossConfig()))
    costs = count_costs(network, (3, 769, 769))
    assert round(costs.params / 1e6, 3) == 71.287
    assert round(costs.segmentation_counter / 1e9, 2) == 655.15
