"""Every model of the paper by name; a module a data set."""

from nlprobe.models.zoo.catalogue import entry, names, paper_distances, rows
from nlprobe.models.zoo.entry import ModelEntry
from nlprobe.models.zoo.paper import PaperRow

__all__ = ["ModelEntry", "PaperRow", "entry", "names", "paper_distances", "rows"]
