"""What the measuring commands show to a network: images, lines of text, or what one's own code yields."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch

from nlprobe.commands.report import progress, say
from nlprobe.commands.sources import Named
from nlprobe.data import Batch, Batches, ImageDataset, UnreadableImageError, data_fingerprint, open_dataset
from nlprobe.data.dataset import refuse_other_kind
from nlprobe.data.loading import Share
from nlprobe.data.part import Part, Unlabelled
from nlprobe.data.texts import Line, TextFile, is_text, read_texts
from nlprobe.errors import ConfigError
from nlprobe.libraries import Pictures, PythonItems, Texts, is_python
from nlprobe.measuring import Inputs, Shown, described
from nlprobe.probe.naming import Objects

Data = ImageDataset | TextFile | PythonItems


def open_data(source: str, split: str = "val", limit: int | None = None) -> Data:
    """The data of that name: `python:package.module:callable`, a `.txt` file, or images.

    Raises:
        ConfigError: a limit for data that cannot be parted.
        DataError: they are missing, or not understood.
    """
    if is_python(source):
        if limit is not None:
            raise ConfigError(f"--limit does not go with `{source}`", "let the callable yield fewer items")
        return PythonItems(source.partition(":")[2])
    path = Path(source)
    if is_text(path):
        return read_texts(path).part(limit)
    return Part(open_dataset(path, "train" if split == "train" else "val"), limit)


def describe_data(source: str, split: str, data: Data) -> dict[str, Any]:
    """What the results say of the data, after the passes over them."""
    if isinstance(data, PythonItems):
        return {"root": source, "kind": "python", "images": data.images, "sha256": data.sha256}
    if isinstance(data, TextFile):
        return {"root": source, "kind": "texts", **data.fingerprint()}
    return {"root": source, "split": split, "kind": data.kind, **data_fingerprint(data)}


class Feed(ABC):
    """The data as one network takes them; each pass shows its progress on stderr, in the process that speaks.

    Attributes:
        label: What the progress line says.
        description: What is done to the data before the network gets them, in a line.
        settings: The same for JSON.
        together: Images in one forward call, as far as it is known.
        speaks: Whether this process is the one that shows progress.
    """

    def __init__(
        self, label: str, description: str, settings: Mapping[str, Any], together: int = 1, speaks: bool = True
    ) -> None:
        self.label = label
        self.description = description
        self.settings = dict(settings)
        self.together = together
        self.speaks = speaks

    @abstractmethod
    def batches(self, start: int = 0, step: int = 1) -> Iterator[Shown]:
        """One pass over every `step`-th forward call from number `start` on; each with what it is shown.

        Where no image of a call can be read, there are no names.
        """

    def unreadable(self, measured: Collection[str]) -> list[str]:
        """Names of the images that could not be read, given those that were measured."""
        return []

    def notes(self) -> list[str]:
        """What else was done to the data that the results have to say, in sentences."""
        return []

    @abstractmethod
    def example(self) -> Inputs:
        """The inputs of a forward call, for the sake of their shapes."""

    @abstractmethod
    def plan(self) -> str:
        """What a pass will take, in a line."""


def feed(
    data: Data,
    one: Named,
    batch_size: int,
    workers: int = 0,
    *,
    speaks: bool = True,
    objects: Callable[[Any], Objects] | None = None,
) -> Feed:
    """The data as one network takes them.

    Args:
        data: The data.
        one: The network.
        batch_size: Images in a forward call, where they have one size.
        workers: Processes that read images ahead.
        speaks: Whether this process shows progress.
        objects: From an image's label to what its picture shows; None where nobody asks.

    Raises:
        ConfigError: the network takes other data, or does not say what is done to them.
        DataError: it takes videos and the data are images, or the other way about.
    """
    if isinstance(data, PythonItems):
        return Items(data, one.label, speaks)
    if isinstance(data, TextFile):
        if one.network.texts is None:
            raise ConfigError(
                f"`{one.label}` takes no texts, and `{data.path}` is a file of texts",
                "give a folder of images, or a --model hf:FOLDER that holds a tokenizer",
            )
        return Lines(data, one.network.texts, one.label, speaks)
    if one.network.pictures is None and one.network.texts is not None:
        raise ConfigError(
            f"`{one.label}` takes texts, and `{data.root}` holds images", "give a .txt file with one text a line"
        )
    if one.network.pictures is None:
        raise ConfigError(
            f"`{one.label}` does not say how its images are preprocessed, and `{data.root}` holds images",
            "give --size, --mean and --std, or return the transform too"
            if is_python(one.network.source)
            else "put its `preprocessor_config.json` into the folder",
        )
    refuse_other_kind(data, one.network.pictures.holds, f"`{one.label}`")
    return Images(data, one.network.pictures, batch_size, workers, one.label, speaks, objects)


class Images(Feed):
    """Images, or a clip of each video, in batches.

    They come one by one where the network takes them in their own shape, so that none has neighbours.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        pictures: Pictures,
        batch_size: int,
        workers: int,
        label: str,
        speaks: bool,
        objects: Callable[[Any], Objects] | None = None,
    ) -> None:
        super().__init__(label, pictures.description, pictures.settings, batch_size if pictures.size else 1, speaks)
        self.dataset, self.pictures, self.workers = dataset, pictures, workers
        self._reported: set[str] = set()
        self._said = False
        self._objects = objects

    def batches(self, start: int = 0, step: int = 1) -> Iterator[Shown]:
        """One pass over every `step`-th batch from number `start` on."""
        loaded = Batches(
            Unlabelled(self.dataset) if self._objects is None else self.dataset,
            self.pictures.transform,
            self.together,
            workers=self.workers,
            report=self._report,
            pin_memory=torch.cuda.is_available(),
            share=Share(start % step, step),
            keep_empty=True,
            pad=self.pictures.pad,
        )
        before, total = loaded.order.before, len(self.dataset)
        passed: Iterator[tuple[int, Batch]] = zip(count(start, step), loaded.epoch(0, start), strict=False)
        if self.speaks:
            for note in [] if self._said else self.notes():
                say(note)
            self._said = True
            holds = self.dataset.holds
            if start:
                say(f"{self.label}: going on after {before(start)} {holds}")
            passed = progress(
                passed,
                self.label,
                total - before(start),
                unit=holds,
                count=lambda one: before(one[0] + step) - before(one[0]),
            )
        for _, batch in passed:
            inputs = self.pictures.inputs(batch.images) if batch.ids else batch.images
            objects = [self._objects(label) for label in batch.labels or ()] if self._objects is not None else None
            yield Shown(inputs, batch.ids, batch.sizes, objects)

    def unreadable(self, measured: Collection[str]) -> list[str]:
        """Those that were not measured."""
        return [name for name in self.dataset.ids if name not in measured]

    def notes(self) -> list[str]:
        """That the data set does not hold all that it lists."""
        return self.dataset.notes() if self.dataset.missing else []

    def example(self) -> Inputs:
        """One image of noise."""
        return self.pictures.inputs(self.pictures.example())

    def plan(self) -> str:
        """How many images, how many at once, and their size."""
        shape = "x".join(map(str, self.pictures.size)) if self.pictures.size else "each in its own shape"
        return f"{len(self.dataset)} {self.dataset.holds} in batches of {self.together}, {shape}"

    def _report(self, error: UnreadableImageError) -> None:
        if error.image not in self._reported:
            self._reported.add(error.image)
            say(f"left out: {error.cause}")


class Lines(Feed):
    """Lines of text, each in a forward call of its own, so that nothing is padded."""

    def __init__(self, data: TextFile, texts: Texts, label: str, speaks: bool) -> None:
        super().__init__(label, texts.description, texts.settings, speaks=speaks)
        self.data, self.texts = data, texts
        self._said: set[str] = set()

    def batches(self, start: int = 0, step: int = 1) -> Iterator[Shown]:
        """One pass over every `step`-th line from number `start` on."""
        total = len(self.data.lines)
        passed: Iterator[int] = iter(range(start, total, step))
        if self.speaks:
            if start:
                say(f"{self.label}: going on after {start} texts")
            passed = progress(
                passed, self.label, total - start, unit="texts", count=lambda line: min(step, total - line)
            )
        for number in passed:
            line = self.data.lines[number]
            inputs, cut = self.texts.encode(line.text)
            note = self._note(line, cut)
            if cut and note not in self._said:
                self._said.add(note)
                say(note)
            yield Shown(inputs, [line.id])

    def notes(self) -> list[str]:
        """Which lines were too long."""
        cut = [(line, self.texts.encode(line.text)[1]) for line in self.data.lines]
        return [self._note(line, tokens) for line, tokens in cut if tokens]

    def _note(self, line: Line, cut: int) -> str:
        ending = "last token is" if cut == 1 else f"last {cut} tokens are"
        return f"{self.label}: line {line.id} is too long, and its {ending} left out"

    def example(self) -> Inputs:
        """The first line."""
        return self.texts.encode(self.data.lines[0].text)[0]

    def plan(self) -> str:
        """How many texts."""
        return f"{len(self.data.lines)} texts, one by one"


class Items(Feed):
    """What one's own code yields, as it is; each of several processes runs that code, and takes its part."""

    def __init__(self, data: PythonItems, label: str, speaks: bool) -> None:
        super().__init__(label, f"inputs of `{data.source}` as they are", {}, speaks=speaks)
        self.data = data

    def batches(self, start: int = 0, step: int = 1) -> Iterator[Shown]:
        """One pass over every `step`-th item from number `start` on."""
        passed = self.data.items(start)
        if self.speaks:
            passed = progress(passed, self.label, count=lambda item: len(item[1]))
        return (Shown(*item) for item in islice(passed, 0, None, step))

    def example(self) -> Inputs:
        """The first item."""
        return self.data.first()

    def plan(self) -> str:
        """The shapes of the first item."""
        return f"items of `{self.data.source}`, the first of them {described(self.example())}"
