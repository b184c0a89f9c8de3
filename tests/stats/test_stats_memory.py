"""Memory at N = 9 409 (97², a Cityscapes crop), where one N×N map takes 354 MB."""

import subprocess
import sys

import pytest

MEASURE = """
import resource, sys, threading, time
import torch
from nlprobe import stats

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()

torch.manual_seed(0)
images = {images}
query, key = torch.randn(images, 9409, 256), torch.randn(images, 9409, 256)
a, b = query[..., 0], key[..., 0]
small = query[..., :200, :], key[..., :200, :]
call = lambda query, key, a, b: {call}
call(*small, a[..., :200], b[..., :200])  # libraries and thread pools are not what is measured
peak, stop = [0], threading.Event()
def watch():
    while not stop.is_set():
        peak[0] = max(peak[0], resident())
        time.sleep(0.001)
before = resident()
watcher = threading.Thread(target=watch)
watcher.start()
call(query, key, a, b)
stop.set()
watcher.join()
print((peak[0] - before) / 2**20)
"""


def extra_memory(call: str, images: int = 1) -> float:
    """MiB above what was resident before the call, at its worst, in a fresh process."""
    code = MEASURE.format(call=call, images=images)
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/statm")
@pytest.mark.parametrize(
    ("call", "images"),
    [
        ("stats.softmax_map_statistics(query, key)", 1),
        ("stats.softmax_map_statistics(query, key, distance_only=True)", 3),
        ("stats.row_statistics(query)", 3),
        ("stats.product_statistics(query, key)", 1),
        ("stats.product_statistics(query + 9, key)", 1),  # where float32 products do not do
        ("stats.dot_map_statistics(query, key)", 1),
        ("stats.concat_map_statistics(a, b)", 3),
        ("stats.mean_map('gaussian', query, key, 1.0)", 1),
        ("stats.apply_map('gaussian', query, key, key, 1.0)", 1),
    ],
)
def test_no_kernel_takes_64_mib_at_9409_positions(call: str, images: int) -> None:
    assert extra_memory(call, images) < 64


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/statm")
def test_the_memory_test_would_see_a_materialised_map() -> None:
    assert extra_memory("query @ key.mT") > 300
