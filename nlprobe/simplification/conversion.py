"""A non-local block as a block with one map for all queries, in closed form."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nlprobe.blocks import SOFTMAX_INSTANTIATIONS, ContextBlock, ContextConfig, NonLocal
from nlprobe.errors import ConfigError


@dataclass(frozen=True)
class Affine:
    """y = weight c + bias."""

    weight: Float[Tensor, "c c"]
    bias: Float[Tensor, " c"]


def simplified(block: NonLocal, query: Float[Tensor, " d"]) -> ContextBlock:
    """The SNL block (eq. 3) whose one map is that of a query, usually the mean over calibration data.

    Mask W_k = s W_kᵀ q̄, s with scale and temperature; transform W_v = diag(γ/σ) W_z W_v, the norm behind W_z folded in
    with its running statistics, biases likewise. Where all queries are q̄ and keys are not sub-sampled, it computes what
    the block does; else it leaves out what queries differ in, that the softmax of a mean logit is not the mean softmax,
    and that keys and values were pooled.

    Dot product and concatenation have no softmax over keys that one mask could be: their mask starts at zero, the mean
    over positions, and is for `refined_mask` to find.

    Args:
        block: In evaluation mode's sense: its running statistics count.
        query: q̄ in float64; of Gaussian, the mean of x.

    Returns:
        In evaluation mode, in the block's precision and on its device.
    """
    parameter = block.value.weight
    made = ContextBlock(block.channels, ContextConfig.snl()).to(query.device, torch.float64)
    assert made.mask is not None
    projection = made.transform[0]
    assert isinstance(projection, nn.Linear)
    weight, bias = mask_of(block, query)
    affine = transform_of(block)
    with torch.no_grad():
        made.mask.weight.copy_(weight[None])
        made.mask.bias.copy_(bias)
        projection.weight.copy_(affine.weight)
        projection.bias.copy_(affine.bias)
    return made.to(parameter.device, parameter.dtype).eval()


def mask_of(block: NonLocal, query: Float[Tensor, " d"]) -> tuple[Float[Tensor, " c"], Float[Tensor, ""]]:
    """Weight and bias of the logits s q̄·k_j as a function of x_j, in float64; zeros without a softmax."""
    query = query.double()
    if block.config.instantiation not in SOFTMAX_INSTANTIATIONS:
        return query.new_zeros(block.channels), query.new_zeros(())
    scaled = block.attention.logit_scale * query
    if block.key is None:
        return scaled, query.new_zeros(())
    bias = query.new_zeros(()) if block.key.bias is None else scaled @ block.key.bias.detach().double()
    return block.key.weight.detach().double().mT @ scaled, bias


def transform_of(block: NonLocal) -> Affine:
    """What happens to sum_j ω_ij x_j for a map that sums to 1: W_v, W_z and the norm as one affine map, in float64."""
    value, output = block.value, block.output
    weight = output.weight.detach().double() @ value.weight.detach().double()
    bias = weight.new_zeros(block.channels)
    if value.bias is not None:
        bias = output.weight.detach().double() @ value.bias.detach().double()
    if output.bias is not None:
        bias = bias + output.bias.detach().double()
    norm = block.norm
    if isinstance(norm, nn.BatchNorm1d):
        if norm.running_mean is None or norm.running_var is None:
            raise ConfigError("the norm behind W_z has no running statistics to fold in", "train it with them")
        scale = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
        weight = scale[:, None] * weight
        bias = scale * (bias - norm.running_mean.double()) + norm.bias.detach().double()
    return Affine(weight, bias)


def bottlenecked(
    block: ContextBlock,
    reduction: int,
    mean: Float[Tensor, " c"] | None = None,
    covariance: Float[Tensor, "c c"] | None = None,
) -> ContextBlock:
    """An SNL block with its transform as a bottleneck of C / r channels without norm and ReLU (Table 5d, "w/o").

    W is replaced by the matrix of rank C/r that is nearest on the contexts c: least E‖(W − W') (c − E c)‖², from the
    singular values of W Σ^½ (Eckart-Young), with what W E c loses in the bias.

    Args:
        block: As `simplified` makes it.
        reduction: r.
        mean: E c of calibration data; without, zero.
        covariance: Σ of the contexts; without, the identity.

    Raises:
        ConfigError: the block is none with a linear transform, or r is larger than C.
    """
    projection = block.transform[0]
    if block.config.transform != "linear" or not isinstance(projection, nn.Linear):
        raise ConfigError("only an SNL block can be given a bottleneck", "simplify a non-local block first")
    if reduction > block.channels:
        raise ConfigError(
            f"a bottleneck of 1/{reduction} of {block.channels} channels is empty", f"use {block.channels} or less"
        )
    weight, bias = projection.weight.detach().double(), projection.bias.detach().double()
    config = replace(ContextConfig.gc(reduction), activation=False, norm="none")
    made = ContextBlock(block.channels, config).to(weight.device, torch.float64)
    rank = config.hidden_width(block.channels)
    root = torch.eye(block.channels, dtype=torch.float64, device=weight.device)
    if covariance is not None:
        values, vectors = torch.linalg.eigh(covariance.double())
        root = vectors * values.clamp(min=0).sqrt() @ vectors.mT
    left = torch.linalg.svd(weight @ root)[0][:, :rank]  # the nearest matrix of that rank is left leftᵀ W
    reduce, expand = made.transform[0], made.transform[-1]
    assert isinstance(reduce, nn.Linear)
    assert isinstance(expand, nn.Linear)
    assert made.mask is not None
    assert block.mask is not None
    lost = weight @ mean.double() - left @ (left.mT @ (weight @ mean.double())) if mean is not None else 0
    with torch.no_grad():
        made.mask.load_state_dict(block.mask.state_dict())
        reduce.weight.copy_(left.mT @ weight)
        reduce.bias.zero_()
        expand.weight.copy_(left)
        expand.bias.copy_(bias + lost)
    return made.to(projection.weight.device, projection.weight.dtype).eval()
