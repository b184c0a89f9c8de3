"""Networks of transformers from a folder, with the image processor or tokenizer that lies beside them."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from nlprobe.errors import CheckpointError, ConfigError
from nlprobe.libraries.extras import required
from nlprobe.libraries.network import Drawn, Loaded, Network, Pictures, Texts, Weights, drawn

WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
)

MAY_BE_DRAWN = "pooler."
"""Begins the names of weights that a file may lack: the pooler follows all blocks and reaches no attention map."""


def transformers_network(path: str, seed: int = 0, *, random_weights: bool = False, download: bool = False) -> Network:
    """A network of transformers, in single precision, without the head of its task (`AutoModel`).

    Args:
        path: A local folder with a `config.json`, or the name of a network that was fetched before.
        seed: Seed of random weights.
        random_weights: Take random weights where there is no file of them.
        download: Fetch what is not on this machine.

    Raises:
        MissingExtraError: transformers is not installed.
        CheckpointError: nothing is there, it is not understood, there are no weights, or they do not fit.
    """
    transformers = required("transformers", "hf", f"`hf:{path}`")
    place = _Place(path, download)
    with _quiet(transformers):
        config = place.load(transformers.AutoConfig, "configuration")
        build = partial(_build, transformers, config)
        if random_weights and not place.has_weights():
            model, weights = _untrained(build, seed)
        else:
            model, weights = _trained(transformers, place, config, seed)
        processor = place.load_optional(transformers.AutoImageProcessor, "image processor", PROCESSOR_FILES)
        tokenizer = place.load_optional(transformers.AutoTokenizer, "tokenizer", TOKENIZER_FILES)
    return Network(
        source=f"hf:{path}",
        model=model.eval(),
        weights=weights,
        pictures=_pictures(processor, path) if processor is not None else None,
        texts=_texts(tokenizer, config, path) if tokenizer is not None else None,
        redrawn=partial(drawn, build, seed) if isinstance(weights, Loaded) else None,
        package="transformers",
    )


@dataclass(frozen=True)
class _Place:
    """Where the parts of a network lie: a folder, or a name in the cache."""

    path: str
    download: bool

    @property
    def folder(self) -> Path:
        return Path(self.path).expanduser()

    @property
    def where(self) -> str:
        return str(self.folder) if self.folder.is_dir() else self.path

    def load(self, loader: Any, what: str, **settings: Any) -> Any:
        """What `loader.from_pretrained` gives, or a CheckpointError in words."""
        try:
            return loader.from_pretrained(
                self.where, local_files_only=not self.download, trust_remote_code=False, **settings
            )
        except MemoryError:
            raise
        # Damaged files raise nearly anything: OSError, ValueError, KeyError, errors of safetensors and tokenizers, …
        except Exception as error:
            raise CheckpointError(*self._explained(error, what)) from error

    def load_optional(self, loader: Any, what: str, files: tuple[str, ...]) -> Any:
        """The same, or None where the folder has none of the files that it would be read from."""
        if self.folder.is_dir():
            return self.load(loader, what) if any((self.folder / name).is_file() for name in files) else None
        try:
            return self.load(loader, what)
        except CheckpointError:
            return None

    def has_weights(self) -> bool:
        """Whether weights lie in the folder; of a name in the cache that is found out by loading them."""
        return not self.folder.is_dir() or any(any(self.folder.glob(name)) for name in WEIGHT_FILES)

    def _explained(self, error: Exception, what: str) -> tuple[str, str]:
        if not self.folder.is_dir() and isinstance(error, OSError):
            if self.path.startswith(("/", ".", "~")) or self.folder.exists():
                return f"`{self.path}` is no folder", "hf: takes a folder as `save_pretrained` writes it"
            how = "could not be fetched" if self.download else "is no folder here, nor was it fetched before"
            return f"`{self.path}` {how}", "give a local folder" + ("" if self.download else ", or add --download")
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return (
            f"the {what} of `{self.path}` cannot be read: {reason}",
            "the folder should be one that `save_pretrained` of a version of transformers like this one wrote",
        )


def _build(transformers: Any, config: Any) -> nn.Module:
    model: nn.Module = transformers.AutoModel.from_config(config).float()
    return model


def _untrained(build: Callable[[], nn.Module], seed: int) -> tuple[nn.Module, Weights]:
    return drawn(build, seed), Drawn(seed)


def _trained(transformers: Any, place: _Place, config: Any, seed: int) -> tuple[nn.Module, Weights]:
    if not place.has_weights():
        raise CheckpointError(
            f"`{place.path}` holds no weights ({' or '.join(WEIGHT_FILES)})",
            "add their file, or measure random weights with --random-weights",
        )
    load = partial(place.load, transformers.AutoModel, "network", config=config, output_loading_info=True)
    report: dict[str, Any] = {}

    def build() -> nn.Module:
        model: nn.Module
        model, found = load(dtype="float32")
        report.update(found)
        return model

    model = drawn(build, seed)
    missing = sorted(report["missing_keys"])
    if wrong := [name for name in missing if not name.startswith(MAY_BE_DRAWN)]:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise CheckpointError(
            f"the weights of `{place.path}` lack `{wrong[0]}`{more} of `{type(model).__name__}`",
            "they belong to another network than `config.json` describes",
        )
    return model, Loaded(place.path, missing=tuple(missing))


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without the bars and reports of transformers; what matters of them is raised or told by nlprobe."""
    logging = transformers.utils.logging
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _pictures(processor: Any, path: str) -> Pictures:
    settings = _plain(processor.to_dict())
    told = {
        key: settings[key] for key in ("size", "crop_size", "image_mean", "image_std", "resample") if key in settings
    }
    written = ", ".join(f"{key} {value}" for key, value in told.items())
    description = f"`{type(processor).__name__}` of `{path}`, {written}"
    return Pictures(_Processed(processor), description, settings, argument="pixel_values")


@dataclass(frozen=True)
class _Processed:
    """An image processor as a function from a picture to a tensor."""

    processor: Any

    def __call__(self, picture: Image.Image) -> Tensor:
        made = self.processor(images=picture, return_tensors="pt")
        images: Tensor = made.get("pixel_values")
        if set(made) != {"pixel_values"} or images.dim() != 4:
            kind = ", ".join(f"`{name}` {tuple(value.shape)}" for name, value in made.items())
            raise ConfigError(
                f"`{type(self.processor).__name__}` makes {kind} of a picture, and not one image",
                "give the network by `python:` and its inputs by `--data python:package.module:callable`",
            )
        return images[0]


def _texts(tokenizer: Any, config: Any, path: str) -> Texts:
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    longest = min(tokenizer.model_max_length, positions or tokenizer.model_max_length)
    told = f"at most {longest} tokens" if longest < 10**9 else "of any length"
    settings = {"tokenizer": type(tokenizer).__name__, "longest": longest if longest < 10**9 else None}
    return Texts(_Tokenised(tokenizer, longest), f"`{type(tokenizer).__name__}` of `{path}`, {told}", settings)


@dataclass(frozen=True)
class _Tokenised:
    """A tokenizer as a function from a text to arguments and the number of tokens that were cut off."""

    tokenizer: Callable[..., Any]
    longest: int

    def __call__(self, text: str) -> tuple[dict[str, Tensor], int]:
        whole = self.tokenizer(text, return_tensors="pt", verbose=False)
        count = whole["input_ids"].shape[1]
        if count <= self.longest:
            return dict(whole), 0
        cut = self.tokenizer(text, return_tensors="pt", truncation=True, max_length=self.longest)
        return dict(cut), count - self.longest


def _plain(settings: Any) -> Any:
    return json.loads(json.dumps(settings, default=str))
