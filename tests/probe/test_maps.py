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


@pytest.mark.parametrize("instantiation", ["gaussian", "embedded_gaussian", "dot_product", "concat"])
@pytest.mark.parametrize("sub_sample", ["none", "pool_then_project"])
def test_maps_of_a_clip_are_the_rows_of_the_written_out_matrix(instantiation: str, sub_sample: str) -> None:
    block = NonLocal(8, 3, NonLocalConfig(instantiation, zero_init=False, sub_sample=sub_sample)).eval()
    x = torch.randn(8, 4, 6, 9)
    frames = np.zeros((8, 60, 90, 3), np.uint8)  # twice as many as the network saw
    maps = nlprobe.attention_map(block, x, [(0, 0, 0), (7, 59, 89), (5, 25, 47)], picture=frames)
    att = brute_block(block, x[None])["att"]
    assert maps.query_grid == (4, 6, 9)
    assert maps.grid == ((4, 6, 9) if sub_sample == "none" else (4, 3, 4))
    assert maps.maps.shape == (3, *maps.grid)
    for row, position in zip(maps.maps, (0, 4 * 54 - 1, 2 * 54 + 2 * 9 + 4), strict=True):
        np.testing.assert_allclose(row.ravel(), att[position].detach().numpy(), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(maps.mean.ravel(), att.mean(0).detach().numpy(), rtol=1e-4, atol=1e-7)
    assert maps.avg_dist == pytest.approx(brute_avg_dist(att), rel=1e-4)
    assert maps.n_keys == att.shape[1]


def test_the_frames_of_a_clip_are_shown_with_one_scale_where_no_picture_is_given() -> None:
    block = ContextBlock(3, ContextConfig.snl()).eval()
    x = torch.rand(3, 2, 5, 4)
    x[:, 1] *= 0.5
    maps = nlprobe.attention_map(block, x[None], [(1, 4, 3)])
    assert maps.image.shape == (2, 5, 4, 3)
    assert maps.image[0].max() == 255
    assert maps.image[1].max() < 140
    assert maps.maps.shape == (1, 2, 5, 4)
    assert maps.avg_dist == 0


def test_what_is_no_place_in_a_clip_is_refused() -> None:
    block, x = NonLocal(8, 3).eval(), torch.randn(8, 2, 6, 9)
    for queries, words in (
        ([(2, 0, 0)], r"query \(2, 0, 0\) lies outside the clip of 2 frames, height 6 and width 9"),
        ([(0, 0, 9)], "lies outside the clip"),
        ([(0, 0)], r"takes one image, and got a tensor of shape \(8, 2, 6, 9\)\n.*\(t, y, x\) in clips"),
        ([(0, 0, 0), (0, 0)], "are no places"),
        ([(0, 0, 0, 0)], "are no places"),
    ):
        with pytest.raises(ConfigError, match=words):
            nlprobe.attention_map(block, x, queries)
    with pytest.raises(ConfigError, match="queries of 3 numbers, and a picture of shape"):
        nlprobe.attention_map(block, x, [(0, 0, 0)], picture=np.zeros((6, 9, 3), np.uint8))
    with pytest.raises(ConfigError, match="takes one clip"):
        nlprobe.attention_map(block, x.expand(2, -1, -1, -1, -1), [(0, 0, 0)])


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
