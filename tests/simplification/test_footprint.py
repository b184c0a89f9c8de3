"""Ratios of time and memory."""

import time

import torch

from nlprobe.simplification import latency_ratio, peak_bytes


def test_the_peak_is_of_tensors_that_are_alive_together() -> None:
    def one_after_the_other() -> None:
        for _ in range(4):
            torch.ones(1000, dtype=torch.float32).sum()

    def together() -> list[torch.Tensor]:
        return [torch.ones(1000, dtype=torch.float32) for _ in range(4)]

    assert 4000 <= peak_bytes(one_after_the_other) < 9000
    assert 16000 <= peak_bytes(together) < 17000


def test_what_was_there_before_and_views_of_it_count_nothing() -> None:
    x = torch.ones(100, 100)
    assert peak_bytes(lambda: x.view(-1)[5:].t()) == 0
    assert peak_bytes(lambda: x.mul_(2)) == 0


def test_a_ratio_of_times_is_that_of_the_second_over_the_first() -> None:
    ratio = latency_ratio(lambda: time.sleep(0.002), lambda: time.sleep(0.02), pairs=3)
    assert 2 < ratio < 20
