"""How the scripts start: Hydra composes the configuration, the schema checks it, and a mistake is one line."""

import logging
import os
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from src import memory
from src.config import Config, parse, unknown_key_message
from src.errors import UserError

# Settings whose values are taken as they stand: Hydra's grammar stumbles over `~`, `=`, `,` and letters beyond ASCII.
PATH_KEYS = (
    "output_dir",
    "data.data_dir",
    "data.data_file",
    "data.download_url",
    "training.resume",
    "inference.checkpoint_path",
    "inference.output_path",
)
CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def run(task: Callable[[Config], float | None]) -> None:
    """Compose `configs/bert4rec.yaml` with the command line's overrides and hand it to `task`.

    A mistake of the user's ends the program with one line on standard error and exit code 1. With the environment
    variable HYDRA_FULL_ERROR=1 it ends with the full traceback.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        # Before torch is there: its threads spin for so long when they wait. With the default, two runs that share a
        # processor slow each other down tenfold and more; with this, each takes its half and a run alone loses nothing.
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra hands its errors on instead of printing them itself
    if not {"-m", "--multirun"} & set(sys.argv):  # there a comma separates the values of a sweep
        sys.argv[1:] = [quote_path(argument) for argument in sys.argv[1:]]

    @hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="bert4rec")
    def entry(composed: DictConfig) -> Any:
        try:
            return task(parse(composed))
        except (UserError, OSError) as error:  # here already, or Hydra would add a line of its own
            if wants_traceback:
                raise
            fail(error)
        except (MemoryError, RuntimeError) as error:
            if wants_traceback or not memory.is_out(error):
                raise
            fail(UserError(f"the memory does not suffice ({one_line(error)[:200]}): {memory.SAVES_MEMORY}"))

    try:
        entry()
    except (HydraException, OmegaConfBaseException) as error:
        if wants_traceback:
            raise
        fail(error)
    except KeyboardInterrupt:  # before or after training, which has an answer of its own
        fail(UserError("stopped; nothing that was there is lost"))


def quote_path(argument: str) -> str:
    """The override with its value in quotes, if its key is one of `PATH_KEYS` and it has none yet."""
    key, _, value = argument.partition("=")
    if key not in PATH_KEYS or not value or value[0] in "'\"" or value in ("null", "true", "false"):
        return argument
    escaped = value.replace("'", "\\'")
    return f"{key}='{escaped}'"


def fail(error: Exception) -> NoReturn:
    """Print the error in one line and exit with code 1."""
    print(f"error: {one_line(error)}", file=sys.stderr)
    sys.exit(1)


def one_line(error: Exception) -> str:
    """The error in one line; for a key that does not exist, the nearest one that does."""
    message = str(error)
    unknown = re.search(r"Could not override '([^']+)'", message)
    if unknown:
        return unknown_key_message(unknown[1])
    message = message.split("Config search path")[0]
    return re.sub(r"\s+", " ", message).strip()


def quiet() -> None:
    """Silence what Lightning says that helps nobody here; its warnings about real trouble stay."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # batches are made by a few array operations; workers would only cost
        "Checkpoint directory .* exists and is not empty",  # a resumed run
        ".*smaller than the logging interval.*",  # a small data set
        ".*Total length of .* across ranks is zero.*",  # data.holdout=0 has nothing to validate on
        "Couldn't infer the batch indices fetched",  # each batch names its own users
        "You're resuming from a checkpoint that ended before the epoch ended",  # the sampler goes on where it was
        "Be aware that when using `ckpt_path`, callbacks",  # early stopping switched on or off
        "It is recommended to use `self.log.*sync_dist=True",  # every process has the figures of all
        "The dirpath has changed from",  # resumed from another run's checkpoint
        ".*isinstance.treespec, LeafSpec.*",  # torch's deprecation, Lightning's business
    ):
        warnings.filterwarnings("ignore", message=message)
