"""The recorders of every run, in their order."""

from rcnn.training.log import Log
from rcnn.training.recorders.console import ConsoleTable
from rcnn.training.recorders.csv_table import CsvTable
from rcnn.training.recorders.history import History
from rcnn.training.recorders.json_lines import JsonLines
from rcnn.training.recorders.recorder import Recorder
from rcnn.training.run_folder import RunFolder


def standard_recorders(folder: RunFolder, log: Log) -> tuple[Recorder, ...]:
    """The recorders of the console and of the files of rows."""
    return ConsoleTable(log), JsonLines(folder.metrics), CsvTable(folder.table), History(folder.history)
