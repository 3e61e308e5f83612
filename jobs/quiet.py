"""What libraries write into the logs of jobs although nobody can act on it. All of it is named here, and nothing else.

Each line is matched as exactly as possible: another warning of the same library still reaches the log.
"""

import logging
import os
import sys
import warnings
from pathlib import Path

GPU_DEVICE = Path("/dev/nvidia0")
NO_ACCELERATOR = "Setting accelerator to CPU. If you have GPU or other accelerator, we were unable to detect it."
REPLACED_COLLECTIVE = r"`torch\.distributed\.\w+` is deprecated\. Please use `torch\.distributed\.\w+` instead"


def silence_noise() -> None:
    """Keep progress bars and these messages out of the logs. Call it before torch and transformers are imported."""
    if not sys.stderr.isatty():
        # A bar is drawn for the eye ("Loading weights", "Writing model shards"); in a file it is a line of its
        # own for every refresh. These variables are read when the libraries are imported.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    # What they tell at INFO is about their own requests and steps.
    for chatty in ("absl", "compilers", "httpx"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    if not GPU_DEVICE.exists():
        # Once for every process. It is news only on a machine with a GPU, and there it stays.
        logging.getLogger("DeepSpeed").addFilter(lambda record: record.getMessage() != NO_ACCELERATOR)
    # DeepSpeed calls collectives of torch that have new names. Only a newer DeepSpeed can change that.
    warnings.filterwarnings(
        "ignore", REPLACED_COLLECTIVE, category=FutureWarning, module=r"torch\.distributed\.c10d_logger"
    )
