"""The flags that several commands share, spelt and explained once."""

import functools
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click
from click.shell_completion import CompletionItem

from nlprobe.commands.config import read_settings
from nlprobe.errors import ConfigError
from nlprobe.suggestions import did_you_mean

if TYPE_CHECKING:
    import torch

Function = TypeVar("Function", bound=Callable[..., Any])
Decorator = Callable[[Function], Function]

FORMATS = ("table", "tex", "md", "csv", "json")
DEVICES = ("auto", "cpu", "cuda", "mps")


class DeviceType(click.ParamType):
    """A device by name: auto, cpu, cuda, cuda:1, mps. Whether it is there is found out by `resolve_device`."""

    name = "device"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """What stands for the value in the help."""
        return "auto|cpu|cuda[:i]|mps"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check the spelling without importing torch."""
        name = str(value).lower()
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", name):
            self.fail(f"`{value}` is not a device; {did_you_mean(name, ('auto', 'cpu', 'cuda', 'cuda:0', 'mps'))}")
        return name

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Complete the names that every machine knows."""
        return [CompletionItem(name) for name in DEVICES if name.startswith(incomplete)]


device_option = click.option(
    "--device", type=DeviceType(), default="auto", show_default=True, help="Where to compute; auto takes a GPU if any."
)
limit_option = click.option(
    "--limit", type=click.IntRange(min=1), help="Use N images only, spread evenly over the data, for a quick try."
)
seed_option = click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of everything random."
)
workers_option = click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Processes that load data; 0 loads in this one.",
)
force_option = click.option("--force", is_flag=True, help="Replace what is already there.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Print the plan and write nothing.")
config_option = click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=read_settings,
    metavar="FILE",
    help="Take settings from a TOML file, such as the run.toml of an earlier run; flags given here win over it.",
)


answers_option = click.option(
    "--set",
    "answers",
    multiple=True,
    metavar="KEY=VALUE",
    help="What the weights of another project's --ckpt do not tell, such as scale=inv_sqrt; repeatable. "
    "`nlprobe inspect FILE` says what is asked; like=NAME answers as for a published one.",
)


@dataclass(frozen=True)
class Chosen:
    """The networks that a command line asks for; the words of `network_options`."""

    checkpoints: tuple[Path, ...] = ()
    models: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    weights: tuple[Path, ...] = ()
    random_weights: bool = False
    download: bool = False
    size: int | None = None
    mean: str | None = None
    std: str | None = None
    adapters: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()


_NETWORK_OPTIONS = {
    "checkpoints": click.option(
        "--ckpt",
        "checkpoints",
        multiple=True,
        type=click.Path(path_type=Path),
        help="A checkpoint, of nlprobe or of another project, or a run's folder; repeatable.",
    ),
    "models": click.option(
        "--model",
        "models",
        multiple=True,
        metavar="LIBRARY:NAME",
        help="A network of another library: timm:NAME, torchvision:NAME, hf:FOLDER, python:package.module:callable; "
        "repeatable.",
    ),
    "answers": answers_option,
    "labels": click.option(
        "--label",
        "labels",
        multiple=True,
        help="What a network is called in the table; once for each --ckpt, then once for each --model.",
    ),
    "weights": click.option(
        "--weights",
        "weights",
        multiple=True,
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Weights of a --model, .safetensors or .pth; once for each but hf:, or not at all: then they are random.",
    ),
    "random_weights": click.option(
        "--random-weights", is_flag=True, help="Take random weights for an hf: folder that has none."
    ),
    "download": click.option("--download", is_flag=True, help="Let hf: fetch what is not on this machine."),
    "size": click.option(
        "--size", type=click.IntRange(min=8), help="Side of the images of a python: network that brings no transform."
    ),
    "mean": click.option("--mean", metavar="R,G,B", help="Mean of its images' channels, of values from 0 to 1."),
    "std": click.option("--std", metavar="R,G,B", help="Standard deviation of the same."),
    "adapters": click.option(
        "--adapter",
        "adapters",
        multiple=True,
        metavar="python:MODULE:NAME",
        help="A description of attention modules, such as an nlprobe.AttentionModule, or a tuple of them; repeatable.",
    ),
}


def network_options(*, without: Collection[str] = ()) -> Decorator:
    """The flags that say which networks: the command gets them as one argument `chosen`.

    Args:
        without: Fields of `Chosen` that the command has no flag for.
    """
    names = [name for name in _NETWORK_OPTIONS if name not in without]

    def decorate(command: Function) -> Function:
        @functools.wraps(command)
        def with_networks(*arguments: Any, **settings: Any) -> Any:
            chosen = Chosen(**{name: settings.pop(name) for name in names})
            return command(*arguments, chosen=chosen, **settings)

        decorated: Any = with_networks
        for name in reversed(names):
            decorated = _NETWORK_OPTIONS[name](decorated)
        return cast(Function, decorated)

    return decorate


def format_option(default: str = "table", formats: tuple[str, ...] = FORMATS) -> Decorator:
    """`--format`: how the result is written to stdout."""
    return click.option(
        "--format",
        "format",
        type=click.Choice(formats),
        default=default,
        show_default=True,
        help="How the result is printed.",
    )


def batch_size_option(default: int) -> Decorator:
    """`--batch-size`: images per forward pass."""
    return click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        default=default,
        show_default=True,
        help="Images in one forward pass.",
    )


def resolve_device(name: str) -> "torch.device":
    """The device of that name; `auto` is the first of CUDA, MPS and CPU that is there.

    Raises:
        ConfigError: this machine, or this build of torch, does not have it.
    """
    import torch

    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= cuda:
        there = (
            f"{cuda} CUDA device{'s' if cuda > 1 else ''} here" if cuda else "no CUDA device that torch can use here"
        )
        raise ConfigError(
            f"`--device {name}`: there {'are' if cuda > 1 else 'is'} {there}",
            f"use {'`cuda:0`' + (f' to `cuda:{cuda - 1}`' if cuda > 1 else '') if cuda else '`--device cpu`'}"
            "; `nlprobe env` lists the devices",
        )
    if device.type == "mps" and not mps:
        raise ConfigError(
            "`--device mps`: there is no MPS device that torch can use here",
            "use `--device cpu`; `nlprobe env` lists the devices",
        )
    return device
