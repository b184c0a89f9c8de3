"""Criss-cross sites: every number against the written-out N x N map, and every way to be silently wrong."""

import itertools
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import nlprobe
from nlprobe.blocks import CrissCross, CrissCrossAttention, CrissCrossConfig
from nlprobe.errors import CaptureError, ConfigError
from nlprobe.stats.summary import heads_of, per_image, summarise

GRID = (4, 7)  # not square, and wider than high


def distance(rows: Tensor) -> float:
    unit = rows.double() / rows.double().norm(dim=-1, keepdim=True)
    return float((1 - unit @ unit.mT).mean() / 2)


def crosses(grid: tuple[int, int]) -> Tensor:
    places = list(itertools.product(range(grid[0]), range(grid[1])))
    return torch.tensor([[y == v or x == u for v, u in places] for y, x in places])


def block(recurrence: int = 2, **settings: object) -> CrissCross:
    torch.manual_seed(3)
    return CrissCross(16, 2, CrissCrossConfig(4, recurrence, zero_init=False, **settings)).eval()


def images(grid: tuple[int, int] = GRID) -> Tensor:
    return torch.randn(2, 16, *grid, generator=torch.Generator().manual_seed(5)) * 2


def written_out(module: CrissCross, image: Tensor) -> list[dict[str, Tensor]]:
    """Everything of each step of one image, in float64, with N x N matrices."""
    module = CrissCross(module.channels, 2, module.config).double()
    module.load_state_dict({name: tensor.double() for name, tensor in CAPTURED.items()})
    x, seen, steps = image.double().flatten(1).T, crosses(tuple(image.shape[1:])), []
    for _ in range(module.config.recurrence):
        query, key, value = module.query(x), module.key(x), module.value(x)
        logits = query @ key.T
        att = logits.masked_fill(~seen, -torch.inf).softmax(-1)
        output = module.gamma.gamma * (att @ value)
        steps.append(
            {"input": x, "key": key, "query": query, "prod": logits * seen, "att": att, "output": output, "seen": seen}
        )
        x = x + output
    return [{name: tensor.detach() for name, tensor in step.items()} for step in steps]


CAPTURED: dict[str, Tensor] = {}


@pytest.fixture
def module() -> CrissCross:
    module = block()
    CAPTURED.clear()
    CAPTURED.update(module.state_dict())
    return module


def probed(module: torch.nn.Module, x: Tensor, **options: object) -> tuple[pd.DataFrame, nlprobe.probe.Probe]:
    with nlprobe.probe(module, **options) as probe, torch.no_grad():
        module(x)
    return probe.frame(), probe


def one(frame: pd.DataFrame, image: int, call: int, quantity: str, head: str) -> pd.Series:
    chosen = (frame["image"] == str(image)) & (frame["call"] == call) & (frame["quantity"] == quantity)
    (row,) = frame[chosen & (frame["head"] == head)].to_dict("records")
    return row


@pytest.mark.parametrize("grid", [(4, 7), (7, 4), (1, 6), (6, 1)], ids=str)
def test_every_record_is_that_of_the_written_out_map(module: CrissCross, grid: tuple[int, int]) -> None:
    frame, _ = probed(module, images(grid))
    n, keys = grid[0] * grid[1], grid[0] + grid[1] - 1
    for image, pixels in enumerate(images(grid)):
        steps = written_out(module, pixels)
        for call, step in enumerate(steps):
            for quantity, head in (
                ("input", "-"),
                ("key", "0"),
                ("query", "0"),
                ("prod", "0"),
                ("att", "0"),
                ("output", "-"),
            ):
                row = one(frame, image, call, quantity, head)
                assert row["avg_dist"] == pytest.approx(distance(step[quantity]), rel=1e-4), (call, quantity)
                assert row["n_queries"] == n
            att, row = step["att"], one(frame, image, call, "att", "0")
            assert row["n_keys"] == row["dim"] == n
            entropy = -torch.special.xlogy(att, att).sum(-1).mean() / np.log(keys)
            assert row["entropy"] == pytest.approx(float(entropy), rel=1e-5)
            assert row["n_eff"] == pytest.approx(float((1 / att.square().sum(-1)).mean()), rel=1e-5)
            uneven = att - step["seen"].double() / keys
            shared = uneven.mean(0).square().sum() / uneven.square().sum(-1).mean()
            assert row["shared"] == pytest.approx(float(shared), rel=1e-5)
            flat = distance(step["seen"].double())
            assert np.isnan(row["flat"]) if 1 in grid else row["flat"] == pytest.approx(flat, rel=1e-10)
            rows = [s[m] for s, m in zip(step["prod"], step["seen"], strict=True)]
            spread = torch.stack([row.var(correction=0) for row in rows])
            assert one(frame, image, call, "prod", "0")["logit_std"] == pytest.approx(
                float(spread.mean().sqrt()), rel=1e-4
            )


@pytest.mark.parametrize("grid", [(4, 7), (7, 4), (3, 3), (1, 6), (6, 1)], ids=str)
def test_the_composed_map_is_the_product_of_the_steps_maps(module: CrissCross, grid: tuple[int, int]) -> None:
    frame, _ = probed(module, images(grid))
    n = grid[0] * grid[1]
    for image, pixels in enumerate(images(grid)):
        first, second = written_out(module, pixels)
        composed = second["att"] @ first["att"]
        row = one(frame, image, 1, "att", "composed")
        assert row["avg_dist"] == pytest.approx(distance(composed), rel=1e-5)
        assert row["entropy"] == pytest.approx(
            float(-torch.special.xlogy(composed, composed).sum(-1).mean() / np.log(n)), rel=1e-5
        )
        assert row["n_eff"] == pytest.approx(float((1 / composed.square().sum(-1)).mean()), rel=1e-5)
        uneven = composed - 1 / n
        assert row["shared"] == pytest.approx(
            float(uneven.mean(0).square().sum() / uneven.square().sum(-1).mean()), rel=1e-4
        )
        whole = first["output"] + second["output"]
        row = one(frame, image, 1, "output", "composed")
        assert row["avg_dist"] == pytest.approx(distance(whole), rel=1e-5)
        assert row["update"] == pytest.approx(float(whole.norm() / first["input"].norm()), rel=1e-5)
    assert set(frame.loc[frame["head"] == "composed", "call"]) == {1}


def test_one_step_has_no_composed_map() -> None:
    frame, probe = probed(block(1), images())
    assert set(frame["head"]) == {"-", "0"}
    assert probe.audit()[0].calls == 1


def test_composed_rows_are_rows_of_their_own_and_no_part_of_the_mean(module: CrissCross) -> None:
    frame, _ = probed(module, images())
    assert heads_of(frame) == ["0", "composed"]
    steps = frame[(frame["quantity"] == "att") & (frame["head"] == "0")]
    expected = steps.groupby("image", sort=False)["avg_dist"].mean()
    np.testing.assert_allclose(per_image(frame, "att"), expected)
    assert summarise(frame, model="m").quantities["att"].mean == pytest.approx(expected.mean())
    composed = summarise(frame, model="m", head="composed")
    assert set(composed.quantities) == {"att", "output"}


def test_the_energy_is_that_of_the_whole_output(module: CrissCross) -> None:
    _, probe = probed(module, images())
    whole = torch.stack([sum(step["output"] for step in written_out(module, image)) for image in images()])
    mean, energy = whole.mean(1), whole.square().sum(-1).mean()
    shares = probe.energy()["."]
    assert shares["constant"] == pytest.approx(float(mean.mean(0).square().sum() / energy), rel=1e-5)
    assert sum(shares.values()) == pytest.approx(1)


def test_centred_distances_of_steps_and_of_the_whole(module: CrissCross) -> None:
    _, probe = probed(module, images())
    frame, _ = probed(module, images(), centres=probe.centres())
    whole = [sum(step["output"] for step in written_out(module, image)) for image in images()]
    centre = torch.stack(whole).mean((0, 1))
    row = one(frame, 0, 1, "output", "composed")
    assert row["centred_dist"] == pytest.approx(distance(whole[0] - centre), rel=1e-4)
    assert np.isnan(one(frame, 0, 0, "output", "-")["centred_dist"])


def test_every_step_is_recomputed(module: CrissCross) -> None:
    _, probe = probed(module, images())
    (audit,) = probe.audit()
    assert (audit.status, audit.calls) == ("passed", 2)
    assert set(audit.errors) == {"query", "key", "value", "A·V", "x + γ·A·V"}
    assert audit.error < 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_precisions_pass_the_audit(module: CrissCross, dtype: torch.dtype) -> None:
    _, probe = probed(module.to(dtype), images().to(dtype) * 0.2)
    assert probe.audit()[0].status == "passed"


def test_autocast_passes_the_audit(module: CrissCross) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        _, probe = probed(module, images() * 0.2)
    assert probe.audit()[0].dtype == "bfloat16"


def weights_of(query: Tensor, key: Tensor, scale: float = 1.0, diagonal: bool = False) -> Tensor:
    column = scale * query.transpose(1, 2) @ key.transpose(1, 2).mT
    if not diagonal:
        column.diagonal(dim1=2, dim2=3).fill_(-torch.inf)
    return torch.cat((column.transpose(1, 2), scale * query @ key.mT), -1).softmax(-1)


def applied(weights: Tensor, value: Tensor) -> Tensor:
    height = value.shape[1]
    columns = weights[..., :height].transpose(1, 2) @ value.transpose(1, 2)
    return weights[..., height:] @ value + columns.transpose(1, 2)


BROKEN = {
    "scale": lambda self, q, k, v: applied(weights_of(q, k, 1.1), v),
    "self counted twice": lambda self, q, k, v: applied(weights_of(q, k, diagonal=True), v),
    "key order": lambda self, q, k, v: applied(weights_of(q, k.flip(2)), v),
    "a row's key dropped": lambda self, q, k, v: applied(
        weights_of(q, k) * (torch.arange(q.shape[1] + q.shape[2]) != q.shape[1]), v
    ),
    "arms by themselves": lambda self, q, k, v: applied(
        torch.cat(
            (
                weights_of(q, k)[..., : q.shape[1]],
                (q @ k.mT).softmax(-1),
            ),
            -1,
        ),
        v,
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_product_that_is_not_the_stated_one_is_caught(
    broken: str, module: CrissCross, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CrissCrossAttention, "forward", BROKEN[broken])
    with pytest.raises(CaptureError, match="`A·V` is off by"):
        probed(module, images())


def test_the_imitation_that_the_breakages_start_from_is_right(
    module: CrissCross, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CrissCrossAttention, "forward", lambda self, q, k, v: applied(weights_of(q, k), v))
    _, probe = probed(module, images())
    assert probe.audit()[0].status == "passed"


def test_a_second_step_that_differs_is_caught(module: CrissCross, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, runs = CrissCrossAttention.forward, itertools.count()
    monkeypatch.setattr(
        CrissCrossAttention, "forward", lambda self, q, k, v: forward(self, q, k, v) * (1 + 0.01 * next(runs))
    )
    with pytest.raises(CaptureError, match="`A·V` is off by"):
        probed(module, images())


def test_residual_paths_and_steps_that_are_not_the_stated_ones_are_caught(
    module: CrissCross, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = CrissCross.forward
    monkeypatch.setattr(CrissCross, "forward", lambda self, x: forward(self, x) + 0.01 * x)
    with pytest.raises(CaptureError, match=r"`x \+ γ·A·V` is off by"):
        probed(module, images())
    monkeypatch.setattr(CrissCross, "forward", lambda self, x: x)
    with pytest.raises(CaptureError, match="a `CrissCross` block of 2 steps ran its attention 0 times"):
        probed(module, images())


def test_what_has_no_meaning_here_is_refused(module: CrissCross) -> None:
    with pytest.raises(ConfigError, match="no rectangle of keys"):
        probed(module, images(), rectangle=(slice(0, 2), slice(0, 2)))
    with pytest.raises(ConfigError, match="prefix tokens have no column and row"):
        probed(module, images(), prefix=1)


def test_maps_are_composed_by_default_and_crosses_on_request(module: CrissCross) -> None:
    for grid in ((4, 7), (7, 4)):
        pixels = images(grid)[0]
        first, second = written_out(module, pixels)
        composed = second["att"] @ first["att"]
        queries, rows = [(0, 0), (2, 3), (3, 1)], [0, 2 * grid[1] + 3, 3 * grid[1] + 1]
        for call, expected, kind in (
            (None, composed, "composed"),
            (0, first["att"], "criss_cross"),
            (1, second["att"], "criss_cross"),
        ):
            maps = nlprobe.attention_map(module, pixels, queries, call=call)
            assert (maps.grid, maps.instantiation) == (grid, kind)
            np.testing.assert_allclose(maps.maps.reshape(3, -1), expected[rows], rtol=1e-4, atol=1e-7)
            np.testing.assert_allclose(maps.mean.ravel(), expected.mean(0), rtol=1e-4, atol=1e-7)
            assert maps.avg_dist == pytest.approx(distance(expected), rel=1e-4)
    with pytest.raises(ConfigError, match=r"`\.` has no call 2: it ran 2 times"):
        nlprobe.attention_map(module, images()[0], [(0, 0)], call=2)


def test_the_null_model_redraws_the_block(module: CrissCross) -> None:
    with nlprobe.probe(module) as probe, torch.no_grad(), nlprobe.init_block(probe, draws=2) as drawn:
        module(images())
    first, second = (draw.frame for draw in drawn.draws("."))
    assert not first["avg_dist"].equals(second["avg_dist"])
    assert first["avg_dist"].notna().all()


PROGRAM = """
    import torch, nlprobe
    from benchmarks.memory import peak_extra_bytes
    from nlprobe import stats
    query, key = torch.randn(2, 1, {side}, {side}, 64) * 0.3, torch.randn(2, 1, {side}, {side}, 64) * 0.3
    stats.composed_map_statistics(query[:, :, :9, :9], key[:, :, :9, :9])
    stats.cross_map_statistics(query[0, :, :9, :9], key[0, :, :9, :9])
    print(peak_extra_bytes(lambda: (stats.composed_map_statistics(query, key),
                                    stats.cross_map_statistics(query[0], key[0]),
                                    stats.cross_product_statistics(query[0], key[0]))))
"""


def test_the_kernels_take_less_than_64_mib_at_97_by_97() -> None:
    root = Path(__file__).parents[2]
    program = dedent(PROGRAM.format(side=97))
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 64 * 2**20
