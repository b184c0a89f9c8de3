"""Rows for chosen queries."""

import numpy as np
import pytest
import torch
from probe_reference import brute_avg_dist, brute_block, brute_context

import nlprobe
from nlprobe.blocks import ContextBlock, ContextConfig, NonLocal, NonLocalConfig
from nlprobe.errors import ConfigError


@pytest.mark.parametrize("instantiation", ["gaussian", "embedded_gaussian", "dot_product", "concat"])
@pytest.mark.parametrize("sub_sample", ["none", "pool_then_project"])
def test_maps_are_the_rows_of_the_written_out_matrix(instantiation: str, sub_sample: str) -> None:
    block = NonLocal(8, 2, NonLocalConfig(instantiation, zero_init=False, sub_sample=sub_sample)).eval()
    x = torch.randn(8, 6, 9)
    picture = np.zeros((60, 90, 3), np.uint8)
    maps = nlprobe.attention_map(block, x, [(0, 0), (59, 89), (25, 47)], picture=picture)
    att = brute_block(block, x[None])["att"]
    assert maps.query_grid == (6, 9)
    assert maps.grid == ((6, 9) if sub_sample == "none" else (3, 4))
    for row, position in zip(maps.maps, (0, 53, 2 * 9 + 4), strict=True):
        np.testing.assert_allclose(row.ravel(), att[position].detach().numpy(), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(maps.mean.ravel(), att.mean(0).detach().numpy(), rtol=1e-4, atol=1e-7)
    assert maps.avg_dist == pytest.approx(brute_avg_dist(att), rel=1e-4)
    assert maps.n_keys == att.shape[1]


def test_a_global_block_has_the_same_map_for_every_query() -> None:
    block = ContextBlock(8, ContextConfig.gc(2)).eval()
    x = torch.randn(8, 5, 4)
    maps = nlprobe.attention_map(block, x, [(0, 0), (4, 3)])
    expected = brute_context(block, x[None])["weights"].detach().numpy()
    np.testing.assert_allclose(maps.maps.reshape(2, -1), np.stack([expected] * 2), rtol=1e-5)
    assert maps.avg_dist == 0


def test_queries_outside_the_picture_are_refused() -> None:
    block = NonLocal(8).eval()
    for queries in ([(6, 0)], [(0, -1)], []):
        with pytest.raises(ConfigError):
            nlprobe.attention_map(block, torch.randn(8, 6, 9), queries)


def test_a_model_with_several_sites_asks_for_one() -> None:
    model = torch.nn.Sequential(NonLocal(8), NonLocal(8)).eval()
    with pytest.raises(ConfigError, match="has 2 sites here: `0`, `1`"):
        nlprobe.attention_map(model, torch.randn(8, 6, 9), [(0, 0)])
    assert nlprobe.attention_map(model, torch.randn(8, 6, 9), [(0, 0)], site="1").site == "1"


def test_no_hook_is_left_behind() -> None:
    block = NonLocal(8).eval()
    nlprobe.attention_map(block, torch.randn(8, 6, 9), [(0, 0)])
    assert not block._forward_hooks
    with pytest.raises(ConfigError, match="8 channels"):
        nlprobe.attention_map(block, torch.randn(3, 6, 9), [(0, 0)])
    assert not block._forward_hooks
