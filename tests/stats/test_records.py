"""The columns of the records."""

from nlprobe.stats import METRICS
from nlprobe.stats.records import METRIC_COLUMNS


def test_every_metric_has_a_column_of_its_name_and_there_is_no_other() -> None:
    assert tuple(METRICS) == METRIC_COLUMNS
