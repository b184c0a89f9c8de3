"""The branches of point-wise spatial attention: each a site, against its map written out in float64."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import nlprobe
from nlprobe.blocks import PointWise, PointWiseBranch, PointWiseConfig, SourceAttention
from nlprobe.errors import CaptureError
from nlprobe.probe import find_sites


def distance(rows: Tensor) -> float:
    rows = rows[(rows != 0).any(-1)]  # features behind a ReLU may be zero
    unit = rows.double() / rows.double().norm(dim=-1, keepdim=True)
    return float((1 - unit @ unit.mT).mean() / 2)


def block(**settings: object) -> PointWise:
    torch.manual_seed(4)
    options = {"mask_height": 5, "mask_width": 9, "reduction": 2, "normalisation": 3.0} | settings
    module = PointWise(8, 2, PointWiseConfig(**options)).eval()
    with torch.no_grad():
        for branch in (module.collect, module.distribute):
            branch.mask.weight.mul_(4)
    return module


def images() -> Tensor:
    return torch.randn(2, 8, 7, 11, generator=torch.Generator().manual_seed(5)) * 2


def probed(module: torch.nn.Module, **options: object) -> tuple[pd.DataFrame, nlprobe.probe.Probe]:
    with nlprobe.probe(module, **options) as probe, torch.no_grad():
        module(images())
    return probe.frame(), probe


def written_out(branch: PointWiseBranch, x: Tensor) -> dict[str, Tensor]:
    """What one image of a branch's input gives, entry by entry."""
    height, width = x.shape[1:]
    n, mask = height * width, (branch.config.mask_height, branch.config.mask_width)
    rows = x.flatten(1).T.double()
    hidden, norm = rows @ branch.hidden.linear.weight.double().T, branch.hidden.norm
    hidden = (hidden - norm.running_mean.double()) / (norm.running_var.double() + norm.eps).sqrt()
    hidden = (hidden * norm.weight.double() + norm.bias.double()).relu()
    masks = (hidden @ branch.mask.weight.double().T).view(n, *mask)
    logits = torch.zeros(n, n, dtype=torch.float64)
    for receiver in range(n):
        for source in range(n):
            predicting, other = (receiver, source) if branch.direction == "collect" else (source, receiver)
            y = other // width - predicting // width + (mask[0] - 1) // 2
            x_ = other % width - predicting % width + (mask[1] - 1) // 2
            if 0 <= y < mask[0] and 0 <= x_ < mask[1]:
                logits[receiver, source] = masks[predicting, y, x_]
    att = logits.softmax(-1)
    output = att @ rows / branch.config.normalisation
    return {name: t.detach() for name, t in {"input": rows, "att": att, "output": output}.items()}


def inputs_of(module: PointWise, direction: str) -> Tensor:
    seen: list[Tensor] = []
    handle = module.get_submodule(direction).register_forward_hook(lambda _, args, out: seen.append(args[0]))
    with torch.no_grad():
        module(images())
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("direction", ["collect", "distribute"])
@pytest.mark.parametrize("shrink", [1, 2])
def test_every_record_is_that_of_the_written_out_map(direction: str, shrink: int) -> None:
    module = block(shrink=shrink)
    frame, probe = probed(module)
    assert [site.name for site in probe.sites] == ["collect", "distribute"]
    frame = frame[frame["site"] == direction]
    assert set(frame["quantity"]) == {"input", "att", "output"}
    for image, x in enumerate(inputs_of(module, direction)):
        expected = written_out(module.get_submodule(direction), x)
        for quantity, rows in expected.items():
            (row,) = frame[(frame["image"] == str(image)) & (frame["quantity"] == quantity)].to_dict("records")
            assert row["avg_dist"] == pytest.approx(distance(rows), rel=1e-4)
            assert row["n_queries"] == len(rows)
            assert row["zero_rows"] == int((rows == 0).all(-1).sum())
            if quantity == "att":
                entropy = -torch.special.xlogy(rows, rows).sum(-1).mean() / np.log(len(rows))
                assert row["entropy"] == pytest.approx(float(entropy), rel=1e-5)
                assert row["n_eff"] == pytest.approx(float((1 / rows.square().sum(-1)).mean()), rel=1e-5)
            if quantity == "output":
                assert np.isnan(row["update"])


def test_the_sites_are_the_branches_that_there_are() -> None:
    assert [site.name for site in find_sites(block())] == ["collect", "distribute"]
    (site,) = find_sites(PointWise(8, 2, PointWiseConfig(5, 5, branches="distribute")))
    assert (site.name, site.block, site.settings["direction"]) == ("distribute", "point_wise", "distribute")


def test_the_audit_recomputes_logits_values_and_sums() -> None:
    for audit in probed(block())[1].audit():
        assert audit.status == "passed"
        assert set(audit.errors) == {"logits", "value", "A·V", "A·V / F"}
        assert audit.error < 1e-5
    assert probed(block(mask_height=4, mask_width=6, compact=True).train())[1].audit()[0].status == "passed"


def wrong_scale(self: SourceAttention, logits: Tensor, value: Tensor) -> Tensor:
    return (1.1 * logits).softmax(-1) @ value


def wrong_axis(self: SourceAttention, logits: Tensor, value: Tensor) -> Tensor:
    return logits.softmax(-2) @ value


def wrong_order(self: SourceAttention, logits: Tensor, value: Tensor) -> Tensor:
    return logits.softmax(-1) @ value.flip(1)


def dropped_sources(self: SourceAttention, logits: Tensor, value: Tensor) -> Tensor:
    return logits[..., 1:].softmax(-1) @ value[:, 1:]


@pytest.mark.parametrize("broken", [wrong_scale, wrong_axis, wrong_order, dropped_sources])
def test_a_product_that_is_not_the_stated_one_is_caught(broken, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SourceAttention, "forward", broken)
    with pytest.raises(CaptureError, match="`A·V` is off by"):
        probed(block())


def test_masks_that_are_placed_otherwise_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    placed = PointWiseBranch._placed
    monkeypatch.setattr(PointWiseBranch, "_placed", lambda self, masks, h, w: placed(self, masks, h, w).mT)
    with pytest.raises(CaptureError, match="`logits` is off by"):
        probed(block())


def test_sums_that_are_divided_otherwise_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = PointWiseBranch.forward
    monkeypatch.setattr(PointWiseBranch, "forward", lambda self, x: forward(self, x) * 1.01)
    with pytest.raises(CaptureError, match="`A·V / F` is off by"):
        probed(block())


def test_maps_are_drawn_on_the_shrunken_grid() -> None:
    module = block()
    maps = nlprobe.attention_map(module, images()[0], [(0, 0), (6, 10)], site="distribute")
    expected = written_out(module.distribute, inputs_of(module, "distribute")[0])["att"]
    assert maps.grid == (4, 6)
    np.testing.assert_allclose(maps.maps.reshape(2, -1), expected[[0, 23]], rtol=1e-4, atol=1e-7)
    assert maps.avg_dist == pytest.approx(distance(expected), rel=1e-4)


def test_the_null_model_redraws_each_branch() -> None:
    module = block()
    with nlprobe.probe(module) as probe, torch.no_grad(), nlprobe.init_block(probe, draws=2) as drawn:
        module(images())
    for site in ("collect", "distribute"):
        first, second = (draw.frame for draw in drawn.draws(site))
        assert not first["avg_dist"].equals(second["avg_dist"])
