"""What goes wrong in a run, kept in its directory: in each rank's log, the last error in `status.json` too."""

from __future__ import annotations

import logging

from guided_diffusion.runs import logger, status
from guided_diffusion.runs.log_formats import HumanOutputFormat


class _StderrAndLog(logging.StreamHandler):
    """Python's warnings and log records as they are without any handler, and in the rank's log file."""

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        write_to_log(self.format(record))


def keep_warnings() -> None:
    """From now on warnings, and what libraries log from that level on, go to the rank's log file too."""
    handlers = logging.getLogger().handlers
    if not any(isinstance(handler, _StderrAndLog) for handler in handlers):
        logging.getLogger().addHandler(_StderrAndLog())
        logging.captureWarnings(True)


def keep_failure(line: str, details: str = "", state: str = status.FAILED, consequence: bool = False) -> None:
    """Note in a run's directory, if this process has one, that it ends and why.

    :param line: for `status.json`; details: for the rank's log, in place of the line.
    :param state, consequence: see `status.note_failure`.
    """
    if logger.Logger.CURRENT is None:
        return
    write_to_log(details or f"error: {line}")
    status.note_failure(logger.Logger.CURRENT.get_dir(), line, state, consequence)


def write_to_log(text: str) -> None:
    """To the log file alone, not to the screen."""
    if logger.Logger.CURRENT is None:
        return
    for writer in logger.Logger.CURRENT.output_formats:
        if isinstance(writer, HumanOutputFormat) and writer.own_file:
            writer.writeseq([text.rstrip("\n")])
