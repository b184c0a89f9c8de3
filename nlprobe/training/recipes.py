"""How models are trained: every number of a run, by name, in one place."""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, get_args, get_type_hints

import torch

from nlprobe.data import (
    Augmentation,
    ClipAugmentation,
    InstanceAugmentation,
    Joint,
    JointAugmentation,
    Preprocessing,
)
from nlprobe.data.preprocessing import Transform
from nlprobe.errors import ConfigError
from nlprobe.suggestions import did_you_mean
from nlprobe.training.optimisers import Optimiser
from nlprobe.training.schedules import Schedule

AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Names of the number formats of mixed precision."""

BATCH_NORMS = ("plain", "sync", "frozen")


@dataclass(frozen=True)
class Recipe:
    """Everything that a training run is made of, but for the model, the data and the seed.

    These are the numbers of classification; another task has a class of its own, with those that it adds.

    Attributes:
        name: Under which `recipe` finds it.
        task: What is learnt.
        epochs: Passes over the training set.
        batch_size: Images in a step, over all processes together.
        accumulate: Into how many parts each process cuts what it takes of a batch; it goes through them one after the
            other and adds their gradients up, for memory that holds no more.
        label_smoothing: Share of the target spread evenly over all classes.
        amp: Mixed precision: `off`, `bf16`, or `fp16` with scaled gradients. Validation is in full precision.
        batch_norm: `plain` (each process, and each part of a batch, has its own statistics), `sync` (one for all
            processes; on GPUs), or `frozen` (the paper's fixBN: statistics, scale and shift of the trunk's norms stay).
        frozen: Stages that stay as they are, c1 (the stem) to c5; the blocks inserted into them are trained.
        channels_last: Keep images and weights in the memory order that convolutions like; the results differ by
            rounding only.
        optimiser: The optimiser's numbers.
        schedule: The learning rate over time.
        augmentation: Random changes to training images.
        preprocessing: What every image goes through; it becomes part of the checkpoint.
    """

    name: str
    task: str = "classification"
    epochs: int = 120
    batch_size: int = 256
    accumulate: int = 1
    label_smoothing: float = 0.0
    amp: str = "off"
    batch_norm: str = "plain"
    frozen: tuple[str, ...] = ()
    channels_last: bool = False
    optimiser: Optimiser = field(default_factory=Optimiser)
    schedule: Schedule = field(default_factory=Schedule)
    augmentation: Augmentation | JointAugmentation | InstanceAugmentation | ClipAugmentation = field(
        default_factory=Augmentation
    )
    preprocessing: Preprocessing = field(default_factory=Preprocessing)

    def __post_init__(self) -> None:
        object.__setattr__(self, "frozen", tuple(self.frozen))
        if min(self.epochs, self.batch_size, self.accumulate) < 1:
            raise ConfigError(
                f"recipe: {self.epochs} epochs, batch size {self.batch_size}, in {self.accumulate} parts",
                "use 1 or more of each",
            )
        for name, known in (("amp", tuple(AMP)), ("batch_norm", BATCH_NORMS)):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"recipe: `{name}` cannot be `{getattr(self, name)}`", did_you_mean(getattr(self, name), known)
                )
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"recipe: label smoothing {self.label_smoothing}", "use 0 or more, and less than 1")

    def training_transform(self) -> Transform | Joint:
        """What training pictures, and their labels, go through."""
        return self.augmentation.transform(self.preprocessing)  # type: ignore[arg-type]  # a recipe has what fits

    def validation_transform(self) -> Transform | Joint:
        """What pictures to be scored, and their labels, go through."""
        return self.preprocessing.transform()

    def groups_by_aspect(self) -> bool:
        """Whether pictures that are wider than high come in batches of their own."""
        return False

    def override(self, settings: Mapping[str, Any]) -> "Recipe":
        """The recipe with other values; a key is a field, or `part.field` such as `optimiser.momentum`.

        Raises:
            ConfigError: an unknown key, with close matches, or a value of the wrong type or out of its range.
        """
        return _override(self, settings, "")

    def as_dict(self) -> dict[str, Any]:
        """Every number, as JSON takes it."""
        return _plain(asdict(self))


IMAGENET = Recipe(
    name="imagenet",
    epochs=120,
    batch_size=256,
    optimiser=Optimiser(learning_rate=0.1, momentum=0.9, weight_decay=1e-4),
    schedule=Schedule(kind="cosine", unit="epoch"),
)

# The same for scenes of 128×128: small crops would change which digit is in the majority, and a mirrored or much turned
# digit is another digit or none.
MINIATURE_IMAGENET = Recipe(
    name="miniature-imagenet",
    epochs=10,
    batch_size=32,
    channels_last=True,
    optimiser=Optimiser(learning_rate=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4, decay_norms=False),
    schedule=Schedule(kind="cosine", unit="step", warmup_epochs=1.0),
    augmentation=Augmentation(rotation=0.0, area=(0.9, 1.0), aspect=(0.9, 1.1), flip=0.0, hsv=(1.0, 1.0), pca=0.1),
    preprocessing=Preprocessing(resize=128, crop=128),
)


@dataclass(frozen=True)
class Choices:
    """What a text leaves open, and what a recipe that follows it does there.

    Attributes:
        text: The text.
        choices: A line for each.
    """

    text: str
    choices: tuple[str, ...]


IMAGENET_CHOICES = Choices(
    "the paper, section 5.2",
    (
        "cosine decay: once an epoch and down to zero, as the authors describe their scheduler; no warm-up",
        "weight decay: 1e-4 on every parameter, that of the cited ResNet paper; momentum without Nesterov",
        "loss: cross-entropy without label smoothing, which is not mentioned",
        "rotation: the whole picture about its centre, bilinear, in its own size; corners turn black",
        "crop: a uniform share of the area, the aspect uniform in its logarithm; drawn again if it does not fit",
        "HSV: hue, saturation and value are each multiplied by a number of their own; the hue on its circle",
        "PCA noise: σ = 0.1 for the three weights, with AlexNet's formula and the components that Torch published",
        "single crop: shorter side 256, central 224; mean and deviation of torchvision's ImageNet weights",
        "batch norm: each process has its own statistics, in the paper those of 64 images",
    ),
)


def parse_override(text: str) -> tuple[str, Any]:
    """Key and value of `key=value`; the value is read as TOML, and as text where it is none.

    Raises:
        ConfigError: there is no `=`.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"`{text}` is not `key=value`", "write, for example, `optimiser.momentum=0.8`")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings with keys such as `optimiser.momentum`."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


_LISTED: dict[type | None, str] = {str: "texts", int: "whole numbers"}


def _override(part: Any, settings: Mapping[str, Any], path: str) -> Any:
    """The dataclass `part` with other values, all replaced at once, as some only go together."""
    known = [each.name for each in fields(part)]
    changes: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        name, dot, rest = key.partition(".")
        if name not in known:
            raise ConfigError(f"unknown setting `{path}{key}` of a recipe", did_you_mean(name, known))
        old = getattr(part, name)
        if is_dataclass(old) and dot:
            inner.setdefault(name, {})[rest] = value
        elif is_dataclass(old):
            names = ", ".join(f"`{path}{key}.{each.name}`" for each in fields(old))
            raise ConfigError(f"`{path}{key}` is not a single setting", f"it has parts: {names}")
        elif dot:
            raise ConfigError(f"`{path}{name}` has no part `{rest}`", f"set `{path}{name}` itself")
        else:
            inside = get_args(get_type_hints(type(part))[name])[:1]
            changes[name] = _fitting(old, value, path + key, inside[0] if inside else None)
    for name, each in inner.items():
        changes[name] = _override(getattr(part, name), each, f"{path}{name}.")
    return replace(part, **changes)


def _fitting(old: Any, value: Any, key: str, inside: type | None) -> Any:
    """`value` if it has the type of `old`, a tuple of what is `inside` it too; whole numbers are numbers."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {
        bool: isinstance(value, bool),
        int: isinstance(value, int) and not isinstance(value, bool),
        float: number,
        str: isinstance(value, str),
        tuple: False,
    }
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    words[tuple] = f"a list of {_LISTED.get(inside, 'numbers')}"
    if isinstance(value, list | tuple):
        wanted: Any = inside if inside in _LISTED else int | float
        fits[tuple] = all(isinstance(each, wanted) and not isinstance(each, bool) for each in value)
    if not fits[type(old)]:
        raise ConfigError(f"`{key}` cannot be `{value}`", f"give {words[type(old)]}")
    if isinstance(old, tuple):
        return tuple(value) if inside in _LISTED else tuple(float(each) for each in value)
    return float(value) if isinstance(old, float) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple | list) else value
