"""The sweeper behind `sweep=search`."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from ..errors import UserError
from ..settings.keys import is_whole_number
from . import sweep

if TYPE_CHECKING:
    import optuna


class SearchSweeper(Sweeper):
    """Optuna's tree-structured Parzen estimator chooses the values; a run that falls behind the median is stopped.

    The study is a file in the sweep's folder, so that runs in other processes can report to it.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = sweep.SearchConf(**settings)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.folder = Path(config.hydra.sweep.dir)
        self.launch = (
            Plugins.instance()
            .instantiate_launcher(hydra_context=hydra_context, task_function=task_function, config=config)
            .launch
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the trials, `n_jobs` at a time.

        Raises:
            UserError: if Optuna is not installed, there is nothing to search, or a number of runs is below 1.
        """
        n_trials, n_jobs = self.settings.n_trials, self.settings.n_jobs
        if n_trials < 1 or n_jobs < 1:
            raise UserError(f"hydra.sweeper.n_trials={n_trials}, n_jobs={n_jobs}: give whole numbers of at least 1")
        given = [f"{key!s}={value}" for key, value in self.settings.params.items()] + arguments
        overrides = {str(o.key_or_group): o for o in OverridesParser.create().parse_overrides(given)}
        fixed = [str(o.input_line) for o in overrides.values() if not o.is_sweep_override()]
        space = {key: _distribution(o) for key, o in overrides.items() if o.is_sweep_override()}
        if not space:
            raise UserError("there is nothing to search: give a key several values, such as training.lr=0.001,0.003")
        self.folder.mkdir(parents=True, exist_ok=True)
        study = sweep.open_study(self.folder, self.settings.seed)
        for start in range(0, n_trials, n_jobs):
            trials = [study.ask(space) for _ in range(min(n_jobs, n_trials - start))]
            words = [[*fixed, *(f"{key}={value}" for key, value in trial.params.items())] for trial in trials]
            returns = self.launch(words, initial_job_idx=start)
            for trial, job in zip(trials, returns, strict=True):
                _tell(study, trial, job.return_value, self.folder / str(trial.number))


def _tell(study: "optuna.Study", trial: "optuna.Trial", value: Any, folder: Path) -> None:
    from optuna.trial import TrialState

    state = TrialState.PRUNED if sweep.was_stopped_early(folder) else TrialState.COMPLETE
    if value is None:
        state = TrialState.FAIL
    study.tell(trial, value if state == TrialState.COMPLETE else None, state)


def _distribution(override: Override) -> "optuna.distributions.BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    if isinstance(value, IntervalSweep):
        low, high, is_log = value.start, value.end, "log" in value.tags
        assert low is not None
        assert high is not None
        if is_whole_number(str(override.key_or_group)):  # Hydra itself reads every interval as one of floats
            return IntDistribution(math.ceil(low), math.floor(high), log=is_log)
        return FloatDistribution(low, high, log=is_log)
    if isinstance(value, RangeSweep) and not value.shuffle:
        assert value.start is not None
        assert value.stop is not None
        if all(isinstance(number, int) for number in (value.start, value.stop, value.step)):
            return IntDistribution(int(value.start), int(value.stop) - 1, step=int(value.step))
    return CategoricalDistribution(list(override.sweep_string_iterator()))
