"""What weights do not tell: the questions that a checkpoint leaves open, and their answers as text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from nlprobe.errors import ConfigError
from nlprobe.suggestions import did_you_mean

Value = TypeVar("Value")

LIKE = "like"
"""`--set like=NAME`: answer all questions as the registry does for the checkpoint of that name."""

IMAGENET = {"order": "rgb", "mean": "123.675,116.28,103.53", "std": "58.395,57.12,57.375"}
"""The normalisation that most projects share, of pixels from 0 to 255."""


@dataclass(frozen=True)
class Question:
    """One thing that the keys of a checkpoint leave open.

    Attributes:
        name: The key of `--set`.
        choices: What it may be, as shown: `true|false`, or a word for other values.
        asks: What it decides, in a few words.
    """

    name: str
    choices: str
    asks: str

    def __str__(self) -> str:
        return f"`{self.name}={self.choices}` ({self.asks})"


PIXELS = (
    Question("order", "rgb|bgr", "of the channels of its pictures"),
    Question("mean", "R,G,B", "of its channels, of pixels from 0 to 255, in that order"),
    Question("std", "R,G,B", "of the same"),
    Question("resize", "SIDE", "shorter side of its pictures in the published test; 0 leaves them as they are"),
)
"""What no file of weights says of its pictures."""


class Answers:
    """Settings as text, read with their types; those that nobody asked for are found at the end.

    Args:
        given: By name.
        source: Whose they are, for messages.
    """

    def __init__(self, given: Mapping[str, str], source: str) -> None:
        self.given = dict(given)
        self.source = source

    def choice(self, name: str, *choices: str) -> str:
        """One of some words.

        Raises:
            ConfigError: it is another, or not given.
        """
        value = self._text(name)
        if value not in choices:
            raise ConfigError(f"`--set {name}={value}` for {self.source}", did_you_mean(value, choices))
        return value

    def switch(self, name: str) -> bool:
        """True or false."""
        return self.choice(name, "true", "false") == "true"

    def integer(self, name: str, least: int = 0) -> int:
        """A whole number."""
        value = self._parsed(name, int, "a whole number")
        if value < least:
            raise ConfigError(f"`--set {name}={value}` for {self.source}", f"use {least} or more")
        return value

    def number(self, name: str) -> float:
        """A number above 0."""
        value = self._parsed(name, float, "a number")
        if not value > 0:
            raise ConfigError(f"`--set {name}={value}` for {self.source}", "use a number above 0")
        return value

    def integers(self, name: str, separator: str = ",") -> tuple[int, ...]:
        """Whole numbers."""
        return self._parsed(name, lambda text: tuple(int(part) for part in text.split(separator)), "whole numbers")

    def triple(self, name: str) -> tuple[float, float, float]:
        """Three numbers, or one for all three."""

        def read(text: str) -> tuple[float, float, float]:
            values = [float(part) for part in text.split(",")]
            first, second, third = values * 3 if len(values) == 1 else values
            return first, second, third

        return self._parsed(name, read, "three numbers")

    def preprocessing(self) -> dict[str, Any]:
        """How pictures become input, for `Preprocessing.from_dict`; in red, green, blue and of values from 0 to 1.

        OpenMMLab and the others resize by interpolation of two by two pixels, without a low-pass before.
        """
        turn = -1 if self.reversed_channels else 1
        mean, std = self.triple("mean")[::turn], self.triple("std")[::turn]
        return {
            "resize": self.integer("resize"),
            "crop": self.integer("crop") if "crop" in self.given else 0,
            "longest": self.integer("longest") if "longest" in self.given else 0,
            "pad": self.integer("pad") if "pad" in self.given else 0,
            "mean": [value / 255 for value in mean],
            "std": [value / 255 for value in std],
            "interpolation": "bilinear",
            "antialias": False,
        }

    def inference(self) -> dict[str, int]:
        """The sliding windows of the published score: side and stride; empty where pictures are taken whole."""
        return {name: self.integer(name, 1) for name in ("window", "stride") if name in self.given}

    def clip(self) -> dict[str, int]:
        """Frames of a clip, and how many of the video lie from one to the next, for `ClipPreprocessing.from_dict`."""
        return {"frames": self.integer("frames", 1), "stride": self.integer("interval", 1)}

    @property
    def reversed_channels(self) -> bool:
        """Whether the first convolution was trained on blue, green, red."""
        return self.choice("order", "rgb", "bgr") == "bgr"

    def _text(self, name: str) -> str:
        if name not in self.given:
            raise ConfigError(f"{self.source} does not tell its `{name}`", f"answer with --set {name}=…")
        return self.given[name]

    def _parsed(self, name: str, read: Callable[[str], Value], what: str) -> Value:
        text = self._text(name)
        try:
            return read(text)
        except ValueError as error:
            raise ConfigError(f"`--set {name}={text}` for {self.source} is not {what}", f"give {what}") from error


def parse_answers(texts: Sequence[str]) -> dict[str, str]:
    """`("scale=inv_sqrt", …)` as a dictionary.

    Raises:
        ConfigError: a text without `=`, or a key twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise ConfigError(f"`--set {text}` sets nothing", "write `--set KEY=VALUE`, such as `--set scale=inv_sqrt`")
        if name.strip() in found:
            raise ConfigError(f"`--set {name.strip()}` is given twice", "give it once")
        found[name.strip()] = value.strip()
    return found


def refuse_open(questions: Sequence[Question], given: Mapping[str, str], source: str, what: str) -> None:
    """Refuse a checkpoint whose questions are not all answered, and answers to questions that it does not ask.

    Args:
        questions: What it leaves open.
        given: What was answered, or the registry says.
        source: The file, for messages.
        what: What it is, for messages.

    Raises:
        ConfigError: in either case, with the questions.
    """
    names = [question.name for question in questions]
    optional = ("crop", "longest", "pad", "window", "stride", LIKE)
    for name in given:
        if name not in names and name not in optional:
            raise ConfigError(
                f"{source} ({what}) does not ask for `{name}`",
                did_you_mean(name, names, otherwise=f"it asks for {', '.join(names) or 'nothing'}"),
            )
    still = [question for question in questions if question.name not in given]
    if still:
        raise ConfigError(
            f"{source} is {what}, and no checkpoint of the registry; its weights do not tell "
            f"{', '.join(str(question) for question in still)}",
            "answer each with `--set KEY=VALUE`, or all as for a published one with `--set like=NAME` "
            "(`nlprobe zoo --published` lists them)",
        )
