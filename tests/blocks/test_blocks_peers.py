"""The blocks of mmcv and timm, with their weights copied across, compute the same."""

from collections.abc import Mapping

import mmcv.cnn
import pytest
import timm.layers
import torch
import torchvision.ops
from blocks_reference import relative_error
from timm.layers.cbam import CbamModule
from torch import Tensor, nn

from nlprobe.blocks import (
    CBAM,
    CBAMConfig,
    ContextBlock,
    ContextConfig,
    NonLocal,
    NonLocalConfig,
    SqueezeExcitation,
    SqueezeExcitationConfig,
)

MMCV_MODES = {
    "gaussian": "gaussian",
    "embedded_gaussian": "embedded_gaussian",
    "dot_product": "dot_product",
    "concat": "concatenation",
}


class Repaired:
    """One repair: mmcv divides the concat map in place behind a ReLU, which then has no backward."""

    def concatenation(self, theta_x: Tensor, phi_x: Tensor) -> Tensor:
        queries = theta_x.repeat(1, 1, 1, phi_x.shape[3])
        keys = phi_x.repeat(1, 1, theta_x.shape[2], 1)
        pairs = self.concat_project(torch.cat([queries, keys], 1)).squeeze(1) / phi_x.shape[3]
        with torch.no_grad():
            assert torch.equal(pairs, super().concatenation(theta_x, phi_x))
        return pairs


class MmcvNonLocal2d(Repaired, mmcv.cnn.NonLocal2d):
    pass


class MmcvNonLocal3d(Repaired, mmcv.cnn.NonLocal3d):
    pass


def randomise(module: nn.Module) -> None:
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.dtype.is_floating_point:
                tensor.normal_(std=0.5)


def load(block: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy weights, 1x1 convolutions to linear layers, strictly."""
    own = block.state_dict()
    block.load_state_dict({name: tensor.reshape(own[name].shape) for name, tensor in state.items()})


def compare(ours: nn.Module, theirs: nn.Module, x: Tensor, bound: float) -> None:
    ours_x, theirs_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    actual, expected = ours(ours_x), theirs(theirs_x)
    upstream = torch.randn_like(expected)
    actual.backward(upstream)
    expected.backward(upstream)
    assert relative_error(actual, expected) < bound
    assert ours_x.grad is not None
    assert theirs_x.grad is not None
    assert relative_error(ours_x.grad, theirs_x.grad) < bound
    total = {id(side): sum(float(p.grad.square().sum()) for p in side.parameters()) for side in (ours, theirs)}
    assert total[id(ours)] == pytest.approx(total[id(theirs)], rel=100 * bound)


def from_mmcv_non_local(theirs: nn.Module) -> dict[str, Tensor]:
    names = {"theta": "query", "phi": "key", "g": "value", "conv_out": "output"}
    state = {}
    for name, tensor in theirs.state_dict().items():
        if name.startswith("concat_project"):
            weight_query, weight_key = tensor.flatten().chunk(2)
            state |= {"attention.weight_query": weight_query, "attention.weight_key": weight_key}
            continue
        root, *_, layer, kind = name.split(".")
        state[f"norm.{kind}" if layer == "bn" else f"{names[root]}.{kind}"] = tensor
    return state


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("sub_sample", [False, True])
@pytest.mark.parametrize("use_scale", [False, True])
@pytest.mark.parametrize("instantiation", MMCV_MODES)
@pytest.mark.parametrize("dimension", [2, 3])
def test_mmcv_non_local(
    dimension: int, instantiation: str, use_scale: bool, sub_sample: bool, norm: str, dtype: torch.dtype
) -> None:
    kind = {2: MmcvNonLocal2d, 3: MmcvNonLocal3d}[dimension]
    norm_cfg = None if norm == "none" else {"type": f"BN{dimension}d"}
    theirs = kind(
        8, reduction=2, use_scale=use_scale, mode=MMCV_MODES[instantiation], sub_sample=sub_sample, norm_cfg=norm_cfg
    )
    randomise(theirs)
    config = NonLocalConfig(
        instantiation,  # type: ignore[arg-type]
        scale="inv_sqrt" if use_scale and instantiation == "embedded_gaussian" else "none",  # theirs scales no other
        sub_sample="project_then_pool" if sub_sample else "none",
        norm=norm,  # type: ignore[arg-type]
        output_bias=norm == "none",  # their convolution has a bias only where no norm follows
    )
    ours = NonLocal(8, dimension, config)
    load(ours, from_mmcv_non_local(theirs))
    x = torch.randn(2, 8, *((5, 6) if dimension == 2 else (2, 5, 4))).to(dtype)
    bound = 1e-10 if dtype == torch.float64 else 1e-4
    for training in (True, False):
        ours.zero_grad(), theirs.zero_grad()
        compare(ours.to(dtype).train(training), theirs.to(dtype).train(training), x, bound)


def test_a_new_block_starts_as_mmcv_s_does() -> None:
    theirs = mmcv.cnn.NonLocal2d(64, norm_cfg={"type": "BN"}, mode="embedded_gaussian")
    ours = NonLocal(64, 2, NonLocalConfig())
    assert ours.value.weight.std().item() == pytest.approx(theirs.g.conv.weight.std().item(), rel=0.05)
    assert not theirs.conv_out.bn.weight.any()
    assert not ours.norm.weight.any()  # type: ignore[union-attr,operator]


@pytest.mark.parametrize("use_scale", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_timm_non_local_attn(use_scale: bool, training: bool) -> None:
    theirs = timm.layers.NonLocalAttn(16, use_scale=use_scale, rd_ratio=1 / 2)
    randomise(theirs)
    config = NonLocalConfig(scale="inv_sqrt_in" if use_scale else "none")
    ours = NonLocal(16, 2, config)
    names = {"t": "query", "p": "key", "g": "value", "z": "output", "norm": "norm"}
    load(ours, {f"{names[name.split('.')[0]]}.{name.split('.')[1]}": t for name, t in theirs.state_dict().items()})
    compare(ours.double().train(training), theirs.double().train(training), torch.randn(2, 16, 5, 6).double(), 1e-10)


@pytest.mark.parametrize("fusion", ["add", "scale"])
@pytest.mark.parametrize("pooling", ["attention", "average"])
def test_mmcv_context_block(pooling: str, fusion: str) -> None:
    branch = {"add": "channel_add", "scale": "channel_mul"}[fusion]
    theirs = mmcv.cnn.ContextBlock(16, 1 / 4, {"attention": "att", "average": "avg"}[pooling], (branch,))
    randomise(theirs)
    ours = ContextBlock(16, ContextConfig(pooling, reduction=4, fusion=fusion))  # type: ignore[arg-type]
    parts = {f"{branch}_conv.0": "reduce", f"{branch}_conv.1": "norm", f"{branch}_conv.3": "expand"}
    state = {}
    for name, tensor in theirs.state_dict().items():
        part, kind = name.rsplit(".", 1)
        state[f"mask.{kind}" if part == "conv_mask" else f"transform.{parts[part]}.{kind}"] = tensor
    load(ours, state)
    compare(ours.double(), theirs.double(), torch.randn(2, 16, 5, 6).double(), 1e-10)


@pytest.mark.parametrize("fusion", ["add", "scale"])
@pytest.mark.parametrize("pooling", ["attention", "average"])
def test_timm_global_context(pooling: str, fusion: str) -> None:
    """Names of timm: `gca` is add and `gc` is scale, over 1/8 of the channels, with 1e-6 in the layer norm."""
    theirs = timm.layers.GlobalContext(
        32, use_attn=pooling == "attention", fuse_add=fusion == "add", fuse_scale=fusion == "scale"
    )
    randomise(theirs)
    ours = ContextBlock(32, ContextConfig(pooling, reduction=8, fusion=fusion))  # type: ignore[arg-type]
    ours.transform.norm.eps = 1e-6  # type: ignore[union-attr,assignment]
    parts = {"fc1": "reduce", "norm": "norm", "fc2": "expand"}
    state = {}
    for name, tensor in theirs.state_dict().items():
        root, *rest = name.split(".")
        state[f"mask.{rest[0]}" if root == "conv_attn" else f"transform.{parts[rest[0]]}.{rest[1]}"] = tensor
    load(ours, state)
    compare(ours.double(), theirs.double(), torch.randn(2, 32, 5, 6).double(), 1e-10)


@pytest.mark.parametrize("bias", [True, False])
def test_timm_squeeze_excitation(bias: bool) -> None:
    theirs = timm.layers.SEModule(32, rd_divisor=1, bias=bias)
    randomise(theirs)
    ours = SqueezeExcitation(32, SqueezeExcitationConfig(bias=bias))
    parts = {"fc1": "reduce", "fc2": "expand"}
    load(ours, {f"excite.{parts[name[:3]]}{name[3:]}": tensor for name, tensor in theirs.state_dict().items()})
    compare(ours.double(), theirs.double(), torch.randn(2, 32, 5, 6).double(), 1e-10)


def test_torchvision_squeeze_excitation() -> None:
    theirs = torchvision.ops.SqueezeExcitation(32, 2)
    randomise(theirs)
    ours = SqueezeExcitation(32)
    parts = {"fc1": "excite.reduce", "fc2": "excite.expand"}
    load(ours, {f"{parts[name[:3]]}{name[3:]}": tensor for name, tensor in theirs.state_dict().items()})
    compare(ours.double(), theirs.double(), torch.randn(2, 32, 5, 6).double(), 1e-10)


def from_timm_cbam(theirs: nn.Module, *, flipped: bool) -> dict[str, Tensor]:
    parts = {
        "channel.fc1": "channel_gate.mlp.reduce",
        "channel.fc2": "channel_gate.mlp.expand",
        "spatial.conv.conv": "spatial_gate.conv",
        "spatial.conv.bn": "spatial_gate.norm",
    }
    state = {}
    for name, tensor in theirs.state_dict().items():
        part, kind = name.rsplit(".", 1)
        is_convolution = part == "spatial.conv.conv"
        state[f"{parts[part]}.{kind}"] = tensor.flip(1) if flipped and is_convolution else tensor
    return state


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("config", "flipped"),
    [(CBAMConfig.timm(), False), (CBAMConfig(bias=False, momentum=0.1), True)],
    ids=["their order", "the authors' order"],
)
def test_timm_cbam(config: CBAMConfig, flipped: bool, training: bool) -> None:
    theirs = CbamModule(32)
    randomise(theirs)
    ours = CBAM(32, config)
    load(ours, from_timm_cbam(theirs, flipped=flipped))
    ours, theirs = ours.double().train(training), theirs.double().train(training)
    compare(ours, theirs, torch.randn(2, 32, 5, 6).double(), 1e-10)
    for name, tensor in from_timm_cbam(theirs, flipped=flipped).items():  # the running statistics too
        assert torch.allclose(ours.state_dict()[name].double(), tensor.reshape(ours.state_dict()[name].shape).double())


def test_timm_cbam_with_biases_in_the_mlp() -> None:
    theirs = CbamModule(32, mlp_bias=True)
    randomise(theirs)
    ours = CBAM(32)
    load(ours, from_timm_cbam(theirs, flipped=True))
    compare(ours.double().eval(), theirs.double().eval(), torch.randn(2, 32, 5, 6).double(), 1e-10)
