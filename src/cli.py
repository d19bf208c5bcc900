"""How the scripts start: Hydra composes the configuration, the schema checks it, and a mistake is one line."""

import difflib
import logging
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from src import memory, sweep
from src.config import ALIASES, CONFIGS, PATH_KEYS, Config, known_keys, nearest_key, parse, unknown_key_message
from src.errors import UserError
from src.extras import how_to_install

# The words of the command line as they were typed, without the script's name.
_words: list[str] = []


def run(task: Callable[[Config], float | None], can_sweep: bool = True) -> None:
    """Compose `configs/bert4rec.yaml` with the command line's overrides and hand it to `task`.

    With -m, `task` is called once for each run of the sweep, with an output folder of its own.

    A mistake of the user's ends the program with one line on standard error and exit code 1. With the environment
    variable HYDRA_FULL_ERROR=1 it ends with the full traceback.
    """
    if {"--help", "-h"} & set(sys.argv[1:]):
        print_help(task)
        return
    if "OMP_WAIT_POLICY" not in os.environ:
        # Before torch is there: its threads spin for so long when they wait. With the default, two runs that share a
        # processor slow each other down tenfold and more; with this, to a third, and a run alone loses little.
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra hands its errors on instead of printing them itself
    _words[:] = sys.argv[1:]
    is_sweep = bool({"-m", "--multirun"} & set(_words))
    sys.argv[1:] = [quote_path(word, is_sweep) for word in _words]

    @hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="bert4rec")
    def entry(composed: DictConfig) -> Any:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            return sweep.run_one(task, composed)
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
        check_words(_words)
        if is_sweep and not can_sweep:
            raise UserError("-m is for training: this script runs once, for one checkpoint")
        entry()
        if is_sweep:
            sweep.raise_if_all_failed()
    except (HydraException, OmegaConfBaseException, UserError) as error:
        if wants_traceback:
            raise
        fail(error)
    except KeyboardInterrupt:  # before or after training, which has an answer of its own
        fail(UserError("stopped; nothing that was there is lost"))


def print_help(task: Callable[[Config], float | None]) -> None:
    from src import help

    module = sys.modules[task.__module__]
    script = Path(str(module.__file__)).name
    summary = (module.__doc__ or "").partition("\n")[0]
    try:
        print(help.text(script, summary, [word for word in sys.argv[1:] if not word.startswith("-")]), flush=True)
    except BrokenPipeError:  # `--help | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def check_words(words: list[str]) -> None:
    """What people type who do not know KEY=VALUE yet.

    Raises:
        UserError: with the way it is written here.
    """
    keys = known_keys()
    names = {*ALIASES, *keys, *(key.rpartition(".")[2] for key in keys)}
    is_sweep = bool({"-m", "--multirun"} & set(words))
    for word in words:
        name = word.lstrip("-").partition("=")[0]
        if word.startswith("--") and name in names:
            meant = name if name in keys else nearest_key(name)
            raise UserError(f"there is no option --{name}: settings are given as KEY=VALUE, here {meant}=VALUE")
        if is_sweep and name == "output_dir" and "${hydra:" in word:
            raise UserError(f"{word}: give a plain folder; each run of a sweep has one of its own in it, sweep/NUMBER")
        if word.endswith((".csv", ".tsv", ".parquet", ".gz", ".zst")) and "=" not in word:
            folder, file = os.path.split(word)
            named = shlex.join([f"data.data_dir={folder or '.'}", f"data.data_file={file}"])
            raise UserError(f"{word} is no setting: name a table with {named}")


def command(name: str, *overrides: str, keeps_all: bool = False) -> str:
    """A command line to go on with, such as `python predict_bert4rec.py data.data_file=my.csv inference.topk=20`.

    Args:
        name: "train" or "predict".
        overrides: what to add.
        keeps_all: take along every override of this run, instead of those alone that say which data and which folder.
    """
    added = {override.partition("=")[0] for override in overrides}
    kept = [
        word
        for word in _words
        if "=" in word
        and word.partition("=")[0] not in added
        and (keeps_all or word.startswith(("experiment=", "output_dir=", "data.")))
    ]
    # The shell script says so when it is what the user has typed: its Python need not be on the PATH.
    start = f"./run_bert4rec.sh {name}" if "RUN_BERT4REC" in os.environ else f"python {name}_bert4rec.py"
    return " ".join([start, *map(shlex.quote, [*kept, *overrides])])


def quote_path(argument: str, is_sweep: bool = False) -> str:
    """The override with its value in quotes, if its key is one of `PATH_KEYS` and it has none yet.

    In a sweep a value with a comma or parentheses is left alone, since there it may stand for several.
    """
    key, _, value = argument.partition("=")
    if key not in PATH_KEYS or not value or value[0] in "'\"" or value in ("null", "true", "false"):
        return argument
    if is_sweep and set(value) & set(",()"):
        return argument
    escaped = value.replace("'", "\\'")
    return f"{key}='{escaped}'"


def fail(error: Exception) -> NoReturn:
    """Print the error in one line and exit with code 1."""
    print(f"error: {one_line(error)}", file=sys.stderr)
    sys.exit(1)


def one_line(error: Exception) -> str:
    """The error in one line; for a key or a preset that does not exist, the nearest one or all that do."""
    message = str(error)
    unknown = re.search(r"Could not override '([^']+)'", message)
    if unknown:
        return unknown_key_message(unknown[1])
    missing = re.search(r"Could not find '(experiment|sweep|hydra/launcher)/([^']+)'", message)
    if missing and missing[1] == "hydra/launcher":
        return f"there is no {missing[1]}={missing[2]} here: joblib comes with {how_to_install('sweep')}"
    if missing:
        return unknown_preset_message(missing[1], missing[2])
    message = message.split("Config search path")[0]
    return re.sub(r"\s+", " ", message).strip()


def unknown_preset_message(group: str, name: str) -> str:
    """One line for a file that `configs/GROUP` does not have, with those that it has."""
    folder = CONFIGS / group
    names = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}? There are " if near else "choose from "
    return f"there is no {group}={name}: {hint}{', '.join(names)}"


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
