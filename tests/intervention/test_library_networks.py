"""Interventions in networks of other libraries, held to what `stats` measures there."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import nlprobe
from nlprobe.errors import ConfigError
from nlprobe.intervention import intervene


def drawn(model: nn.Module) -> nn.Module:
    """With weights that make maps which differ."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return model.double().eval()


def image_errors(model: nn.Module, *args: Any, **kwargs: Any) -> dict[str, np.ndarray]:
    """By site, `mean_map_error` of the output, an image after the other."""
    with nlprobe.probe(model, quantities=("output",)) as probe, torch.no_grad():
        model(*args, **kwargs)
    records = probe.frame().query("quantity == 'output' and positions == 'all'")
    return {site: rows["mean_map_error"].to_numpy() for site, rows in records.groupby("site")}


def pictures(side: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_the_mean_map_changes_a_timm_vit_as_stats_says() -> None:
    timm = pytest.importorskip("timm")
    model = drawn(timm.create_model("vit_tiny_patch16_224", depth=2, img_size=64))
    errors, before = image_errors(model, pictures(64)), model(pictures(64)).detach()
    with intervene(model, "mean") as intervention, torch.no_grad():
        after = model(pictures(64))
    assert set(intervention.changes()) == {"blocks.0.attn", "blocks.1.attn"}
    # the second site gets another input than without an intervention
    np.testing.assert_allclose(intervention.changes()["blocks.0.attn"], errors["blocks.0.attn"], rtol=1e-8)
    assert float((after - before).abs().max()) > 1e-4
    for site, error in errors.items():
        with intervene(model, "mean", site) as alone, torch.no_grad():
            model(pictures(64))
        np.testing.assert_allclose(alone.changes()[site], error, rtol=1e-8)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_every_window_gets_its_own_mean_map(library: str) -> None:
    if library == "timm":
        timm = pytest.importorskip("timm")
        settings = {"window_size": 4, "embed_dim": 16, "depths": (2,), "num_heads": (2,), "img_size": 32}
        model = timm.models.swin_transformer.SwinTransformer(patch_size=4, **settings)
    else:
        from torchvision.models.swin_transformer import SwinTransformer

        model = SwinTransformer([4, 4], 16, [2], [2], [4, 4])
    model = drawn(model)
    errors = image_errors(model, pictures(32))
    for site, error in errors.items():
        with intervene(model, "mean", site) as alone, torch.no_grad():
            model(pictures(32))
        assert np.ptp(error) > 0
        # stats averages the windows of an image, each with its own error; here they are one number of an image
        with intervene(model, "off", site) as off, torch.no_grad():
            model(pictures(32))
        np.testing.assert_allclose(off.changes()[site], 1, rtol=1e-8)
        assert 0.3 * error.min() < alone.changes()[site].min() <= alone.changes()[site].max() < 3 * error.max()


def test_padded_texts_keep_to_their_tokens() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=50
    )
    model = drawn(transformers.BertModel(config))
    ids = torch.arange(12).view(2, 6) + 1
    seen = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    with intervene(model, "uniform"), torch.no_grad():
        both = model(input_ids=ids, attention_mask=seen).last_hidden_state
        short = model(input_ids=ids[1:, :3]).last_hidden_state
    torch.testing.assert_close(both[1:, :3], short)


def test_the_maps_of_a_causal_language_model_are_made_uniform_but_not_averaged() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=16,
        vocab_size=50,
    )
    model = drawn(transformers.LlamaModel(config))
    ids = torch.arange(12).view(2, 6) + 1
    with pytest.raises(ConfigError, match="is causal"), intervene(model, "mean"), torch.no_grad():
        model(input_ids=ids)
    with intervene(model, "uniform"), torch.no_grad():
        whole = model(input_ids=ids).last_hidden_state
        part = model(input_ids=ids[:, :4]).last_hidden_state
    torch.testing.assert_close(whole[:, :4], part)


def test_an_encoder_of_torch_is_changed_in_spite_of_its_fast_path() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 16, batch_first=True)
    model = drawn(nn.TransformerEncoder(layer, 2))
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    with torch.no_grad():
        before = model(x)
        with intervene(model, "off") as off:
            after = model(x)
        assert torch.allclose(model(x), before)
    assert set(off.changes()) == {"layers.0.self_attn", "layers.1.self_attn"}
    assert float((after - before).abs().max()) > 1e-3
