"""How the scripts start: Hydra composes the configuration, the schema checks it, and a mistake is one line."""

import difflib
import logging
import os
import platform
import re
import shlex
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ..errors import StoppedError, UserError
from ..runs import memory, proposals
from ..runs.proposals import DISTRIBUTION, how_to_install, version_of
from ..settings import CONFIGS, Config, parse
from ..settings.keys import annotations, misfit, unknown_key_message
from ..sweep import sweep
from . import words

# The words of the command line as they were typed, without the script's name.
_words: list[str] = []


def run(task: Callable[[Config], float | None], can_sweep: bool = True) -> None:
    """Compose `configs/bert4rec.yaml` with the command line's overrides and hand it to `task`.

    With -m, `task` is called once for each run of the sweep, with an output folder of its own.

    A mistake of the user's ends the program with one line on standard error and exit code 1; an order to stop with
    128 and the number of its signal, as shells have it: 130 for Ctrl-C, 143 for SIGTERM. With the environment variable
    HYDRA_FULL_ERROR=1 a mistake ends with the full traceback.
    """
    if {"--help", "-h"} & set(sys.argv[1:]):
        return print_help(task)
    if "--version" in sys.argv[1:]:
        return print(version())
    if "OMP_WAIT_POLICY" not in os.environ:
        # Before torch is there: its threads spin for so long when they wait. With the default, two runs that share a
        # processor slow each other down tenfold and more; with this, to a third, and a run alone loses little.
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra hands its errors on instead of printing them itself

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
        line = words.read(sys.argv[1:])
        folder = line.options["config_dir"]  # of presets of the user's own: what comes next needs it too
        _words[:] = [*([f"--config-dir={folder}"] if folder else []), *line.words]
        if line.options["shell_completion"]:
            if not any(word.startswith(("install=", "uninstall=", "query=")) for word in line.words):
                shells = "install=bash, install=zsh or install=fish, or uninstall=..."
                raise UserError(f"--shell-completion goes with {shells}")
        elif not (line.options["hydra_help"] or line.options["info"]):
            words.check(line)
        if line.is_sweep and not can_sweep:
            raise UserError("-m is for training: this script runs once, for one checkpoint")
        sys.argv[1:] = line.for_hydra()
        entry()
        if line.is_sweep:
            sweep.raise_if_all_failed()
    except (HydraException, OmegaConfBaseException, UserError, YAMLError, UnicodeDecodeError, OSError) as error:
        if wants_traceback:
            raise
        fail(error)
    except (KeyboardInterrupt, SystemExit) as stop:  # before or after training, which has an answer of its own
        # Lightning makes a SystemExit of Ctrl-C.
        if isinstance(stop, SystemExit) and not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        fail(StoppedError("stopped; nothing that was there is lost", signal.SIGINT))


def print_help(task: Callable[[Config], float | None]) -> None:
    from . import help

    module = sys.modules[task.__module__]
    script = f"{task.__name__}_bert4rec.py"
    summary = (module.__doc__ or "").partition("\n")[0]
    asked = [word for word in sys.argv[1:] if not word.startswith("-")]
    try:
        print(help.text(script, summary, asked, proposals.start(script.partition("_")[0])), flush=True)
    except BrokenPipeError:  # `--help | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def version() -> str:
    """The version of this package, and those that its figures depend on."""
    others = [f"{name} {version_of(name)}" for name in ("torch", "pytorch-lightning", "hydra-core", "numpy")]
    others.append(f"Python {platform.python_version()} on {platform.system()} {platform.machine()}")
    return f"{DISTRIBUTION} {version_of(DISTRIBUTION)}: {', '.join(others)}"


def command(name: str, *overrides: str, keeps_all: bool = False, also: tuple[str, ...] = ()) -> str:
    """A command line to run next, such as `python predict_bert4rec.py data.data_file=my.csv inference.topk=20`.

    Args:
        name: "train" or "predict".
        overrides: what to add.
        keeps_all: take along every override of this run, instead of those alone that say which data and which folder.
        also: what else to take along: beginnings of overrides.
    """
    added = {override.partition("=")[0] for override in overrides}
    kept = [
        word
        for word in _words
        if "=" in word
        and word.partition("=")[0] not in added
        and (keeps_all or word.startswith(("--config-dir=", "experiment=", "output_dir=", "data.", *also)))
    ]
    start = proposals.start(name)
    return " ".join([start, *map(shlex.quote, [*kept, *overrides])])


def fail(error: Exception) -> NoReturn:
    """Print the error in one line and exit; see `run` for the code."""
    line = one_line(error)
    if isinstance(error, StoppedError) and error.can_resume:
        line += f"; resume with {command('train', 'training.resume=true', keeps_all=True)}"
    print(f"error: {line}", file=sys.stderr, flush=True)
    sys.exit(128 + error.signal if isinstance(error, StoppedError) else 1)


def one_line(error: Exception) -> str:
    """The error in one line; for a key or a preset that does not exist, the nearest one or all that do."""
    message = str(error)
    if isinstance(error, YAMLError | UnicodeDecodeError):
        return f"{_yaml_place(error)} cannot be read as YAML: write it as configs/bert4rec.yaml is written"
    if unknown := re.search(r"Could not override '([^']+)'", message):
        return unknown_key_message(unknown[1])
    if missing := re.search(r"Could not find '(experiment|sweep|hydra/launcher)/([^']*)'", message):
        if missing[1] == "hydra/launcher":
            return f"there is no {missing[1]}={missing[2]} here: joblib comes with {how_to_install('sweep')}"
        return unknown_preset_message(missing[1], missing[2])
    if merging := re.search(r"Error merging override (.*)", message):
        key, _, value = merging[1].partition("=")
        return misfit(key, value) if key in annotations() else f"{merging[1]} is not possible: give another value"
    if composing := re.search(r"In '([^']+)': \w+ raised while composing config", message):
        return f"{composing[1]}.yaml cannot be used: write it as configs/bert4rec.yaml is written"
    message = message.split("Config search path")[0].split("See https://")[0]
    return re.sub(r"\s+", " ", message).strip()


def _yaml_place(error: Exception) -> str:
    """The file, and the line in it, that is no YAML."""
    if mark := getattr(error, "problem_mark", None):
        return f"{mark.name} line {mark.line + 1}"
    for path in CONFIGS.rglob("*.yaml"):
        try:
            path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return str(path)
    return "a file in configs"


def unknown_preset_message(group: str, name: str) -> str:
    """One line for a file that `configs/GROUP` does not have, with those that it has."""
    from . import help

    names = sorted(help.presets(group))
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}? There are " if near else "choose from "
    return f"there is no {group}={name}: {hint}{', '.join(names)}"


def quiet() -> None:
    """Silence what Lightning says that helps nobody here; its warnings about real trouble stay."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # of a log folder that a resumed run left as it was
    for message in (
        ".*does not have many workers.*",  # batches are made by a few array operations; workers would only cost
        "Checkpoint directory .* exists and is not empty",  # a resumed run
        ".*smaller than the logging interval.*",  # a small data set
        ".*Total length of .* across ranks is zero.*",  # data.holdout=0 has nothing to validate on
        "Couldn't infer the batch indices fetched",  # each batch names its own users
        "You're resuming from a checkpoint that ended before the epoch ended",  # the sampler resumes where it was
        "Be aware that when using `ckpt_path`, callbacks",  # early stopping switched on or off
        "It is recommended to use `self.log.*sync_dist=True",  # every process has the figures of all
        "The dirpath has changed from",  # resumed from another run's checkpoint
        ".*isinstance.treespec, LeafSpec.*",  # torch's deprecation, Lightning's business
    ):
        warnings.filterwarnings("ignore", message=message)
