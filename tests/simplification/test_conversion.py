"""Blocks converted in closed form against the block that they stand for, in float64."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import nlprobe
from nlprobe.blocks import ContextBlock, NonLocal, NonLocalConfig
from nlprobe.errors import ConfigError
from nlprobe.simplification import bottlenecked, calibrating, distilled, simplified
from nlprobe.simplification.calibration import mean_map

SOFTMAX = ("gaussian", "embedded_gaussian")


def non_local(instantiation: str = "embedded_gaussian", seed: int = 1, **settings: object) -> NonLocal:
    torch.manual_seed(seed)
    block = NonLocal(8, 2, NonLocalConfig(instantiation=instantiation, zero_init=False, **settings))  # type: ignore[arg-type]
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    if isinstance(block.norm, nn.BatchNorm1d):
        block.norm.running_mean.normal_()  # type: ignore[union-attr]
        block.norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return block.double().eval()


def images(count: int = 3, seed: int = 5, size: tuple[int, int] = (5, 6)) -> Tensor:
    return torch.randn(count, 8, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("scale", ["none", "inv_sqrt", "sqrt"])
def test_a_block_whose_queries_are_all_one_is_converted_exactly(norm: str, scale: str) -> None:
    block = non_local(norm=norm, scale=scale)
    assert block.query is not None
    nn.init.zeros_(block.query.weight)
    with torch.no_grad():
        block.query.bias.mul_(0.3)
        converted = simplified(block, block.query.bias.detach())
        torch.testing.assert_close(converted(images()), block(images()), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("instantiation", SOFTMAX)
def test_the_one_map_is_that_of_the_mean_query_written_out(instantiation: str) -> None:
    block = non_local(instantiation)
    x = images()
    rows = x.flatten(2).mT
    with torch.no_grad(), calibrating({"one": block}) as found:
        block(x[:2])
        block(x[2:])
        query, key = (rows if layer is None else layer(rows) for layer in (block.query, block.key))
        mean = query.mean((0, 1))
        torch.testing.assert_close(found["one"].mean_query(), mean)
        weights = (key @ mean * block.attention.logit_scale).softmax(1)
        context = (weights[:, None] @ block.value(rows)).squeeze(1)
        expected = x + block.norm(block.output(context))[..., None, None]
        torch.testing.assert_close(simplified(block, mean)(x), expected, rtol=1e-9, atol=1e-9)


def test_no_query_independent_block_does_better_than_mean_map_error() -> None:
    block, x = non_local(), images()
    model = nn.Sequential(block)
    with nlprobe.probe(model, quantities=("output",)) as probe, torch.no_grad(), calibrating({"0": block}) as found:
        model(x)
    bound = probe.frame()["mean_map_error"].to_numpy(np.float64)
    y = (block(x) - x).flatten(1)
    for mask in (None, "refined"):
        made = simplified(block, found["0"].mean_query())
        if mask:
            made.mask.weight.data[0] = found["0"].refined_mask(made.mask.weight.data[0])
        error = (((made(x) - x).flatten(1) - y).norm(dim=1) / y.norm(dim=1)).detach().numpy()
        assert (error >= bound - 1e-9).all()


def test_a_refined_mask_is_the_weighted_least_squares_fit_of_the_log_of_the_mean_maps() -> None:
    block, x = non_local(), images(4)
    with torch.no_grad(), calibrating({"one": block}) as found:
        block(x)
    start = simplified(block, found["one"].mean_query()).mask.weight.detach()[0]
    rows, logs, roots = [], [], []
    for image in x:
        position = image.flatten(1).mT
        weights = (block.query(position) @ block.key(position).mT).softmax(1).mean(0).detach()
        # the constant of each image taken out by the weighted mean
        rows.append(position - weights @ position)
        logs.append(weights.log() - weights @ weights.log())
        roots.append(weights.sqrt())
    design, target, root = torch.cat(rows), torch.cat(logs), torch.cat(roots)
    variance = ((design * root[:, None]).square().sum(0)).mean()
    ridge = (1e-3 * variance).sqrt() * torch.eye(8, dtype=torch.float64)
    expected = np.linalg.lstsq(
        torch.cat([design * root[:, None], ridge]).numpy(),
        torch.cat([target * root, ridge @ start]).numpy(),
        rcond=None,
    )[0]
    np.testing.assert_allclose(found["one"].refined_mask(start).numpy(), expected, rtol=1e-7)


def test_a_refined_mask_comes_nearer_where_queries_differ_much() -> None:
    block, x = non_local(seed=3, scale="inv_sqrt"), images(20)
    with torch.no_grad(), calibrating({"one": block}) as found:
        block(x)
    made = simplified(block, found["one"].mean_query())
    target = torch.stack([mean_map(*_parts(block, image), block.attention.logit_scale) for image in x])
    errors = []
    for weight in (made.mask.weight.detach()[0], found["one"].refined_mask(made.mask.weight.detach()[0])):
        weights = (x.flatten(2).mT @ weight).softmax(1)
        errors.append(float((target * (target / weights).log()).sum()))  # Kullback-Leibler
    assert errors[1] < errors[0]


def _parts(block: NonLocal, image: Tensor) -> tuple[Tensor, Tensor]:
    rows = image.flatten(1).mT
    with torch.no_grad():
        return block.query(rows), block.key(rows)


def test_the_streamed_mean_map_is_the_mean_of_the_whole_map(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key = torch.randn(50, 4, dtype=torch.float64), torch.randn(30, 4, dtype=torch.float64)
    monkeypatch.setattr("nlprobe.simplification.calibration.ENTRIES", 100)
    torch.testing.assert_close(mean_map(query, key, 0.7), (0.7 * query @ key.mT).softmax(1).mean(0))


def test_a_bottleneck_of_full_width_loses_nothing_and_a_narrow_one_as_little_as_any_of_its_rank() -> None:
    block, x = non_local(), images(12)
    with torch.no_grad(), calibrating({"one": block}) as found:
        block(x)
    made = simplified(block, found["one"].mean_query())
    mean, covariance = found["one"].context_moments()
    torch.testing.assert_close(bottlenecked(made, 1, mean, covariance)(x), made(x), rtol=1e-8, atol=1e-8)
    narrow = bottlenecked(made, 4, mean, covariance)
    assert narrow.transform[0].out_features == 2
    weight = made.transform[0].weight.detach()
    lost = weight - narrow.transform[-1].weight.detach() @ narrow.transform[0].weight.detach()
    root = torch.linalg.cholesky(covariance)
    least = torch.linalg.svdvals(weight @ root)[2:].square().sum()
    torch.testing.assert_close((lost @ root).square().sum(), least, rtol=1e-6, atol=1e-9)
    with torch.no_grad():  # nothing is lost at the mean context
        torch.testing.assert_close(narrow.transform(mean[None]), made.transform(mean[None]))


def test_a_bottleneck_is_for_simplified_blocks_only() -> None:
    with pytest.raises(ConfigError, match="only an SNL block"):
        bottlenecked(ContextBlock(8), 4)


def test_pooled_keys_are_calibrated_on_pooled_positions() -> None:
    block = non_local(sub_sample="pool_then_project")
    x = images(size=(5, 6))
    with torch.no_grad(), calibrating({"one": block}) as found:
        block(x)
    pooled = torch.nn.functional.max_pool2d(x, 2).flatten(2).mT
    query = block.query(x.flatten(2).mT)
    weights = (query @ block.key(pooled).mT).softmax(2).mean(1)
    contexts = (weights[:, None] @ pooled).squeeze(1).detach()
    torch.testing.assert_close(found["one"].context_moments()[0], contexts.mean(0))


def test_distilled_blocks_come_nearer_and_leave_the_network_alone() -> None:
    block = non_local(scale="inv_sqrt")
    model = nn.Sequential(block).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = images(8)
    made = {"0": simplified(block, torch.zeros(4, dtype=torch.float64))}
    told: list[float] = []
    trained = distilled(
        model, made, [lambda: model(x)] * 30, steps=30, learning_rate=1e-2, tell=lambda _, loss: told.append(loss)
    )
    with torch.no_grad():
        y = model(x) - x
        errors = [float((one["0"](x) - x - y).square().sum() / y.square().sum()) for one in (made, trained)]
    assert errors[1] < errors[0]
    assert told[0] == pytest.approx(errors[0])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not block._forward_hooks
