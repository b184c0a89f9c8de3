"""One capture → the numbers of its records; every tensor that comes out has one value for each image."""

from dataclasses import replace

from nlprobe.probe.adapters import Capture, CrossCapture, MaplessCapture, SingleMapCapture
from nlprobe.probe.cross import measure_cross
from nlprobe.probe.measurement import Measured, Wanted
from nlprobe.probe.padding import Padding
from nlprobe.probe.pairwise import measure_pairwise
from nlprobe.probe.rows import measure_placed_rows
from nlprobe.probe.single_map import measure_single_map
from nlprobe.probe.space_time import with_space_time
from nlprobe.stats.records import SPACE_TIME


def measure(
    capture: Capture, wanted: Wanted, *, site: str, prefix: int, images: int, padding: Padding | None = None
) -> Measured:
    """The records' numbers of one call, and the moments of the quantities that live in channel space.

    Args:
        capture: What the adapter delivered.
        wanted: What to measure.
        site: The site's name, for its centres.
        prefix: How many of the first positions are not places in the image.
        images: Images in the batch, where sets may be windows of them.
        padding: Which positions lie in the pictures, where somebody has said so.
    """
    if SPACE_TIME in wanted.metrics:
        others = replace(wanted, metrics=tuple(name for name in wanted.metrics if name != SPACE_TIME))
        measured = measure(capture, others, site=site, prefix=prefix, images=images, padding=padding)
        return with_space_time(measured, capture, wanted.precision, images)
    centres = wanted.centres.get(site, {})
    if isinstance(capture, SingleMapCapture):
        return measure_single_map(capture, wanted.quantities, centres, padding)
    if isinstance(capture, CrossCapture):
        return measure_cross(capture, wanted, centres, prefix, padding)
    if isinstance(capture, MaplessCapture):
        rows = {"input": capture.x, "output": capture.output}
        size = {"n_queries": capture.x.shape[1], "n_keys": 0, "groups": 1}
        return measure_placed_rows(rows, size, wanted.quantities, centres, padding)
    return measure_pairwise(capture, wanted, centres, prefix, images, padding)
