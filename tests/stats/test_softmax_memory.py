"""Memory of the maps of twelve heads at N = 9 409, where the maps themselves take 4.2 GB."""

import sys

import pytest
from test_stats_memory import extra_memory

HEADS = "stats.Logits(*(t[:, None, :, :64].expand(1, 12, -1, -1) for t in ({size} * query, key)), 0.125)"


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/statm")
@pytest.mark.parametrize("size", [1.0, 0.01], ids=["few passes", "residuals"])
def test_many_heads_take_no_more_memory_than_one(size: float) -> None:
    logits = HEADS.format(size=size).replace("1.0 * query", "query")
    assert extra_memory(f"stats.softmax_statistics({logits}, average=True)") < 64
