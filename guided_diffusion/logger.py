"""Upstream's logger: the code is in runs/logger.py."""

from guided_diffusion.moved import forward_assignments
from guided_diffusion.runs import log_formats, logger
from guided_diffusion.runs.log_formats import (  # noqa: F401
    CSVOutputFormat,
    HumanOutputFormat,
    JSONOutputFormat,
    KVWriter,
    SeqWriter,
    TensorBoardOutputFormat,
    make_output_format,
)
from guided_diffusion.runs.logger import (  # noqa: F401
    DEBUG,
    DISABLED,
    ERROR,
    INFO,
    WARN,
    Logger,
    configure,
    debug,
    dump_tabular,
    dumpkvs,
    error,
    get_current,
    get_dir,
    get_rank_without_mpi_import,
    getkvs,
    info,
    log,
    logkv,
    logkv_mean,
    logkvs,
    mpi_weighted_mean,
    profile,
    profile_kv,
    record_tabular,
    reset,
    scoped_configure,
    set_comm,
    set_level,
    warn,
    warning,
)

forward_assignments(__name__, log_formats, logger)
