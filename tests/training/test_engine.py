"""The loop: it learns, it stops where it should, and it goes on to the same bits."""

import math
import os
import signal
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from training_reference import plain_training

from nlprobe.checkpoints import fingerprint
from nlprobe.errors import NlprobeError
from nlprobe.training import Engine, Observer


class Watch(Observer):
    """Notes losses after each step, and stops the run after step `stop` by a real signal."""

    def __init__(self, stop: int | None = None) -> None:
        self.losses: list[float] = []
        self.rows: list[dict[str, Any]] = []
        self.bests: list[bool] = []
        self.stop = stop
        self.state: dict[str, Any] | None = None

    def step_done(self, engine: Engine) -> None:
        self.losses.append(engine.progress.sums["loss"])
        if len(self.losses) == self.stop:
            os.kill(os.getpid(), signal.SIGINT)

    def epoch_done(self, engine: Engine, row: Mapping[str, Any], best: bool) -> None:
        self.rows.append({key: row[key] for key in row if "second" not in key})
        self.bests.append(best)

    def interrupted(self, engine: Engine) -> None:
        import copy

        self.state = copy.deepcopy(engine.state())


CPU = torch.device("cpu")


def test_it_learns(make_run, device: torch.device) -> None:
    engine = make_run(epochs=10).engine(device)
    engine.train()
    history = engine.progress.history
    assert len(history) == 10
    assert history[-1]["train_loss"] < 0.6 * history[0]["train_loss"]
    assert engine.progress.best is not None
    assert engine.progress.best > 0.85


def test_it_is_the_plain_loop(make_run) -> None:
    """The same weights as the loop of a tutorial, written out with torch's own optimiser, to the last bit."""
    run = make_run()
    engine = run.engine(CPU)
    engine.train()
    assert fingerprint(engine.model) == fingerprint(plain_training(run))


def test_a_seed_gives_the_same_weights_and_another_seed_others(make_run) -> None:
    prints = []
    for seed in (0, 0, 1):
        engine = make_run(seed=seed, epochs=1).engine(CPU)
        engine.train()
        prints.append(fingerprint(engine.model))
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("stop", [1, 5, 7, 10, 15])
def test_stopped_after_any_step_it_goes_on_to_the_same_bits(make_run, stop: int) -> None:
    """Five steps an epoch: within an epoch, before its validation, in the last one."""
    whole, first, second = Watch(), Watch(stop), Watch()
    uninterrupted = make_run().engine(CPU, observers=[whole])
    uninterrupted.train()

    with pytest.raises(KeyboardInterrupt):
        make_run().engine(CPU, observers=[first]).train()
    assert first.state is not None
    resumed = make_run().engine(CPU, observers=[second])
    resumed.load_state(first.state)
    torch.manual_seed(12345)
    resumed.train()

    assert first.losses + second.losses == whole.losses
    assert first.rows + second.rows == whole.rows
    assert fingerprint(resumed.model) == fingerprint(uninterrupted.model)
    assert resumed.progress.best == uninterrupted.progress.best
    assert resumed.progress.best_epoch == uninterrupted.progress.best_epoch


def test_a_stop_during_validation_keeps_the_epochs_training(make_run, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch()
    engine = make_run().engine(CPU, observers=[watch])
    validate = engine.task.validate

    def interrupted(model: torch.nn.Module, stop: Any) -> dict[str, float] | None:
        os.kill(os.getpid(), signal.SIGINT)
        return validate(model, stop)

    monkeypatch.setattr(engine.task, "validate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.train()
    assert (engine.progress.epoch, engine.progress.step) == (0, 5)


def test_the_signal_handler_is_put_back(make_run) -> None:
    before = signal.getsignal(signal.SIGINT)
    make_run(epochs=1).engine(CPU).train()
    with pytest.raises(KeyboardInterrupt):
        make_run().engine(CPU, observers=[Watch(1)]).train()
    assert signal.getsignal(signal.SIGINT) is before


def test_workers_do_not_change_a_bit(make_run) -> None:
    prints = []
    for workers in (0, 2):
        engine = make_run().engine(CPU, workers=workers)
        engine.train()
        prints.append(fingerprint(engine.model))
    assert prints[0] == prints[1]


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_images(make_run) -> None:
    engine = make_run().engine(CPU)
    loss = engine.task.loss
    calls = []

    def poisoned(model: torch.nn.Module, batch: Any) -> Any:
        from dataclasses import replace

        calls.append(batch.ids)
        found = loss(model, batch)
        return replace(found, mean=found.mean * math.nan) if len(calls) == 7 else found

    engine.task.loss = poisoned  # type: ignore[method-assign]
    with pytest.raises(NlprobeError, match="the loss is nan at epoch 2, step 2/5") as caught:
        engine.train()
    assert f"`{calls[6][0]}`" in caught.value.cause
    assert "learning rate" in caught.value.remedy
    assert engine.progress.epoch == 1


def test_the_best_epoch_is_the_first_of_equals(make_run, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch()
    engine = make_run(epochs=4).engine(CPU, observers=[watch])
    scores = iter([0.5, 0.7, 0.7, 0.6])
    monkeypatch.setattr(engine.task, "validate", lambda model, stop: {"top1": next(scores)})
    engine.train()
    assert watch.bests == [True, True, False, False]
    assert engine.progress.best_epoch == 2


def test_the_learning_rate_follows_the_schedule(make_run) -> None:
    rates = []

    class Rates(Watch):
        def step_done(self, engine: Engine) -> None:
            rates.append(engine.optimiser.param_groups[0]["lr"])

    run = make_run()
    run.engine(CPU, observers=[Rates()]).train()
    expected = [0.1 * run.recipe.schedule.factor(step, 5, 3) for step in range(15)]
    assert rates == expected


def test_norms_and_biases_are_decayed_only_on_request(make_run) -> None:
    everything = make_run().engine(CPU).optimiser.param_groups
    assert [group["weight_decay"] for group in everything] == [1e-4]
    weights, others = make_run(optimiser__decay_norms=False).engine(CPU).optimiser.param_groups
    assert (weights["weight_decay"], others["weight_decay"]) == (1e-4, 0.0)
    assert all(parameter.ndim > 1 for parameter in weights["params"])
    assert len(weights["params"]) + len(others["params"]) == len(everything[0]["params"])


def test_channels_last_changes_nothing_but_rounding(make_run) -> None:
    losses = []
    for channels_last in (False, True):
        engine = make_run(epochs=1, channels_last=channels_last).engine(CPU)
        engine.train()
        losses.append(engine.progress.history[0]["train_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
