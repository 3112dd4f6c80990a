"""The report of a run: one HTML page that needs nothing else, made of what is in the run's folder.

It can be made again at any time, of a run that goes on as well as of one that failed (`farstep report DIR`).
"""

from farstep.trainers.report.page import write_report

__all__ = ["write_report"]
