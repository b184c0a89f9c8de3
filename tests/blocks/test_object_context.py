"""OCNet's object context pooling: its formula with the whole map written out."""

import dataclasses

import pytest
import torch
from blocks_reference import assert_value_and_gradients, batch_norm, convolved, randomised, relative_error
from torch import Tensor, nn

from nlprobe.blocks import ObjectContext, ObjectContextConfig, RowTransform
from nlprobe.errors import ConfigError

CONFIGS = {
    "default": ObjectContextConfig(dropout=0.0),
    "original": dataclasses.replace(ObjectContextConfig.original(), dropout=0.0),
}


def transformed(layer: RowTransform, x: Tensor) -> Tensor:
    normed = batch_norm(layer.norm, convolved(layer.linear, x))
    leaky = torch.where(normed > 0, normed, 0.01 * normed)
    return {nn.ReLU: normed.relu(), nn.LeakyReLU: leaky, nn.Identity: normed}[type(layer.activation)]


def formula(block: ObjectContext, x: Tensor) -> Tensor:
    key = transformed(block.key, x).flatten(2)
    weights = (key.mT @ key * key.shape[1] ** -0.5).softmax(-1)
    context = (convolved(block.value, x).flatten(2) @ weights.mT).unflatten(2, x.shape[2:])
    return transformed(block.fuse, torch.cat([convolved(block.output, context), x], 1))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_value_and_gradient_are_those_of_the_written_out_formula(config, training: bool) -> None:
    block = randomised(ObjectContext(8, config)).double().train(training)
    x = torch.randn(2, 8, 4, 5, dtype=torch.float64)
    assert_value_and_gradients(block, lambda x: formula(block, x), [x])


def test_permuting_the_positions_permutes_the_output() -> None:
    block = randomised(ObjectContext(8)).double().eval()
    x, order = torch.randn(2, 8, 12, dtype=torch.float64), torch.randperm(12)
    assert relative_error(block(x[..., order]), block(x)[..., order]) < 1e-12


def test_a_new_block_has_no_context_and_is_not_the_identity() -> None:
    block = ObjectContext(8).eval()
    contexts: list[Tensor] = []
    block.output.register_forward_hook(lambda module, args, output: contexts.append(output))
    x = torch.randn(2, 8, 4, 4)
    assert not torch.equal(block(x), x)
    assert not contexts[0].any()
    open_block = ObjectContext(8, ObjectContextConfig(zero_init=False))
    assert open_block.output.weight.any()


def test_training_drops_whole_channels_of_the_result() -> None:
    block = randomised(ObjectContext(64, ObjectContextConfig(dropout=0.5)))
    nn.init.ones_(block.fuse.norm.bias)
    z = block.train()(torch.randn(2, 64, 5, 5))
    gone = (z == 0).flatten(2).all(-1)
    assert 20 < gone.sum() < 108
    assert not (block.eval()(torch.randn(2, 64, 5, 5)) == 0).flatten(2).all(-1).all()


@pytest.mark.parametrize("bias", [True, False])
def test_parameters_are_those_of_the_formula(bias: bool) -> None:
    block = ObjectContext(512, ObjectContextConfig(norm_bias=bias))
    projections = 3 * 512 * 256 + 256 + 512  # key, value and W_z, two biases
    norms = 2 * 256 + 2 * 512
    assert sum(p.numel() for p in block.parameters()) == projections + 1024 * 512 + norms + bias * (256 + 512)


def test_settings_survive_json_and_print() -> None:
    config = ObjectContextConfig(4, "leaky_relu", "relu", True, 0.1, False)
    assert ObjectContextConfig.from_dict(config.as_dict()) == config
    for field in dataclasses.fields(config):
        assert f"{field.name}={getattr(config, field.name)!r}" in str(ObjectContext(8, config))


def test_an_input_with_other_channels_is_refused_in_words() -> None:
    with pytest.raises(ConfigError, match=r"`ObjectContext` of 8 channels got an input of shape `\(2, 4, 3, 3\)`"):
        ObjectContext(8)(torch.randn(2, 4, 3, 3))
