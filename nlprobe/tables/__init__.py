"""Records → tables, for the terminal and for papers."""

from nlprobe.tables.agreement import agreement_table
from nlprobe.tables.classes import activation_table, selectivity_table
from nlprobe.tables.distances import PaperRow, distance_table
from nlprobe.tables.objects import object_table
from nlprobe.tables.table import FORMATS, Cell, Column, Row, Table

__all__ = [
    "FORMATS",
    "Cell",
    "Column",
    "PaperRow",
    "Row",
    "Table",
    "activation_table",
    "agreement_table",
    "distance_table",
    "object_table",
    "selectivity_table",
]
