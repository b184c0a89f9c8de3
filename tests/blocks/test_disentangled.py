"""The disentangled non-local block: every published form against its formula with the whole map written out."""

import dataclasses
import itertools
import math

import pytest
import torch
from blocks_reference import assert_value_and_gradients, batch_norm, convolved, randomised, relative_error
from torch import Tensor, nn

from nlprobe.blocks import Disentangled, DisentangledConfig
from nlprobe.errors import ConfigError

PUBLISHED = {
    "paper": DisentangledConfig(),
    "mmseg": DisentangledConfig.mmseg(),
    "object_detection": DisentangledConfig.object_detection(2),
    "scene_parsing": DisentangledConfig.scene_parsing(),
    "non_local_2d": DisentangledConfig.non_local_2d(2),
}
published = pytest.mark.parametrize("config", PUBLISHED.values(), ids=PUBLISHED)


def whitened(config: DisentangledConfig, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Queries (B, N, d) and keys (B, d, N), less what the public code takes off; its layouts and axes."""
    if config.whitening == "positions":
        return query - query.mean(1, keepdim=True), key - key.mean(2, keepdim=True)
    if config.whitening == "mixed":
        return query - query.mean(2).unsqueeze(2), key - key.mean(2).unsqueeze(2)
    if config.whitening == "image":
        return query - query.flatten(1).mean(1)[:, None, None], key - key.flatten(1).mean(1)[:, None, None]
    return query, key


def formula(block: Disentangled, x: Tensor) -> Tensor:
    """Convolutions, maps and sums one by one, with the map of all pairs in memory."""
    config, spatial = block.config, x.shape[2:]
    query, key, value = (convolved(layer, x).flatten(2) for layer in (block.query, block.key, block.value))
    query, key = whitened(config, query.mT, key)
    factor = {"none": 1.0, "inv_sqrt": key.shape[1] ** -0.5, "sqrt": key.shape[1] ** 0.5}[config.scale]
    pairwise = ((query @ key) * factor / config.temperature).softmax(-1)
    terms = [(pairwise @ value.mT).mT.unflatten(2, spatial)]
    base = x
    if block.unary is not None:
        mask = convolved(block.unary.mask, x).flatten(2).softmax(-1)
        terms.append((value @ mask.mT).view(*value.shape[:2], *(1,) * len(spatial)))
    if block.context is not None:
        base = block.context(x)
    if block.gate is not None:
        terms[0] = terms[0] * block.gate.gamma
        return base + sum(terms[1:], terms[0])

    def project(term: Tensor) -> Tensor:
        assert block.output is not None
        projected = convolved(block.output, term)
        return batch_norm(block.norm, projected) if isinstance(block.norm, nn.BatchNorm1d) else projected

    if config.output == "project_apart":
        return base + project(terms[0]) + project(terms[1])
    return base + project(sum(terms[1:], terms[0]))


@published
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("spatial", [(5, 6), (3, 3, 4)], ids=["2d", "3d"])
def test_every_published_form_is_its_written_out_formula(config, spatial, training: bool) -> None:
    block = randomised(Disentangled(8, config)).double().train(training)
    if config.temperature < 1:
        for layer in (block.query, block.key):
            nn.init.normal_(layer.weight, std=0.1)
    x = torch.randn(3, 8, *spatial, dtype=torch.float64).mul_(0.5)
    assert_value_and_gradients(block, lambda x: formula(block, x), [x])


@pytest.mark.parametrize("whitening", ["positions", "image", "mixed", "none"])
@pytest.mark.parametrize("unary", ["shared", "own", "none"])
@pytest.mark.parametrize("output", ["project", "gamma"])
def test_settings_combine_freely(whitening: str, unary: str, output: str) -> None:
    gamma = {"norm": "none", "output_bias": False} if output == "gamma" else {}
    config = DisentangledConfig(2, whitening, "sqrt", 2.0, unary, output, **gamma)  # type: ignore[arg-type]
    block = randomised(Disentangled(6, config)).double().eval()
    assert_value_and_gradients(block, lambda x: formula(block, x), [torch.randn(2, 6, 4, 5, dtype=torch.float64)])


@published
def test_permuting_the_positions_permutes_the_output(config: DisentangledConfig) -> None:
    block = randomised(Disentangled(8, config)).double().eval()
    x, order = torch.randn(2, 8, 12, dtype=torch.float64), torch.randperm(12)
    assert relative_error(block(x[..., order]), block(x)[..., order]) < 1e-12


def test_what_is_taken_off_all_keys_changes_nothing_and_what_is_taken_off_queries_does() -> None:
    block = randomised(Disentangled(8)).double().eval()
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    expected = block(x)
    with torch.no_grad():
        block.key.bias.add_(3.0)
        block.query.bias.add_(3.0)
    assert relative_error(block(x), expected) < 1e-12
    block.whiten = lambda query, key: (query, key)  # type: ignore[method-assign]
    assert relative_error(block(x), expected) > 1e-3


def test_the_four_whitenings_give_four_different_blocks() -> None:
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    outputs = []
    for whitening in ("positions", "image", "mixed", "none"):
        block = Disentangled(8, DisentangledConfig(whitening=whitening)).double().eval()  # type: ignore[arg-type]
        torch.manual_seed(0)
        outputs.append(randomised(block)(x))
    for one, other in itertools.combinations(outputs, 2):
        assert relative_error(one, other) > 1e-4


@published
@pytest.mark.parametrize("training", [True, False])
def test_a_new_block_is_the_identity_but_for_a_shared_unary_term_that_nothing_gates(config, training: bool) -> None:
    block = Disentangled(8, config).train(training)
    x = torch.randn(2, 8, 4, 4)
    difference = block(x) - x
    if config.output == "gamma":
        assert not torch.equal(difference, torch.zeros_like(x))
        assert relative_error(difference, difference[..., :1, :1].expand_as(difference)) < 1e-4
    else:
        assert torch.equal(block(x), x)


@published
def test_without_zero_init_every_weight_learns(config: DisentangledConfig) -> None:
    block = Disentangled(8, dataclasses.replace(config, zero_init=False))
    block(torch.randn(2, 8, 4, 4)).square().sum().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0 or name in ("key.bias", "query.bias", "unary.mask.bias"), name


@pytest.mark.parametrize(
    ("config", "count"),
    [
        # W_q, W_k, W_v and W_z, the mask, and the norm
        (DisentangledConfig.mmseg(), 3 * (512 * 256 + 256) + 256 * 512 + 513 + 1024),
        (DisentangledConfig.object_detection(), 2 * (512 * 128 + 128) + 512 * 512 + 513 + 1),
        (DisentangledConfig.scene_parsing(), 2 * (512 * 256 + 256) + 512 * 512 + 513 + 1),
        # W_q, W_k, W_v, W_z with biases, and a context block with bottleneck and layer norm
        (DisentangledConfig.non_local_2d(), 3 * (512 * 128 + 128) + 129 * 512 + 513 + 513 * 128 + 256 + 129 * 512),
    ],
)
def test_parameters_are_those_of_the_formula(config: DisentangledConfig, count: int) -> None:
    assert sum(parameter.numel() for parameter in Disentangled(512, config).parameters()) == count


def test_scale_and_temperature_fold_into_one_factor() -> None:
    for scale, factor in (("none", 1.0), ("inv_sqrt", 0.25), ("sqrt", 4.0)):
        config = DisentangledConfig(4, scale=scale, temperature=0.05)  # type: ignore[arg-type]
        assert math.isclose(Disentangled(64, config).attention.logit_scale, factor / 0.05)
    assert math.isclose(DisentangledConfig.mmseg().logit_scale(512), 1.25)


def test_settings_that_contradict_each_other_are_refused_in_words() -> None:
    with pytest.raises(ConfigError, match="with `output` = `gamma` there is no W_z, yet `norm` is `batch`"):
        DisentangledConfig(output="gamma")
    with pytest.raises(ConfigError, match="`project_apart` takes W_z of the unary term too"):
        DisentangledConfig(output="project_apart", unary="own")
    with pytest.raises(ConfigError, match=r"`Disentangled` of 8 channels got an input of shape `\(2, 4, 8\)`"):
        Disentangled(8)(torch.randn(2, 4, 8))


def test_one_image_is_too_few_to_train_a_norm_on_its_unary_row() -> None:
    block = Disentangled(8, DisentangledConfig.mmseg())
    with pytest.raises(ConfigError, match="there is one image\ntrain with two or more"):
        block(torch.randn(1, 8, 4, 4))
    assert block.eval()(torch.randn(1, 8, 4, 4)).shape == (1, 8, 4, 4)


@published
def test_settings_survive_json_and_print(config: DisentangledConfig) -> None:
    assert DisentangledConfig.from_dict(config.as_dict()) == config
    text = str(Disentangled(8, config))
    for field in dataclasses.fields(config):
        assert f"{field.name}={getattr(config, field.name)!r}" in text


@published
def test_resetting_draws_anew_and_keeps_the_zeros(config: DisentangledConfig) -> None:
    block = Disentangled(8, config)
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    randomised(block).reset_parameters()
    for name, tensor in block.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        assert torch.equal(tensor, before[name]) == (before[name].unique().numel() == 1), name
