"""Results as tables, figures and one self-contained page; reads records only, knows no torch."""

from secateur.report.cells import Row
from secateur.report.comparison_page import write_comparison, write_comparison_tables
from secateur.report.export import write_tables
from secateur.report.page import write_report
from secateur.report.sensitivity_page import write_sensitivity, write_sensitivity_tables
from secateur.report.tables import table

__all__ = [
    "Row",
    "table",
    "write_comparison",
    "write_comparison_tables",
    "write_report",
    "write_sensitivity",
    "write_sensitivity_tables",
    "write_tables",
]
