"""The global context framework: eq. 2 to 5, every combination of settings, and its named members."""

import dataclasses
import itertools

import pytest
import torch
from blocks_reference import relative_error
from torch import Tensor, nn

from nlprobe.blocks import ContextBlock, ContextConfig
from nlprobe.errors import ConfigError

CONFIGS = [
    ContextConfig(pooling, transform, 4 if bottleneck else 1, activation, norm, fusion)
    for pooling, (transform, bottleneck, activation, norm), fusion in itertools.product(
        ("attention", "average"),
        [
            ("linear", False, False, "none"),
            *(
                ("bottleneck", True, relu, norm)
                for relu in (True, False)
                for norm in ("layer", "batch", "group", "none")
            ),
        ],
        ("add", "scale"),
    )
]


def randomised(block: ContextBlock) -> ContextBlock:
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_()
    return block


def formula(block: ContextBlock, x: Tensor) -> Tensor:
    """Eq. 4, position by position."""
    config, rows = block.config, x.flatten(2).mT  # (b, n, c)
    if config.pooling == "average":
        weights = torch.full_like(rows[..., :1], 1 / rows.shape[1])
    else:
        assert block.mask is not None
        logits = rows @ block.mask.weight.T + block.mask.bias
        weights = logits.exp() / logits.exp().sum(1, keepdim=True)
    t = (weights * rows).sum(1)
    layers = dict(block.transform.named_children())
    if config.transform == "linear":
        t = t @ layers["project"].weight.T + layers["project"].bias
    else:
        t = t @ layers["reduce"].weight.T + layers["reduce"].bias
        if config.norm != "none":
            hidden = t.view(len(t), -1, 1)
            groups = {"layer": 1, "group": min(32, hidden.shape[1])}.get(config.norm)
            if groups is None:
                mean, variance = hidden.mean((0, 2), keepdim=True), hidden.var((0, 2), correction=0, keepdim=True)
                hidden = (hidden - mean) / (variance + 1e-5).sqrt()
            else:
                grouped = hidden.view(len(t), groups, -1)
                mean, variance = grouped.mean(2, keepdim=True), grouped.var(2, correction=0, keepdim=True)
                hidden = ((grouped - mean) / (variance + 1e-5).sqrt()).view_as(hidden)
            t = hidden.squeeze(2) * layers["norm"].weight + layers["norm"].bias
        if config.activation:
            t = t.clamp(min=0)
        t = t @ layers["expand"].weight.T + layers["expand"].bias
    z = rows + t.unsqueeze(1) if config.fusion == "add" else rows * torch.sigmoid(t).unsqueeze(1)
    return z.mT.view_as(x)


@pytest.mark.parametrize(
    "config", CONFIGS, ids=lambda config: " ".join(str(v) for v in dataclasses.astuple(config)[:6])
)
def test_every_combination_of_settings_is_equation_4(config: ContextConfig) -> None:
    block = randomised(ContextBlock(16, config).double())
    x = torch.randn(3, 16, 4, 5, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn_like(x)
    inputs = [x, *block.parameters()]
    actual, expected = block(x), formula(block, x)
    assert relative_error(actual, expected) < 1e-11
    gradients = torch.autograd.grad(actual, inputs, upstream)
    references = torch.autograd.grad(expected, inputs, upstream)
    largest = max(float(reference.norm()) for reference in references)
    for gradient, reference in zip(gradients, references, strict=True):
        assert (gradient - reference).norm() < 1e-10 * largest


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-14), (torch.float32, 1e-6)], ids=str)
def test_equations_2_and_3_agree_to_rounding(dtype: torch.dtype, bound: float) -> None:
    """Projecting every position and pooling, eq. 2, is pooling and projecting once, eq. 3."""
    block = ContextBlock(32, ContextConfig.snl()).to(dtype)
    with torch.no_grad():
        block.transform.project.weight.normal_()  # type: ignore[union-attr,operator]
    x = torch.randn(2, 32, 6, 7, dtype=dtype)
    assert block.mask is not None
    rows = x.flatten(2).mT
    weights = block.mask(rows).softmax(1)
    projected = rows @ block.transform.project.weight.T  # type: ignore[union-attr,operator]
    equation_2 = x + (weights * projected).sum(1)[:, :, None, None]
    assert relative_error(block(x) - x, equation_2 - x) < 10 * bound
    assert relative_error(block(x), equation_2) < bound


def test_the_named_settings_are_the_paper_s_blocks() -> None:
    assert ContextConfig.snl() == ContextConfig("attention", "linear", 1, False, "none", "add")
    assert ContextConfig.gc() == ContextConfig() == ContextConfig("attention", "bottleneck", 16, True, "layer", "add")
    assert ContextConfig.gc(4).reduction == 4
    assert ContextConfig.se_with_ln() == ContextConfig("average", "bottleneck", 16, True, "layer", "scale")


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        # section 4.3: 2 C C/r of weights, and the biases, layer norm and mask that the paper's count leaves out
        (ContextConfig.gc(16), 2 * 1024 * 64 + 64 + 1024 + 2 * 64 + 1024 + 1),
        (ContextConfig.snl(), 1024 * 1024 + 1024 + 1024 + 1),
        (ContextConfig.se_with_ln(16), 2 * 1024 * 64 + 64 + 1024 + 2 * 64),
    ],
)
def test_parameter_counts(config: ContextConfig, parameters: int) -> None:
    assert sum(parameter.numel() for parameter in ContextBlock(1024, config).parameters()) == parameters


@pytest.mark.parametrize("fusion", ["add", "scale"])
@pytest.mark.parametrize("transform", ["linear", "bottleneck"])
def test_a_new_block_is_the_identity_and_with_scale_halves(transform: str, fusion: str) -> None:
    base = ContextConfig.snl() if transform == "linear" else ContextConfig.gc(4)
    x = torch.randn(2, 16, 4, 4)
    z = ContextBlock(16, dataclasses.replace(base, fusion=fusion))(x)
    assert torch.equal(z, x if fusion == "add" else x / 2)
    z = ContextBlock(16, dataclasses.replace(base, fusion=fusion, zero_init=False))(x)
    assert not torch.equal(z, x if fusion == "add" else x / 2)


@pytest.mark.parametrize("spatial", [(9,), (3, 4), (2, 3, 4), (1, 1)])
def test_any_number_of_spatial_axes(spatial: tuple[int, ...]) -> None:
    block = randomised(ContextBlock(16, ContextConfig.gc(4)))
    x = torch.randn(2, 16, *spatial)
    assert torch.allclose(block(x).flatten(2), block(x.flatten(2)), atol=1e-6)


@pytest.mark.parametrize("pooling", ["attention", "average"])
@pytest.mark.parametrize("fusion", ["add", "scale"])
def test_the_memory_layout_of_the_input_is_kept(pooling: str, fusion: str) -> None:
    block = randomised(ContextBlock(16, ContextConfig(pooling, reduction=4, fusion=fusion)))  # type: ignore[arg-type]
    x = torch.randn(2, 16, 4, 5)
    z = block(x)
    assert z.is_contiguous()
    last = block(x.to(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    for other in (last, block(torch.cat([x, x], 3)[..., :5])):
        assert torch.allclose(other, z, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("config", [ContextConfig.snl(), ContextConfig.gc(4), ContextConfig.se_with_ln(4)])
def test_half_precision_and_autocast_stay_near_float64(
    config: ContextConfig, dtype: torch.dtype, autocast: bool
) -> None:
    block = randomised(ContextBlock(16, config)).to(dtype)
    x = torch.randn(2, 16, 5, 5).to(dtype)
    exact = ContextBlock(16, config).double()
    exact.load_state_dict({name: tensor.double() for name, tensor in block.state_dict().items()})
    if autocast:
        with torch.autocast("cpu", dtype):
            actual = block.float()(x.float())
        assert actual.dtype == torch.float32
    else:
        actual = block(x)
        assert actual.dtype == dtype
    assert relative_error(actual, exact(x.double())) < (3e-2 if dtype == torch.bfloat16 else 4e-3)


def test_hooks_see_the_logits_and_the_transformed_context() -> None:
    block = randomised(ContextBlock(16, ContextConfig.gc(4)))
    seen: list[Tensor] = []
    for module in (block.mask, block.transform):
        assert module is not None
        module.register_forward_hook(lambda module, args, output: seen.append(output))
    x = torch.randn(2, 16, 4, 5)
    z = block(x)
    assert [tuple(tensor.shape) for tensor in seen] == [(2, 20, 1), (2, 16)]
    assert torch.equal(z, x + seen[1][:, :, None, None])


def test_average_pooling_has_no_mask() -> None:
    block = ContextBlock(16, ContextConfig.se_with_ln())
    assert block.mask is None
    assert not any(name.startswith("mask") for name in block.state_dict())


def test_the_hidden_width_is_at_least_one_and_group_norm_divides_it() -> None:
    assert ContextBlock(8, ContextConfig.gc(16)).transform.reduce.out_features == 1  # type: ignore[union-attr]
    norm = ContextBlock(96, ContextConfig(reduction=2, norm="group")).transform.norm
    assert isinstance(norm, nn.GroupNorm)
    assert (norm.num_groups, norm.num_channels) == (16, 48)


def test_an_input_that_does_not_fit_is_refused_in_words() -> None:
    block = ContextBlock(16)
    for shape in ((2, 16), (2, 4, 4, 16)):
        with pytest.raises(ConfigError, match=r"`ContextBlock` of 16 channels got an input of shape"):
            block(torch.randn(*shape))


def test_a_linear_transform_takes_no_settings_of_the_bottleneck() -> None:
    with pytest.raises(ConfigError, match="the `linear` transform has no bottleneck"):
        ContextConfig(transform="linear")


def test_settings_survive_json_and_print() -> None:
    for config in CONFIGS:
        assert ContextConfig.from_dict(config.as_dict()) == config
    text = str(ContextBlock(16, ContextConfig.se_with_ln(4)))
    for field in dataclasses.fields(ContextConfig):
        assert f"{field.name}={getattr(ContextConfig.se_with_ln(4), field.name)!r}" in text


def test_a_block_can_be_planned_on_the_meta_device() -> None:
    with torch.device("meta"):
        block = ContextBlock(64)
    assert block(torch.empty(2, 64, 5, 8, device="meta")).shape == (2, 64, 5, 8)
