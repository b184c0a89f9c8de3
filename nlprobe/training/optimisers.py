"""The optimiser: its numbers, and which parameters they apply to."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from nlprobe.errors import ConfigError
from nlprobe.suggestions import did_you_mean

KINDS = ("sgd", "adamw")

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_RULE_KEYS = ("lr", "decay")


@dataclass(frozen=True)
class Optimiser:
    """Stochastic gradient descent with momentum, or AdamW.

    A rule is a pattern for parameter names (`*` and `?` as in a shell) and what it changes: `fc.* lr=10` learns the
    classifier ten times as fast, `*.after_add.* decay=0` leaves inserted blocks without decay. Both numbers multiply
    what would hold without the rule; of several rules that fit a parameter, the last one holds.

    Attributes:
        kind: `sgd` or `adamw`.
        learning_rate: Initial learning rate, for the recipe's batch size.
        momentum: Momentum of SGD.
        nesterov: Nesterov's form of it.
        betas: AdamW's two decay rates of its averages.
        epsilon: What AdamW adds to the denominator.
        weight_decay: L2 decay of SGD, decoupled decay of AdamW.
        decay_norms: Whether it also applies to biases and to the parameters of norms.
        rules: Exceptions for single parameters.
        clip_norm: The norm of all gradients together is brought down to this where it is larger; 0 leaves it.

    Raises:
        ConfigError: an unknown kind, a number out of its range, or a rule that cannot be read.
    """

    kind: str = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 1e-4
    decay_norms: bool = True
    rules: tuple[str, ...] = ()
    clip_norm: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        object.__setattr__(self, "rules", tuple(self.rules))
        if self.kind not in KINDS:
            raise ConfigError(f"optimiser: unknown kind `{self.kind}`", did_you_mean(self.kind, KINDS))
        if self.learning_rate <= 0 or not 0 <= self.momentum < 1 or self.weight_decay < 0 or self.clip_norm < 0:
            raise ConfigError(
                f"optimiser: learning rate {self.learning_rate}, momentum {self.momentum}, decay {self.weight_decay}, "
                f"clipping at {self.clip_norm}",
                "the learning rate is positive, the momentum in [0, 1), decay and clipping not negative",
            )
        if self.nesterov and not self.momentum:
            raise ConfigError("optimiser: Nesterov's momentum of 0", "set `momentum`, or `nesterov` to false")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas) or self.epsilon <= 0:
            raise ConfigError(
                f"optimiser: betas {list(self.betas)}, epsilon {self.epsilon}",
                "`betas` are two numbers in [0, 1), `epsilon` is positive",
            )
        for rule in self.rules:
            _parse(rule)


def build_optimiser(model: nn.Module, settings: Optimiser) -> torch.optim.Optimizer:
    """The optimiser of every parameter that requires a gradient.

    Each of its groups has, beside torch's own settings, a `factor` for the learning rate.

    Raises:
        ConfigError: a rule fits no parameter, or there is nothing to learn.
    """
    groups = parameter_groups(model, settings)
    if settings.kind == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, eps=settings.epsilon)
    return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum, nesterov=settings.nesterov)


def parameter_groups(model: nn.Module, settings: Optimiser) -> list[dict[str, Any]]:
    """Parameters with their weight decay and learning rate factor; those with equal numbers form one group.

    Raises:
        ConfigError: a rule fits no parameter, or there is nothing to learn.
    """
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not named:
        raise ConfigError("every parameter is frozen", "leave a part of the network to be trained")
    rules = [_parse(rule) for rule in settings.rules]
    for pattern, _ in rules:
        if not any(fnmatchcase(name, pattern) for name in named):
            raise ConfigError(
                f"the optimiser's rule for `{pattern}` fits no parameter that is trained",
                did_you_mean(pattern, list(named)),
            )
    free = set() if settings.decay_norms else _norms_and_biases(model)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named.items():
        factors: Mapping[str, float] = {}
        for pattern, numbers in rules:
            if fnmatchcase(name, pattern):
                factors = numbers
        decay = 0.0 if name in free else settings.weight_decay
        key = (decay * factors.get("decay", 1.0), factors.get("lr", 1.0))
        groups.setdefault(key, []).append(parameter)
    return [{"params": chosen, "weight_decay": decay, "factor": lr} for (decay, lr), chosen in groups.items()]


def _norms_and_biases(model: nn.Module) -> set[str]:
    """Names of the parameters that belong to a norm or are a bias."""
    names = set()
    for prefix, module in model.named_modules():
        for name, _ in module.named_parameters(prefix, recurse=False):
            if isinstance(module, _NORMS) or name.rpartition(".")[2].endswith("bias"):
                names.add(name)
    return names


def _parse(rule: str) -> tuple[str, dict[str, float]]:
    """Pattern and numbers of `pattern key=number …`."""
    pattern, *settings = rule.split() or [""]
    numbers: dict[str, float] = {}
    for setting in settings:
        key, _, value = setting.partition("=")
        try:
            numbers[key] = float(value)
        except ValueError:
            numbers[key] = -1.0
    if not numbers or not set(numbers) <= set(_RULE_KEYS) or not all(0 <= n < float("inf") for n in numbers.values()):
        raise ConfigError(
            f"`{rule}` is not a rule of the optimiser", "write, for example, `fc.* lr=10` or `*.gamma lr=1 decay=0`"
        )
    return pattern, numbers
