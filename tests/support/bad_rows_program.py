"""Runs one command of the scripts after the other in one process group, and notes how each ended on this rank.

The argument is a JSON file: a list of {"program", "argv", "cwd"}. Every rank writes `ends-<rank>.jsonl` beside it, a
line a command: the text of its error, null where there was none. Commands after which the ranks are out of step end
here with a timeout; what is noted then ends at them.
"""

import contextlib
import gc
import io
import json
import os
import runpy
import sys
import traceback
from pathlib import Path

from guided_diffusion import dist_util, logger
from guided_diffusion.errors import InputError


def end_of(main) -> str | None:
    """The line that the user would see."""
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            main()
    except InputError as error:
        return str(error)
    except SystemExit:  # a flag, refused by argparse; rank 0 says it
        return told.getvalue()
    except Exception:
        return traceback.format_exc()
    return None


def run_rows() -> None:
    rows_path = Path(sys.argv[1])
    dist_util.setup_dist()
    mains = {}
    with open(rows_path.with_name(f"ends-{dist_util.get_rank()}.jsonl"), "w") as ends:
        for row in json.loads(rows_path.read_text()):
            program = row["program"]
            if program not in mains:
                mains[program] = runpy.run_path(program, run_name="script")["main"]
            os.chdir(row["cwd"])
            sys.argv = [program, *row["argv"]]
            ends.write(json.dumps(end_of(mains[program])) + "\n")
            ends.flush()
            if logger.Logger.CURRENT is not None:
                logger.Logger.CURRENT.close()
                logger.Logger.CURRENT = None
            gc.collect()  # data loaders and their workers
            dist_util.barrier()


dist_util.run_main(run_rows)
