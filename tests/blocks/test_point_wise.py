"""Point-wise spatial attention against its loops in float64, in value and gradient."""

import itertools
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from blocks_reference import relative_error
from torch import Tensor

from nlprobe.blocks import PointWise, PointWiseBranch, PointWiseConfig, build_block
from nlprobe.errors import ConfigError

GRIDS = [(3, 5), (5, 3), (4, 4), (1, 4), (4, 1), (1, 1)]


def places(height: int, width: int) -> Iterator[tuple[int, tuple[int, int]]]:
    return enumerate(itertools.product(range(height), range(width)))


def transform(module: torch.nn.Module, x: Tensor) -> Tensor:
    """1x1 convolution without bias, batch norm and ReLU on a feature map, as other code bases have them."""
    norm = module.norm
    x = F.conv2d(x, module.linear.weight[..., None, None])
    mean, variance = (None, None) if norm.training else (norm.running_mean, norm.running_var)
    return F.batch_norm(x, mean, variance, norm.weight, norm.bias, norm.training, 0.0, norm.eps).relu()


def branch_formula(branch: PointWiseBranch, x: Tensor) -> Tensor:
    """One branch, receiver by receiver and source by source."""
    config, (height, width) = branch.config, x.shape[2:]
    masks = F.conv2d(transform(branch.hidden, x), branch.mask.weight[..., None, None])
    masks = masks.unflatten(1, (config.mask_height, config.mask_width))
    centre = ((config.mask_height - 1) // 2, (config.mask_width - 1) // 2)
    columns = []
    for _, receiver in places(height, width):
        logits, values = [], []
        for _, source in places(height, width):
            predicting, other = (receiver, source) if branch.direction == "collect" else (source, receiver)
            if config.compact:
                entry = other
            else:
                entry = tuple(o - p + c for o, p, c in zip(other, predicting, centre, strict=True))
            within = 0 <= entry[0] < config.mask_height and 0 <= entry[1] < config.mask_width
            logit = masks[:, entry[0], entry[1], predicting[0], predicting[1]] if within else x.new_zeros(x.shape[0])
            logits.append(logit)
            values.append(x[:, :, source[0], source[1]])
        weights = torch.stack(logits, -1).softmax(-1)
        columns.append((torch.stack(values, -1) * weights[:, None]).sum(-1) / config.normalisation)
    return torch.stack(columns, -1).unflatten(2, (height, width))


def shrunken(config: PointWiseConfig, x: Tensor) -> tuple[list[int], bool]:
    """Size of the shrunken map, and whether its corners are aligned."""
    odd = all(length % config.shrink for length in x.shape[2:])
    if config.alignment == "parity" and not odd:
        return [length // config.shrink for length in x.shape[2:]], False
    return [(length - 1) // config.shrink + 1 for length in x.shape[2:]], True


def formula(block: PointWise, x: Tensor) -> Tensor:
    """The whole block."""
    config, sums = block.config, []
    for direction in config.directions:
        reduced = transform(block.get_submodule(f"reduce_{direction}"), x)
        if config.shrink > 1:
            size, aligned = shrunken(config, x)
            reduced = F.interpolate(reduced, size, mode="bilinear", align_corners=aligned)
        sums.append(branch_formula(block.get_submodule(direction), reduced))
    joined = F.pad(torch.cat(sums, 1), (1,) * 4) if config.border else torch.cat(sums, 1)
    z = transform(block.proj, joined)
    if config.shrink > 1:
        z = F.interpolate(z, x.shape[2:], mode="bilinear", align_corners=shrunken(config, x)[1])
    return x + z if config.fusion == "add" else z


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.dtype.is_floating_point:
                tensor.uniform_(0.2, 1.0)
                if "running_var" not in name:
                    tensor.mul_(torch.randint(0, 2, tensor.shape) * 2 - 1)
    return module


def compare(module: torch.nn.Module, expected: Tensor, x: Tensor) -> None:
    actual, upstream = module(x), torch.randn_like(expected)
    assert relative_error(actual, expected) < 1e-12
    inputs = [x, *module.parameters()]
    references = torch.autograd.grad(expected, inputs, upstream)
    gradients = torch.autograd.grad(actual, inputs, upstream)
    largest = max(float(gradient.norm()) for gradient in references)
    for gradient, reference in zip(gradients, references, strict=True):
        assert (gradient - reference).norm() < 1e-10 * largest


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid[0]}x{grid[1]}")
@pytest.mark.parametrize("mask", [(3, 3), (5, 9), (9, 5), (11, 11), (1, 1), (4, 6)], ids=str)
@pytest.mark.parametrize("direction", ["collect", "distribute"])
def test_a_branch_is_its_loops_whatever_the_sizes_of_mask_and_map(
    grid: tuple[int, int], mask: tuple[int, int], direction: str
) -> None:
    config = PointWiseConfig(*mask, normalisation=2.5)
    branch = randomised(PointWiseBranch(3, direction, config).double()).eval()
    x = torch.randn(2, 3, *grid, dtype=torch.float64, requires_grad=True)
    compare(branch, branch_formula(branch, x), x)


@pytest.mark.parametrize("grid", [(3, 5), (5, 3)], ids=str)
@pytest.mark.parametrize("direction", ["collect", "distribute"])
def test_a_compact_branch_is_its_loops(grid: tuple[int, int], direction: str) -> None:
    branch = randomised(PointWiseBranch(3, direction, PointWiseConfig(*grid, compact=True)).double()).eval()
    x = torch.randn(2, 3, *grid, dtype=torch.float64, requires_grad=True)
    compare(branch, branch_formula(branch, x), x)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"shrink": 1},
        {"shrink": 3},
        {"branches": "collect"},
        {"branches": "distribute", "shrink": 1},
        {"border": True},
        {"alignment": "parity"},
        {"alignment": "parity", "border": True, "shrink": 3},
        {"fusion": "add"},
    ],
    ids=str,
)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_the_block_is_its_written_out_formula(settings: dict[str, object], training: bool) -> None:
    config = PointWiseConfig.from_dict({"mask_height": 5, "mask_width": 7, "reduction": 2} | settings)
    block = randomised(PointWise(6, 2, config).double()).train(training)
    x = torch.randn(2, 6, 5, 8, dtype=torch.float64, requires_grad=True)
    compare(block, formula(block, x), x)


def test_sources_beyond_the_mask_have_the_logit_zero_and_are_not_hidden() -> None:
    """A mask of one entry: the weight of the position itself is e^s / (e^s + N − 1), that of the others 1 / (…)."""
    branch = randomised(PointWiseBranch(2, "collect", PointWiseConfig(1, 1)).double()).eval()
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64)
    seen = []
    branch.attention.register_forward_hook(lambda _, args, out: seen.append(args[0]))
    branch(x)
    (logits,) = seen
    assert torch.equal(logits[0], torch.diag(logits[0].diagonal()))
    assert (logits[0].diagonal() != 0).any()


def test_a_constant_map_of_features_is_reproduced() -> None:
    branch = randomised(PointWiseBranch(3, "distribute", PointWiseConfig(5, 5))).eval()
    x = torch.randn(2, 3, 1, 1).expand(2, 3, 4, 6)
    torch.testing.assert_close(branch(x), x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "cast"])
def test_half_precision_stays_near_float64(dtype: torch.dtype, autocast: bool) -> None:
    config = PointWiseConfig(5, 7, reduction=2)
    block = randomised(PointWise(8, 2, config)).eval()
    wide = PointWise(8, 2, config).double().eval()
    wide.load_state_dict({name: tensor.double() for name, tensor in block.state_dict().items()})
    x = torch.randn(2, 8, 5, 9) * 0.3
    expected = wide(x.double())
    if autocast:
        with torch.autocast("cpu", dtype):
            actual = block(x)
    else:
        actual = block.to(dtype)(x.to(dtype))
    assert relative_error(actual, expected) < {torch.bfloat16: 5e-2, torch.float16: 1e-2}[dtype]


@pytest.mark.parametrize(("branches", "count"), [("both", 2), ("collect", 1)])
def test_parameters_are_counted_by_their_formula(branches: str, count: int) -> None:
    """A branch: C d + d² + d · mask and two norms of d; proj: branches · d C and a norm of C."""
    channels, width, mask = 32, 8, 5 * 7
    block = PointWise(channels, 2, PointWiseConfig(5, 7, branches=branches))
    branch = channels * width + width * width + width * mask + 4 * width
    assert sum(p.numel() for p in block.parameters()) == count * branch + count * width * channels + 2 * channels


def test_inputs_and_settings_that_do_not_fit_are_refused_in_words() -> None:
    with pytest.raises(ConfigError, match="whose shrunken map is 3x4\ngive inputs that shrink to 5x5"):
        PointWise(4, 2, PointWiseConfig(5, 5, compact=True))(torch.randn(1, 4, 5, 8))
    with pytest.raises(ConfigError, match=r"`PointWise` of 4 channels got an input of shape `\(1, 3, 5, 5\)`"):
        PointWise(4)(torch.randn(1, 3, 5, 5))
    with pytest.raises(ConfigError, match="it must be 2: masks have two axes"):
        build_block("point_wise", 4, 3, PointWiseConfig())
    with pytest.raises(ConfigError, match="a `border` without shrinking"):
        PointWiseConfig(border=True, shrink=1)
    with pytest.raises(ConfigError, match=r"`normalisation` of the block `point_wise` is `0\.0`"):
        PointWiseConfig.from_dict({"normalisation": 0.0})
