"""Records → tables, for the terminal and for papers."""

from nlprobe.tables.distances import PaperRow, distance_table
from nlprobe.tables.table import FORMATS, Cell, Column, Row, Table

__all__ = ["FORMATS", "Cell", "Column", "PaperRow", "Row", "Table", "distance_table"]
