"""PSANet's operator: products by their formula."""

from nlprobe.blocks import PointWise, PointWiseConfig
from nlprobe.models import count_costs


def test_products_are_those_of_projections_masks_and_maps() -> None:
    channels, width, mask, outer, inner = 16, 4, 5 * 7, 9 * 13, 5 * 7
    costs = count_costs(PointWise(channels, 2, PointWiseConfig(5, 7)), (channels, 9, 13))
    branch = outer * channels * width + inner * (width * width + width * mask) + inner * inner * width
    assert costs.macs == 2 * branch + inner * 2 * width * channels
    assert costs.missed_products == ()
