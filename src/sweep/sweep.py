"""Sweeps: many runs of the training script, each in a folder of its own, and what they show together.

`-m` with Hydra's own sweeper tries every combination of values; `sweep=search` lets Optuna choose them and stop runs
that fall behind. hydra-optuna-sweeper is not used for it: it needs an Optuna before version 3, whose storage no longer
works with current libraries, and cannot stop a run early.
"""

import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ..atomic_files import write_whole
from ..command_line.words import unquoted
from ..errors import StoppedError, UserError
from ..runs import memory
from ..runs.folder import RunFolder
from ..runs.proposals import how_to_install, start
from ..settings import Config, parse
from . import seeds

if TYPE_CHECKING:
    import optuna

RECORD = "sweep_run.json"  # in the folder of each run
OUTPUT = "output.txt"  # likewise
STUDY = "search.journal"  # in the folder of the sweep
# `output_dir` may begin with ~, which Hydra would take for a name.
OmegaConf.register_new_resolver("sweep_folder", lambda root: str(RunFolder.at(root).sweep), replace=True)
# A name in the YAML could be only one of the two that this package goes by, in a checkout and installed.
OmegaConf.register_new_resolver("sweep_closing", lambda: f"{Closing.__module__}.{Closing.__name__}", replace=True)


@dataclass
class SearchConf:
    """Settings of `hydra.sweeper` under `sweep=search`."""

    _target_: str = "hydra_plugins.bert4rec_search.SearchSweeper"
    n_trials: int = 30  # runs in all
    n_jobs: int = 1  # runs at once, with a launcher that can do that
    prune: bool = True  # whether runs may be stopped early
    seed: int = 42  # what the choices follow from
    # Key -> the values to search: `choice(...)`, `interval(low, high)`, `tag(log, interval(...))`, `range(...)`. The
    # command line wins over it.
    params: dict[str, str] = field(default_factory=dict)


ConfigStore.instance().store(group="hydra/sweeper", name="search", node=SearchConf, provider="bert4rec")


def register_search() -> None:
    """Let Hydra know the sweeper of `sweep=search`, under the only kind of name that it takes for one.

    It finds plugins by itself in installed packages named hydra_plugins; a checkout has none, and one in a wheel would
    be imported by every other program that uses Hydra.
    """
    from .search import SearchSweeper

    Plugins.instance().class_name_to_class[SearchConf._target_] = SearchSweeper


@dataclass(frozen=True)
class Record:
    """One run of a sweep."""

    number: int
    overrides: list[str]  # its command line, as Hydra gave it
    value: float | None  # the best value of `training.monitor_metric`; None if the run failed
    state: str  # "done", "stopped" early because it fell behind the others, or "failed"
    seconds: float
    monitor: str = ""  # `training.monitor_metric`
    note: str = ""  # why it failed

    @property
    def settings(self) -> dict[str, str]:
        """Key -> value, as they were given."""
        return {key: value for key, _, value in (word.partition("=") for word in self.overrides)}


def run_one(task: Callable[[Config], float | None], composed: DictConfig) -> float | None:
    """One run of a sweep, in the folder `output_dir`/sweep/NUMBER. One that fails does not end the others.

    What it prints goes to `output.txt` there; here it has a line when it starts and one when it ends.
    """
    number = HydraConfig.get().job.num
    overrides = list(HydraConfig.get().overrides.task)
    of_all = f" ({number + 1} of {_count[0]})" if _count else ""
    print(f"run {number}{of_all}  {shown_words(overrides)}", flush=True)
    folder = RunFolder.at(composed.output_dir).sweep / str(number)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    value, monitor, state, note = None, "", "failed", ""
    try:
        config = parse(composed)
        monitor = config.training.monitor_metric
        if config.data.holdout == 0:
            raise UserError("data.holdout=0 leaves nothing to compare the runs of a sweep by: use data.holdout=1 or 2")
        with (folder / OUTPUT).open("w", encoding="utf-8") as file, redirect_stdout(file):
            value = task(replace(config, output_dir=str(folder)))
        state = "stopped" if was_stopped_early(folder) else "done"
    except StoppedError as error:
        print(f"error: {error}; the sweep ends with it", file=sys.stderr)
        sys.exit(128 + error.signal)  # a launcher would begin the next run after any other exception
    except (UserError, OSError) as error:
        note = " ".join(str(error).split())
    except (MemoryError, RuntimeError) as error:  # too large a model; the next one may be smaller
        if not memory.is_out(error):
            raise
        note = f"the memory does not suffice ({' '.join(str(error).split())[:200]})"
    if note:
        print(f"error: {note}", file=sys.stderr, flush=True)
    record = Record(number, overrides, value, state, round(time.perf_counter() - started, 1), monitor, note)
    (folder / RECORD).write_text(json.dumps(asdict(record), indent=2) + "\n")
    if value is not None:
        ended = " (stopped early: behind the others)" if state == "stopped" else ""
        print(f"    {monitor} {value:.4f}, {record.seconds:.0f} s{ended}  {folder / OUTPUT}", flush=True)
    return value


def open_study(folder: Path, seed: int | None = None) -> "optuna.Study":
    """The search in this folder, made if there is none."""
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise UserError(
            f"sweep=search needs a library that is not installed ({error.name}): {how_to_install('sweep')}"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(folder / STUDY))),
        study_name="bert4rec",
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1),
        load_if_exists=True,
    )


def is_running() -> bool:
    """Whether this run is one of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def command() -> str | None:
    """The command that repeats this run of a sweep alone; None outside of one."""
    if not is_running():
        return None
    return f"{start('train')} {shown_words(HydraConfig.get().overrides.task, ('sweep', 'output_dir'))}"


def current_trial() -> "optuna.Trial | None":
    """The trial that this run is, if it is one of a search that may stop runs early."""
    if not is_running():
        return None
    settings = HydraConfig.get()
    if settings.sweeper.get("_target_") != SearchConf._target_ or not settings.sweeper.prune:
        return None
    import optuna

    study = open_study(Path(settings.sweep.dir))
    return optuna.Trial(study, study.get_trials(deepcopy=False)[settings.job.num]._trial_id)


def was_stopped_early(folder: Path) -> bool:
    return (folder / "stopped_early").exists()


class Closing(Callback):
    """Before a sweep, makes room for it; after it, shows what it found."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        register_search()
        _records.clear()
        _count[:] = count_runs(config)
        _held.close()
        folder = RunFolder.at(config.output_dir)
        try:
            _held.enter_context(folder.locked())
        except UserError as error:  # Hydra makes a warning of any other exception here
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
        if archived := folder.archive_sweep():
            print(f"the earlier sweep went to {archived}")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = RunFolder.at(config.output_dir).sweep
        with _held:  # Hydra makes a warning of an error here: the folder is free all the same
            _records[:] = read_records(folder)
            print("\n" + summarize(_records, folder))


def count_runs(config: DictConfig) -> list[int]:
    """How many runs a sweep will have, as a list of one; empty where its sweeper alone knows."""
    sweeper = config.hydra.sweeper
    if "n_trials" in sweeper:
        return [sweeper.n_trials]
    given = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    overrides = OverridesParser.create().parse_overrides([*given, *config.hydra.overrides.task])
    last = {override.key_or_group: override for override in overrides}
    return [math.prod(len(list(o.sweep_string_iterator())) for o in last.values() if o.is_sweep_override())]


_records: list[Record] = []
_count: list[int] = []  # runs of this sweep, if they are known
_held = ExitStack()  # the lock on the sweep's folder


def raise_if_all_failed() -> None:
    """Raises: UserError: if no run of the sweep that has just ended has a result."""
    if _records and all(record.state == "failed" for record in _records):
        raise UserError(f"all {len(_records)} runs of the sweep failed: {_records[0].note}")


def read_records(folder: Path) -> list[Record]:
    """Every run of a sweep that has ended, in order."""
    records = [Record(**json.loads(path.read_text())) for path in folder.glob(f"*/{RECORD}")]
    return sorted(records, key=lambda record: record.number)


def summarize(records: Sequence[Record], folder: Path) -> str:
    """A table of the runs, best first, what several seeds give on average, and the command of the best one.

    Writes sweep.csv, seeds.csv and a page of plots too.
    """
    if not records:
        return "no run of the sweep has ended"
    import pandas as pd

    keys = dict.fromkeys(key for record in records for key in record.settings)
    varied = [key for key in keys if len({record.settings.get(key) for record in records}) > 1]
    monitor = next((record.monitor for record in records if record.monitor), "value")  # a failed one may have none
    ranked = sorted(records, key=lambda record: -math.inf if record.value is None else record.value, reverse=True)
    heads = ["run", monitor, "state", "seconds"]
    rows = [
        [str(r.number), "" if r.value is None else f"{r.value:.4f}", r.state, f"{r.seconds:.0f}"]
        + [_short(r.settings.get(key, "")) for key in varied]
        for r in ranked
    ]
    table = pd.DataFrame(rows, columns=[*heads, *varied])
    write_whole(folder / "sweep.csv", table.to_csv(index=False).encode())
    table.columns = [*heads, *(key.rpartition(".")[2] for key in varied)]
    lines = ["", f"{len(records)} runs, best first", table.to_string(index=False), ""]
    lines += seeds.summarize(records, varied, folder)
    best = ranked[0]
    if best.value is not None:
        lines += [f"best        {start('train')} {shown_words(best.overrides, ('sweep', 'output_dir'))}"]
        lines += [f"checkpoint  {RunFolder(folder / str(best.number)).best}"]
    lines += [f"table       {folder / 'sweep.csv'}"]
    return "\n".join([*lines, f"plots       {draw(records, varied, monitor, folder / 'sweep.html')}"])


def shown_words(overrides: Sequence[str], without: Sequence[str] = ()) -> str:
    """Overrides as a person would type them in a shell, without these keys."""
    shown = (unquoted(word) for word in overrides if word.partition("=")[0] not in without)
    return " ".join(map(shlex.quote, shown))


def _short(value: str) -> str:
    try:
        return value if len(value) < 8 else f"{float(value):.4g}"
    except ValueError:
        return value


def draw(records: Sequence[Record], varied: Sequence[str], monitor: str, path: Path) -> str:
    """A page with the figure of each run in turn and the best so far, then against each setting.

    Returns:
        Its path, or why there is none.
    """
    from ..evaluation import plots

    shown = [record for record in records if record.value is not None]
    if not shown:
        return "none: no run has a result"
    figures, states = [float(r.value or 0.0) for r in shown], [r.state for r in shown]
    numbers = [float(record.number) for record in shown]
    drawn = {"run": plots.points(numbers, figures, states, name="run", figure_name=monitor, has_best=True)}
    for name in varied:
        values = [record.settings.get(name, "") for record in shown]
        drawn[name] = plots.points(_numbers(values) or values, figures, states, name=name, figure_name=monitor)
    write_whole(path, plots.page(f"{len(shown)} runs", drawn).encode())
    return str(path)


def _numbers(values: Sequence[str]) -> list[float] | None:
    try:
        return [float(value) for value in values]
    except ValueError:
        return None
