"""Processes in step: two real ones under `torchrun`, and one alone, which needs no other."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from nlprobe.errors import ConfigError
from nlprobe.processes import Processes


@pytest.mark.slow
def test_two_processes_agree_on_results_errors_and_losses() -> None:
    script = Path(__file__).with_name("two_processes.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split("\n")) == ["", "process 0 is done", "process 1 is done"]


def test_alone_everything_is_what_it_is() -> None:
    alone = Processes()
    table = torch.tensor([1.0, 2.0])
    with alone.joined(torch.device("cpu")):
        assert alone.leads
        assert alone.first(lambda: 3) == 3
        assert alone.together(lambda: 4) == 4
        assert alone.gather(5) == alone.gather_first(5) == [5]
        assert list(alone.in_step("ab")) == ["a", "b"]
        assert alone.total(table) is table
        alone.share_buffers(nn.BatchNorm1d(2))
    with pytest.raises(RuntimeError, match="gloo"), alone.watched(str):
        raise RuntimeError("gloo")


def test_the_environment_of_torchrun_is_read_and_part_of_it_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    for name in names:
        monkeypatch.delenv(name, raising=False)
    assert Processes.of_environment() == Processes()
    for name, value in names.items():
        assert Processes.of_environment() == Processes()
        monkeypatch.setenv(name, value)
    assert Processes.of_environment() == Processes(5, 8, 1, 4)


def test_a_device_whose_processes_cannot_talk_is_refused() -> None:
    two = Processes(0, 2).joined(torch.device("mps"))
    with pytest.raises(ConfigError, match="2 processes cannot train on the device `mps`"):
        two.__enter__()
