"""The non-local block: its formula, its settings, and what it says to inputs that do not fit."""

import dataclasses
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from blocks_reference import relative_error, written_out
from torch import Tensor, nn

from nlprobe.blocks import INSTANTIATIONS, NonLocal, NonLocalConfig
from nlprobe.errors import ConfigError

SPATIAL = {1: (9,), 2: (5, 7), 3: (3, 4, 5)}
SUB_SAMPLES = ["none", "pool_then_project", "project_then_pool"]


def randomised(block: NonLocal) -> NonLocal:
    """All parameters and running statistics at random, none zero."""
    with torch.no_grad():
        for tensor in block.state_dict().values():
            if tensor.dtype.is_floating_point:
                tensor.uniform_(0.1, 1.0).mul_(torch.randint(0, 2, tensor.shape) * 2 - 1)
        if isinstance(block.norm, nn.BatchNorm1d):
            block.norm.running_var.abs_()
    return block


def formula(block: NonLocal, x: Tensor) -> Tensor:
    """Eq. 1 of the paper with every step written out, on convolutions as other code bases have them."""
    config, spatial = block.config, x.shape[2:]
    conv = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[block.dimension]
    pool = {1: lambda t: F.max_pool1d(t, 2), 2: lambda t: F.max_pool2d(t, 2), 3: lambda t: F.max_pool3d(t, (1, 2, 2))}

    def project(linear: nn.Linear | None, t: Tensor) -> Tensor:
        return (
            t
            if linear is None
            else conv(t, linear.weight.view(*linear.weight.shape, *(1,) * len(spatial)), linear.bias)
        )

    def keys(linear: nn.Linear | None) -> Tensor:
        if config.sub_sample == "pool_then_project":
            return project(linear, pool[block.dimension](x))
        if config.sub_sample == "project_then_pool":
            return pool[block.dimension](project(linear, x))
        return project(linear, x)

    query, key, value = (t.flatten(2).mT for t in (project(block.query, x), keys(block.key), keys(block.value)))
    scale = {
        "none": 1.0,
        "inv_sqrt": query.shape[2] ** -0.5,
        "inv_sqrt_in": x.shape[1] ** -0.5,
        "sqrt": query.shape[2] ** 0.5,
    }
    weights = (block.attention.weight_query, block.attention.weight_key) if config.instantiation == "concat" else None
    y = written_out(config.instantiation, query, key, value, scale[config.scale] / config.temperature, weights)
    y = project(block.output, y.mT.unflatten(2, spatial))
    if isinstance(block.norm, nn.BatchNorm1d):
        norm = block.norm
        y = F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, block.training, 0.0, norm.eps)
    return x + y


@pytest.mark.parametrize("dimension", SPATIAL)
@pytest.mark.parametrize("sub_sample", SUB_SAMPLES)
@pytest.mark.parametrize("instantiation", INSTANTIATIONS)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_value_and_gradient_are_those_of_equation_1(
    instantiation: str, sub_sample: str, dimension: int, training: bool
) -> None:
    norm = "batch" if training or dimension == 2 else "none"
    config = NonLocalConfig(instantiation, sub_sample=sub_sample, norm=norm)  # type: ignore[arg-type]
    block = randomised(NonLocal(6, dimension, config).double()).train(training)
    x = torch.randn(2, 6, *SPATIAL[dimension], dtype=torch.float64).mul_(0.5)
    upstream = torch.randn_like(x)
    inputs = [x.requires_grad_(), *block.parameters()]
    expected = formula(block, x)
    expected_gradients = torch.autograd.grad(expected, inputs, upstream)
    actual = block(x)
    gradients = torch.autograd.grad(actual, inputs, upstream)
    assert relative_error(actual, expected) < 1e-12
    largest = max(float(gradient.norm()) for gradient in expected_gradients)
    for gradient, reference in zip(gradients, expected_gradients, strict=True):
        assert (gradient - reference).norm() < 1e-10 * largest


@pytest.mark.parametrize("instantiation", INSTANTIATIONS)
def test_autocast_stays_as_near_to_float64_as_the_written_out_block_under_autocast(instantiation: str) -> None:
    block = randomised(NonLocal(16, 2, NonLocalConfig(instantiation, norm="none")))  # type: ignore[arg-type]
    x = torch.randn(2, 16, 9, 8).mul(0.3).requires_grad_()
    upstream = torch.randn_like(x)
    with torch.autocast("cpu", torch.bfloat16):
        actual, rival = block(x), formula(block, x)
    assert actual.dtype == torch.float32
    (gradient,) = torch.autograd.grad(actual, x, upstream)
    (rival_gradient,) = torch.autograd.grad(rival, x, upstream)
    exact = NonLocal(16, 2, block.config).double()
    exact.load_state_dict({name: tensor.double() for name, tensor in block.state_dict().items()})
    wide = x.detach().double().requires_grad_()
    expected = formula(exact, wide)
    (expected_gradient,) = torch.autograd.grad(expected, wide, upstream.double())
    assert relative_error(actual, expected) < 1.2 * relative_error(rival, expected) + 2e-3
    assert relative_error(gradient, expected_gradient) < 1.2 * relative_error(rival_gradient, expected_gradient) + 2e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("instantiation", INSTANTIATIONS)
def test_a_block_cast_as_a_whole_stays_near_float64(instantiation: str, dtype: torch.dtype) -> None:
    block = randomised(NonLocal(16, 2, NonLocalConfig(instantiation, norm="none", scale="none")))  # type: ignore[arg-type]
    block = block.to(dtype).eval()
    x = torch.randn(2, 16, 9, 8).mul(0.2).to(dtype)
    exact = NonLocal(16, 2, block.config).double().eval()
    exact.load_state_dict({name: tensor.double() for name, tensor in block.state_dict().items()})
    actual = block(x)
    assert actual.dtype == dtype
    assert (
        relative_error(actual, exact(x.double()))
        < {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 5e-3}[dtype]
    )


@pytest.mark.parametrize("instantiation", INSTANTIATIONS)
@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("training", [True, False])
def test_a_new_block_is_the_identity(instantiation: str, norm: str, training: bool) -> None:
    block = NonLocal(8, 2, NonLocalConfig(instantiation, norm=norm)).train(training)  # type: ignore[arg-type]
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_without_zero_init_a_new_block_is_not_the_identity_and_every_weight_learns(norm: str) -> None:
    for instantiation in INSTANTIATIONS:
        block = NonLocal(8, 2, NonLocalConfig(instantiation, norm=norm, zero_init=False))  # type: ignore[arg-type]
        x = torch.randn(2, 8, 4, 4)
        z = block(x)
        assert not torch.equal(z, x)
        z.square().sum().backward()
        for name, parameter in block.named_parameters():
            assert parameter.grad is not None, name


def test_resetting_draws_anew_and_keeps_the_zeros() -> None:
    block = NonLocal(8, 2, NonLocalConfig("concat"))
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    randomised(block).reset_parameters()
    after = block.state_dict()
    assert not torch.equal(after["value.weight"], before["value.weight"])
    assert not torch.equal(after["attention.weight_query"], before["attention.weight_query"])
    for zero in ("norm.weight", "norm.bias", "value.bias", "output.bias", "norm.running_mean"):
        assert not after[zero].any()


@pytest.mark.parametrize(("channels", "reduction", "width"), [(64, 2, 32), (64, 1, 64), (5, 2, 2), (3, 8, 1)], ids=str)
def test_the_inner_width_is_channels_by_reduction_and_at_least_one(channels: int, reduction: int, width: int) -> None:
    block = NonLocal(channels, 2, NonLocalConfig(reduction=reduction))
    assert block.query is not None
    assert block.query.out_features == block.value.out_features == block.output.in_features == width


def test_gaussian_has_no_query_and_no_key() -> None:
    block = NonLocal(8, 2, NonLocalConfig("gaussian"))
    assert block.query is None
    assert block.key is None
    assert not any(name.startswith(("query", "key")) for name in block.state_dict())


def test_scale_and_temperature_fold_into_one_factor() -> None:
    for instantiation, width in (("gaussian", 64), ("embedded_gaussian", 16)):
        factors = {"none": 1, "inv_sqrt": width**-0.5, "inv_sqrt_in": 64**-0.5, "sqrt": width**0.5}
        for (scale, factor), temperature in itertools.product(factors.items(), (1.0, 0.05)):
            config = NonLocalConfig(instantiation, reduction=4, scale=scale, temperature=temperature)  # type: ignore[arg-type]
            assert math.isclose(NonLocal(64, 2, config).attention.logit_scale, factor / temperature)


def test_biases_are_settings() -> None:
    block = NonLocal(8, 2, NonLocalConfig(bias=False, output_bias=False, norm="none"))
    assert not any(name.endswith("bias") for name, _ in block.named_parameters())
    block = NonLocal(8, 2, NonLocalConfig())
    assert all(f"{name}.bias" in block.state_dict() for name in ("query", "key", "value", "output", "norm"))


@pytest.mark.parametrize("instantiation", INSTANTIATIONS)
@pytest.mark.parametrize("sub_sample", SUB_SAMPLES)
def test_the_memory_layout_of_the_input_is_kept(instantiation: str, sub_sample: str) -> None:
    config = NonLocalConfig(instantiation, sub_sample=sub_sample, norm="none")  # type: ignore[arg-type]
    block = randomised(NonLocal(6, 2, config))
    x = torch.randn(2, 6, 5, 4)
    z = block(x)
    assert z.is_contiguous()
    last = block(x.to(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    sliced = block(torch.cat([x, x], 3)[..., :4])
    for other in (last, sliced, block(x.mT.contiguous().mT)):
        assert torch.allclose(other, z, atol=1e-5)


def test_hooks_on_the_attention_see_the_operands_of_the_product() -> None:
    for instantiation, sub_sample in itertools.product(INSTANTIATIONS, SUB_SAMPLES):
        block = NonLocal(6, 2, NonLocalConfig(instantiation, sub_sample=sub_sample))  # type: ignore[arg-type]
        seen: list[Tensor] = []
        block.attention.register_forward_hook(lambda module, args, output, seen=seen: seen.extend((*args, output)))
        x = torch.randn(2, 6, 5, 7)
        block(x)
        keys, width = 35 if sub_sample == "none" else 6, 6 if instantiation == "gaussian" else 3
        shapes = [(2, 35, width), (2, keys, width), (2, keys, 3), (2, 35, 3)]
        assert [tuple(tensor.shape) for tensor in seen] == shapes
        assert all(tensor.is_contiguous() for tensor in seen)


@pytest.mark.parametrize("instantiation", INSTANTIATIONS)
def test_permuting_the_positions_permutes_the_output(instantiation: str) -> None:
    block = randomised(NonLocal(6, 1, NonLocalConfig(instantiation)).double()).eval()  # type: ignore[arg-type]
    x, order = torch.randn(2, 6, 12, dtype=torch.float64), torch.randperm(12)
    assert relative_error(block(x[..., order]), block(x)[..., order]) < 1e-12


@pytest.mark.parametrize("instantiation", INSTANTIATIONS)
def test_one_image_of_one_position_works(instantiation: str) -> None:
    block = randomised(NonLocal(6, 2, NonLocalConfig(instantiation))).eval()  # type: ignore[arg-type]
    assert block(torch.randn(1, 6, 1, 1)).shape == (1, 6, 1, 1)


def test_an_input_with_other_axes_or_channels_is_refused_in_words() -> None:
    block = NonLocal(8, 2)
    with pytest.raises(
        ConfigError, match=r"2-dimensional `NonLocal` got an input of shape `\(2, 8, 4\)`\nit takes \(B, C, H, W\)"
    ):
        block(torch.randn(2, 8, 4))
    with pytest.raises(ConfigError, match=r"made for 8 channels and got an input of shape `\(2, 4, 4, 8\)`"):
        block(torch.randn(2, 4, 4, 8))
    with pytest.raises(ConfigError, match=r"it takes \(B, C, T, H, W\)"):
        NonLocal(8, 3)(torch.randn(2, 8, 4, 4))
    with pytest.raises(ConfigError, match="it must be 1, 2 or 3"):
        NonLocal(8, 4)
    with pytest.raises(ConfigError, match="`channels` of the block `non_local` is `0`"):
        NonLocal(0)


@pytest.mark.parametrize(("dimension", "spatial"), [(1, (1,)), (2, (1, 8)), (2, (8, 1)), (3, (4, 1, 8))], ids=str)
@pytest.mark.parametrize("sub_sample", SUB_SAMPLES[1:])
def test_a_map_too_small_to_pool_is_refused_in_words(dimension: int, spatial: tuple[int, ...], sub_sample: str) -> None:
    block = NonLocal(4, dimension, NonLocalConfig(sub_sample=sub_sample))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="too small for `sub_sample`"):
        block(torch.randn(2, 4, *spatial))


def test_time_is_not_pooled() -> None:
    block = NonLocal(4, 3, NonLocalConfig(sub_sample="pool_then_project"))
    keys: list[int] = []
    block.attention.register_forward_pre_hook(lambda module, args: keys.append(args[1].shape[1]))
    block(torch.randn(2, 4, 1, 5, 4))
    assert keys == [1 * 2 * 2]


def test_a_block_can_be_planned_on_the_meta_device() -> None:
    for instantiation in INSTANTIATIONS:
        with torch.device("meta"):
            block = NonLocal(64, 2, NonLocalConfig(instantiation))  # type: ignore[arg-type]
        assert block(torch.empty(2, 64, 50, 84, device="meta")).shape == (2, 64, 50, 84)


def test_settings_survive_json_and_print() -> None:
    config = NonLocalConfig("gaussian", 4, "inv_sqrt", 0.5, "pool_then_project", "none", False, False, False)
    assert NonLocalConfig.from_dict(config.as_dict()) == config
    text = str(NonLocal(8, 3, config))
    for field in dataclasses.fields(config):
        assert f"{field.name}={getattr(config, field.name)!r}" in text
    assert "dimension=3" in text
