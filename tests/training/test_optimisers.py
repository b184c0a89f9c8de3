"""Which parameters the optimiser's numbers apply to, and that they do."""

from typing import Any

import pytest
import torch
from torch import nn

from nlprobe.errors import ConfigError
from nlprobe.training import Optimiser
from nlprobe.training.optimisers import build_optimiser, parameter_groups


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.LayerNorm([4, 2, 2]), nn.Flatten(), nn.Linear(16, 2))


def described(settings: Optimiser) -> dict[str, tuple[float, float]]:
    """Decay and learning rate factor of every parameter."""
    model = network()
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, settings)
    found = {names[p]: (group["weight_decay"], group["factor"]) for group in groups for p in group["params"]}
    assert set(found) == set(names.values())
    return found


def test_without_a_word_everything_is_decayed() -> None:
    assert set(described(Optimiser(weight_decay=0.1)).values()) == {(0.1, 1.0)}


def test_norms_of_any_shape_and_biases_go_without_decay_on_request() -> None:
    found = described(Optimiser(weight_decay=0.1, decay_norms=False))
    assert {name for name, (decay, _) in found.items() if decay} == {"0.weight", "4.weight"}


def test_a_rule_changes_what_it_names_and_the_last_that_fits_holds() -> None:
    settings = Optimiser(weight_decay=0.1, rules=("4.* lr=10", "*.bias lr=2 decay=0"))
    found = described(settings)
    assert found["4.weight"] == (0.1, 10.0)
    assert found["4.bias"] == found["0.bias"] == (0.0, 2.0)
    assert found["0.weight"] == (0.1, 1.0)


def test_frozen_parameters_are_left_out() -> None:
    model = network()
    model[0].requires_grad_(False)
    assert sum(len(group["params"]) for group in parameter_groups(model, Optimiser())) == 6
    with pytest.raises(ConfigError, match="every parameter is frozen"):
        parameter_groups(model.requires_grad_(False), Optimiser())


def test_a_rule_that_fits_nothing_is_an_error_with_close_names() -> None:
    with pytest.raises(ConfigError, match=r"`4\.weigth` fits no parameter.*\n.*did you mean `4\.weight`"):
        parameter_groups(network(), Optimiser(rules=("4.weigth lr=2",)))


@pytest.mark.parametrize(
    "rule", ["", "fc.*", "fc.* lr", "fc.* lr=x", "fc.* rate=2", "fc.* lr=-1", "fc.* lr=inf", "lr=2"]
)
def test_rules_that_cannot_be_read_are_named(rule: str) -> None:
    with pytest.raises(ConfigError, match="is not a rule of the optimiser"):
        Optimiser(rules=(rule,))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "adam"}, "did you mean `adamw`"),
        ({"betas": (0.9, 1.0)}, "two numbers in"),
        ({"epsilon": 0.0}, "`epsilon` is positive"),
        ({"clip_norm": -1.0}, "not negative"),
        ({"nesterov": True, "momentum": 0.0}, "Nesterov"),
    ],
)
def test_impossible_numbers_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Optimiser(**settings)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_step_is_torchs_own(kind: str) -> None:
    settings = Optimiser(kind, 0.01, momentum=0.8, nesterov=True, betas=(0.8, 0.9), epsilon=1e-6, weight_decay=0.1)
    ours, theirs = network(), network()
    optimiser = build_optimiser(ours, settings)
    if kind == "sgd":
        other: Any = torch.optim.SGD(theirs.parameters(), 0.01, momentum=0.8, nesterov=True, weight_decay=0.1)
    else:
        other = torch.optim.AdamW(theirs.parameters(), 0.01, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1)
    images = torch.randn(5, 3, 4, 4)
    for model, each in ((ours, optimiser), (theirs, other)):
        for _ in range(3):
            each.zero_grad()
            model(images).square().sum().backward()
            each.step()
    for own, their in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(own, their)
