"""What nlprobe knows of another project's checkpoints: one object a project."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from nlprobe.checkpoints.answers import Answers, Question
from nlprobe.checkpoints.mapping import Rename
from nlprobe.models.build import Config

Weights = Mapping[str, Tensor]
"""Tensors by the names of the project, `module.` taken off; of which shapes and not values are asked."""


class Project(ABC):
    """A project whose checkpoints can be read.

    Attributes:
        name: As in the registry: `mmseg`.
        title: Its whole name: `mmsegmentation`.
    """

    name: str
    title: str

    @abstractmethod
    def recognises(self, weights: Weights) -> bool:
        """Whether the names are this project's."""

    @abstractmethod
    def describe(self, weights: Weights) -> str:
        """What the names and shapes tell of the network, in a few words."""

    @abstractmethod
    def questions(self, weights: Weights) -> Sequence[Question]:
        """What they do not tell."""

    @abstractmethod
    def config(self, weights: Weights, answers: Answers) -> Config:
        """The network, from what they tell and from the answers to what they do not.

        Raises:
            CheckpointError: no network of ours is like it, and why.
            ConfigError: an answer that is not understood.
        """

    @abstractmethod
    def rename(self, config: Config) -> Rename:
        """From the project's names to ours in that network."""

    def configured(self, settings: Mapping[str, Any], weights: Weights) -> dict[str, str]:
        """Answers that stand in the configuration beside the weights, in the words of `--set`.

        Args:
            settings: The configuration, as far as it could be understood without running it.
            weights: What else is known.
        """
        return {}

    def prepared(self, weights: Weights, config: Config, answers: Answers) -> Weights:
        """The tensors as the project's network uses them, where it does not use them as they are; still by its names.

        Classes in another order and norms that take their weight's absolute value are such cases.
        """
        return weights

    def classes(self, weights: Weights) -> Sequence[str] | None:
        """Names of the classes, where the file does not say them and the project does."""
        return None

    @abstractmethod
    def first_convolution(self, config: Config) -> str:
        """Our name of the weight whose input channels are the picture's."""
