"""The loop: it learns, it stops where it should, and it goes on to the same bits."""

import math
import os
import signal
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from training_reference import GLOBAL_CONTEXT, Stripes, plain_training

from nlprobe.checkpoints import fingerprint
from nlprobe.data import UnreadableImageError
from nlprobe.errors import ConfigError, NlprobeError
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


def test_a_batch_in_parts_teaches_what_it_teaches_whole(make_run) -> None:
    """Mean of means, with a block that has no statistics over a batch and a loss in the log that counts every image."""
    settings: dict[str, Any] = {"config": GLOBAL_CONTEXT, "batch_norm": "frozen"}
    whole, parted = make_run(**settings).engine(CPU), make_run(**settings, accumulate=4).engine(CPU)
    whole.train()
    parted.train()
    for own, other in zip(parted.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-6)
    for name in ("train_loss", "train_top1", "val_loss", "val_top1"):
        values = [[row[name] for row in engine.progress.history] for engine in (parted, whole)]
        assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_parts_that_are_not_equal_are_refused(make_run) -> None:
    with pytest.raises(ConfigError, match=r"a batch of 8 cannot be cut .* 1 process, 3 parts each\n.* 6 or 9"):
        make_run(accumulate=3).engine(CPU)


def test_an_image_that_cannot_be_read_leaves_the_weight_of_the_others_as_it_is(make_run, monkeypatch) -> None:
    """A step on seven of eight images moves the weights by 7/8 of their mean gradient, however the batch is parted."""
    gradients = []
    for accumulate in (1, 4):
        training = Stripes(40)
        picture = training.picture

        def unreadable(index: int, picture=picture) -> Any:
            if index == 11:
                raise UnreadableImageError("0011", "it is gone")
            return picture(index)

        monkeypatch.setattr(training, "picture", unreadable)
        run = make_run(training=training, config=GLOBAL_CONTEXT, batch_norm="frozen", accumulate=accumulate, epochs=1)
        engine = run.engine(CPU)
        engine.train()
        assert engine.progress.history[0]["train_top1"] * 39 == pytest.approx(
            round(engine.progress.history[0]["train_top1"] * 39)
        )
        gradients.append(torch.cat([parameter.detach().flatten() for parameter in engine.model.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_gradients_are_clipped_together(make_run) -> None:
    """One step of plain SGD moves all weights together by the learning rate times the norm, and no further."""
    moves = []
    for clip in (0.0, 0.01):
        run = make_run(
            epochs=1,
            batch_size=40,
            optimiser__clip_norm=clip,
            optimiser__momentum=0.0,
            optimiser__weight_decay=0.0,
            schedule__kind="constant",
            schedule__warmup_epochs=0,
        )
        engine = run.engine(CPU)
        engine.train()
        pairs = zip(engine.model.parameters(), run.build().parameters(), strict=True)
        moves.append(math.sqrt(sum((after - before).square().sum().item() for after, before in pairs)))
    assert moves[0] > 0.01
    assert moves[1] == pytest.approx(0.1 * 0.01, rel=1e-3)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_learns_about_the_same_and_goes_on_to_the_same_bits(make_run, amp: str) -> None:
    full = make_run(epochs=2).engine(CPU)
    full.train()
    settings = {"epochs": 2, "amp": amp}
    whole, first = make_run(**settings).engine(CPU), Watch(7)
    whole.train()
    first_losses = [engine.progress.curve[0]["loss"] for engine in (whole, full)]
    assert first_losses[0] == pytest.approx(first_losses[1], rel=0.02)
    assert first_losses[0] != first_losses[1]
    assert fingerprint(whole.model) != fingerprint(full.model)
    assert all(value.dtype in (torch.float32, torch.int64) for value in whole.model.state_dict().values())

    with pytest.raises(KeyboardInterrupt):
        make_run(**settings).engine(CPU, observers=[first]).train()
    assert first.state is not None
    assert bool(first.state["scaler"]) == (amp == "fp16")
    resumed = make_run(**settings).engine(CPU)
    resumed.load_state(first.state)
    resumed.train()
    assert fingerprint(resumed.model) == fingerprint(whole.model)


def test_a_step_whose_scaled_gradients_overflow_is_left_out(make_run) -> None:
    engine = make_run(epochs=1, amp="fp16", batch_size=40).engine(CPU)
    before = {name: value.clone() for name, value in engine.model.named_parameters()}
    engine._scaler.load_state_dict({**engine._scaler.state_dict(), "scale": 2.0**126})
    engine.train()
    assert all(torch.equal(value, before[name]) for name, value in engine.model.named_parameters())
    assert engine._scaler.get_scale() == 2.0**125


def test_weights_that_are_not_finite_are_never_kept(make_run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of the last step was finite, and the step itself broke the weights."""
    engine = make_run().engine(CPU)
    step = engine.optimiser.step

    def breaking(*arguments: Any, **options: Any) -> None:
        step(*arguments, **options)
        if engine.progress.step == 4:
            with torch.no_grad():
                engine.model.fc.bias[0] = math.inf

    monkeypatch.setattr(engine.optimiser, "step", breaking)
    engine.observers.append(Saving())
    with pytest.raises(NlprobeError, match=r"`fc\.bias` of the network is not finite any more after epoch 2, step 0/5"):
        engine.train()


class Saving(Observer):
    def epoch_done(self, engine: Engine, row: Mapping[str, Any], best: bool) -> None:
        engine.state()


def test_numbers_of_the_optimiser_may_change_when_a_run_goes_on(make_run) -> None:
    first = make_run().engine(CPU)
    resumed = make_run(optimiser__momentum=0.5, optimiser__weight_decay=0.25).engine(CPU)
    first.train()
    resumed.load_state(first.state())
    (group,) = resumed.optimiser.param_groups
    assert (group["momentum"], group["weight_decay"]) == (0.5, 0.25)


def test_the_curve_has_a_point_for_each_step_of_a_short_epoch_with_the_same_means(make_run) -> None:
    engine = make_run().engine(CPU)
    engine.train()
    curve, history = engine.progress.curve, engine.progress.history
    assert [point["epoch"] for point in curve] == pytest.approx([(step + 1) / 5 for step in range(15)])
    for name in ("loss", "top1"):
        for epoch in range(3):
            mean = sum(point[name] for point in curve[5 * epoch : 5 * epoch + 5]) / 5
            assert mean == pytest.approx(history[epoch][f"train_{name}"])
    assert curve[2]["learning_rate"] == 0.1 * make_run().recipe.schedule.factor(2, 5, 3)


def test_sigterm_stops_as_ctrl_c_does(make_run) -> None:
    class Terminate(Watch):
        def step_done(self, engine: Engine) -> None:
            if engine.progress.step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    engine = make_run().engine(CPU, observers=[Terminate()])
    with pytest.raises(KeyboardInterrupt):
        engine.train()
    assert (engine.progress.epoch, engine.progress.step) == (0, 2)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
