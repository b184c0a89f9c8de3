"""Learning rates, against torch's own schedulers and against the formulas."""

import itertools
import math

import pytest
import torch

from nlprobe.errors import ConfigError
from nlprobe.training import Schedule


def factors(schedule: Schedule, epochs: int = 10, steps: int = 4) -> list[float]:
    return [schedule.factor(step, steps, epochs) for step in range(epochs * steps)]


def torchs(scheduler: type, epochs: int = 10, **settings: object) -> list[float]:
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = scheduler(optimiser, **settings)
    rates = []
    for _ in range(epochs):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        reference.step()
    return rates


def test_cosine_by_epoch_is_torchs_cosine_annealing() -> None:
    found = factors(Schedule("cosine", "epoch"))[::4]
    assert found == pytest.approx(torchs(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=10))


def test_by_epoch_the_factor_stays_within_an_epoch_and_by_step_it_moves() -> None:
    by_epoch, by_step = factors(Schedule("cosine", "epoch")), factors(Schedule("cosine", "step"))
    assert len(set(by_epoch)) == 10
    assert len(set(by_step)) == 40
    assert by_epoch[::4] == by_step[::4]


def test_step_is_torchs_multi_step() -> None:
    found = factors(Schedule("step", milestones=(3.0, 7.0)))[::4]
    assert found == pytest.approx(torchs(torch.optim.lr_scheduler.MultiStepLR, milestones=[3, 7]))


def test_polynomial_is_torchs() -> None:
    found = factors(Schedule("polynomial", "epoch", power=0.9))[::4]
    assert found == pytest.approx(torchs(torch.optim.lr_scheduler.PolynomialLR, total_iters=10, power=0.9))


def test_constant_is_one() -> None:
    assert set(factors(Schedule("constant"))) == {1.0}


@pytest.mark.parametrize("kind", ["constant", "cosine", "polynomial"])
def test_warm_up_rises_in_a_line_and_the_decay_starts_at_its_end(kind: str) -> None:
    found = factors(Schedule(kind, warmup_epochs=2.0))
    assert all(0 < step < 1 for step in found[:8])
    rises = [after - before for before, after in itertools.pairwise(found[:8])]
    assert rises == pytest.approx([rises[0]] * 7)
    assert found[8] == 1.0


def test_cosine_ends_near_zero_and_is_half_in_the_middle() -> None:
    found = factors(Schedule("cosine"))
    assert found[20] == pytest.approx(0.5)
    assert found[-1] == pytest.approx((1 + math.cos(math.pi * 39 / 40)) / 2)
    assert min(found) >= 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "cosin"},
        {"unit": "day"},
        {"kind": "step"},
        {"milestones": (3.0,)},
        {"kind": "step", "milestones": (7.0, 3.0)},
        {"warmup_epochs": -1.0},
        {"warmup_start": 2.0},
    ],
)
def test_impossible_schedules_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match="schedule"):
        Schedule(**wrong)


def test_a_warm_up_in_steps_is_the_one_in_epochs() -> None:
    by_steps = Schedule("polynomial", warmup_steps=8, warmup_start=0.1)
    assert factors(by_steps) == factors(Schedule("polynomial", warmup_epochs=2.0, warmup_start=0.1))
    with pytest.raises(ConfigError, match="in one of the two"):
        Schedule(warmup_steps=3, warmup_epochs=1.0)


def test_an_end_is_torchs_least_learning_rate() -> None:
    found = factors(Schedule("cosine", "epoch", end=0.2))[::4]
    assert found == pytest.approx(torchs(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=10, eta_min=0.2))
    # mmsegmentation's: (base - min) * factor + min
    polynomial = factors(Schedule("polynomial", power=2.0, end=0.01))
    assert polynomial == pytest.approx([0.99 * (1 - step / 40) ** 2 + 0.01 for step in range(40)])
    with pytest.raises(ConfigError, match="between 0 and 1"):
        Schedule(end=1.5)
