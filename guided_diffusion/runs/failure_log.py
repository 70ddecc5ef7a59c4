"""Warnings and failures of a run, written to each rank's log file; the last error to `status.json`, too."""

from __future__ import annotations

import logging

from guided_diffusion.runs import logger, status
from guided_diffusion.runs.log_formats import HumanOutputFormat


class _StderrAndLog(logging.StreamHandler):
    """A handler that writes warnings and log records to stderr and to the rank's log file."""

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        write_to_log(self.format(record))


def keep_warnings() -> None:
    """Write warnings, and records of libraries from that level on, to the rank's log file too."""
    handlers = logging.getLogger().handlers
    if not any(isinstance(handler, _StderrAndLog) for handler in handlers):
        logging.getLogger().addHandler(_StderrAndLog())
        logging.captureWarnings(True)


def keep_failure(line: str, details: str = "", state: str = status.FAILED, consequence: bool = False) -> None:
    """Write to a run's directory, if this process has one, that the run ends and why.

    :param line: for `status.json`; details: for the rank's log, in place of the line.
    :param state, consequence: see `status.note_failure`.
    """
    if logger.Logger.CURRENT is None:
        return
    write_to_log(details or f"error: {line}")
    status.note_failure(logger.Logger.CURRENT.get_dir(), line, state, consequence)


def write_to_log(text: str) -> None:
    """Write text to the log file alone, not to the screen."""
    if logger.Logger.CURRENT is None:
        return
    for writer in logger.Logger.CURRENT.output_formats:
        if isinstance(writer, HumanOutputFormat) and writer.own_file:
            writer.writeseq([text.rstrip("\n")])
