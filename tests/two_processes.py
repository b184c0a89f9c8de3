"""What two processes say to each other; started by `torchrun`, it ends with 0 when all of it holds in both."""

import os
import signal
import sys
from contextlib import closing

import pytest
import torch
from torch import nn

from nlprobe.errors import ConfigError, NlprobeError
from nlprobe.processes import ElsewhereError, Processes, StoppedError
from nlprobe.training.tally import Tally
from nlprobe.training.task import Loss

CPU = torch.device("cpu")


def outcome(function) -> tuple[str, str, int] | None:
    """How a call ends: the error's class, its cause and its exit code."""
    try:
        function()
    except NlprobeError as error:
        return type(error).__name__, error.cause, error.exit_code
    return None


def check_first(processes: Processes) -> None:
    called = []
    assert processes.first(lambda: called.append(1) or processes.rank) == 0
    assert len(called) == (1 if processes.leads else 0)

    def fail() -> None:
        raise ConfigError("wrong", "mend it")

    expected = "ConfigError" if processes.leads else "ElsewhereError"
    assert outcome(lambda: processes.first(fail)) == (expected, "wrong", 2)


def check_together(processes: Processes) -> None:
    assert processes.together(lambda: processes.rank + 10) == processes.rank + 10

    def fail_in(*ranks: int) -> None:
        if processes.rank in ranks:
            raise ConfigError(f"wrong in {processes.rank}", "mend it")

    one = outcome(lambda: processes.together(lambda: fail_in(1)))
    assert one == ("ElsewhereError" if processes.leads else "ConfigError", "wrong in 1", 2)
    both = outcome(lambda: processes.together(lambda: fail_in(0, 1)))
    assert both == ("ConfigError" if processes.leads else "ElsewhereError", "wrong in 0", 2)


def check_gathering(processes: Processes) -> None:
    assert processes.gather_first(processes.rank) == ([0, 1] if processes.leads else [])

    def gather_or_fail() -> None:
        if not processes.leads:
            raise ConfigError("wrong in 1", "mend it")
        processes.gather_first("never told")

    found = outcome(lambda: processes.together(gather_or_fail))
    assert found == ("ElsewhereError" if processes.leads else "ConfigError", "wrong in 1", 2)


def check_unforeseen_errors(processes: Processes) -> None:
    def fail() -> None:
        if not processes.leads:
            raise KeyError("odd")

    expected = ElsewhereError if processes.leads else KeyError
    with pytest.raises(expected) as caught:
        processes.together(fail)
    assert not processes.leads or (caught.value.cause, caught.value.exit_code) == ("KeyError: 'odd'", 1)


def check_rounds(processes: Processes) -> None:
    own = ["a", "b", "c"] if processes.leads else ["d"]
    found = processes.together(lambda: list(processes.in_step(own)))
    assert found == (["a", "b", "c"] if processes.leads else ["d", None, None])
    assert list(processes.in_step([])) == []


def check_that_an_error_ends_the_rounds_of_all(processes: Processes) -> None:
    seen = []

    def work() -> None:
        with closing(processes.in_step(range(100))) as items:
            for item in items:
                seen.append(item)
                if item == 2 and not processes.leads:
                    raise ConfigError("wrong in 1", "mend it")

    found = outcome(lambda: processes.together(work))
    assert found == ("ElsewhereError" if processes.leads else "ConfigError", "wrong in 1", 2)
    assert seen == [0, 1, 2]


def check_that_an_interruption_ends_the_rounds_of_all(processes: Processes) -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []
    try:
        with closing(processes.in_step(range(100))) as items:
            for item in items:
                seen.append(item)
                if item == 2 and not processes.leads:
                    os.kill(os.getpid(), signal.SIGTERM)
    except StoppedError:
        seen.append("stopped")
    assert seen == [0, 1, 2, "stopped"]
    assert signal.getsignal(signal.SIGTERM) is before


def check_sums(processes: Processes) -> None:
    assert processes.gather("ab"[processes.rank]) == ["a", "b"]
    assert processes.total(torch.tensor([1.0, processes.rank])).tolist() == [2, 1]
    norm = nn.BatchNorm1d(3)
    norm.running_mean.fill_(processes.rank + 5)
    processes.share_buffers(norm)
    assert norm.running_mean.tolist() == [5, 5, 5]


def check_tally(processes: Processes) -> None:
    tally = Tally(CPU, processes)
    tally.add(Loss(torch.tensor(2.0 + processes.rank), 1 + processes.rank, {"hits": torch.tensor(1)}), ["a"], 1)
    assert tally.due()
    (totals,), flag = tally.read(processes.rank == 1, str, "")
    assert (totals.step, totals.images, totals.sums) == (1, 3, {"loss": 2 * 1 + 3 * 2, "hits": 2})
    assert flag
    # A loss that is not finite in one process ends both, and the one that has the batch names it.
    tally.add(Loss(torch.tensor(torch.nan if processes.rank else 1.0), 2), [f"image{processes.rank}", "x"], 2)
    found = outcome(lambda: tally.read(False, lambda step: f"step {step}", "slower"))
    assert found is not None
    assert found[0] == ("ElsewhereError" if processes.leads else "NlprobeError")
    assert found[1] == "the loss is nan at step 2, on the batch of 2 images that begins with `image1`, `x`"


def check_loss_of_a_process(processes: Processes) -> None:
    """Has to be the last: process 1 leaves without a word."""

    def wait() -> None:
        with processes.watched(lambda: "in step 3"):
            processes.total(torch.zeros(1))

    if processes.leads:
        found = outcome(wait)
        assert found is not None
        assert found[1].startswith("process 0 of 2 lost another one in step 3: ")
        with_other_reason = outcome_of_other_error(processes)
        assert with_other_reason == "mat1 and mat2"


def outcome_of_other_error(processes: Processes) -> str:
    """An error that has nothing to do with the other processes stays what it is."""
    try:
        with processes.watched(lambda: ""):
            torch.zeros(2, 3) @ torch.zeros(2, 3)
    except NlprobeError:
        return "taken for a lost process"
    except RuntimeError as error:
        return str(error)[:13]
    return "nothing"


if __name__ == "__main__":
    own = Processes.of_environment()
    assert (own.count, own.local_count) == (2, 2)
    manager = own.joined(CPU)
    manager.__enter__()
    for check in (
        check_first,
        check_together,
        check_gathering,
        check_unforeseen_errors,
        check_rounds,
        check_that_an_error_ends_the_rounds_of_all,
        check_that_an_interruption_ends_the_rounds_of_all,
        check_sums,
        check_tally,
        check_loss_of_a_process,
    ):
        check(own)
    sys.stdout.write(f"process {own.rank} is done\n")
