"""A command in the processes that `torchrun` starts: one of them speaks, and all end alike."""

from collections.abc import Iterator
from contextlib import contextmanager

import click
import torch

from nlprobe.commands.options import resolve_device
from nlprobe.commands.report import say
from nlprobe.errors import ConfigError
from nlprobe.processes import ElsewhereError, Processes


@contextmanager
def several_processes(doing: str, remedy: str, stopped: str = "") -> Iterator[Processes]:
    """This process among those that `torchrun` started, which can reach each other inside; alone without it.

    Args:
        doing: What is said to have gone on when a process was lost, such as "while measuring".
        remedy: What can be done then.
        stopped: What is said on Ctrl-C.

    Raises:
        NlprobeError: this process is the one to tell an error. Where it is another, this one leaves with its exit code.
    """
    processes = Processes.of_environment()
    try:
        with processes.joined(), processes.watched(lambda: doing, remedy):
            yield processes
    except ElsewhereError as error:
        raise click.exceptions.Exit(error.exit_code) from error
    except KeyboardInterrupt:
        if processes.leads:
            if stopped:
                say(stopped)
            raise
        raise click.exceptions.Exit(130) from None


def own_device(name: str, processes: Processes) -> torch.device:
    """The device of this process: of several, each takes a GPU of its own.

    Raises:
        ConfigError: it is not there, or one GPU is named for several processes.
    """
    device = resolve_device(name)
    if processes.count == 1 or device.type != "cuda":
        return device
    if device.index is not None and processes.local_count > 1:
        raise ConfigError(
            f"`--device {name}` names one GPU for {processes.local_count} processes",
            "use `--device cuda`: each process takes its own",
        )
    return resolve_device(f"cuda:{processes.local_rank}")
