"""Resuming from a checkpoint: whether it fits, what has changed since, and where exactly training continues."""

import traceback
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..runs import memory
from ..runs.folder import RunFolder
from ..settings import Config

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from ..data import BERT4RecDataModule

RESTORING = "pytorch_lightning.trainer.connectors.checkpoint_connector"
# What the weights, the optimiser's state and the split depend on.
FIXED = (
    "model.hidden_units",
    "model.num_heads",
    "model.num_layers",
    "model.max_len",
    "model.share_embeddings",
    "model.embedding_norm_first",
    "model.output_transform",
    "model.output_bias",
    "data.min_interactions",
    "data.min_item_interactions",
    "data.min_rating",
    "data.deduplicate",
    "data.holdout",
    "data.split",
    "data.split_at",
    "training.optimizer",
    "training.decay_norm_and_bias",
)
# What decides which rows form which batch, the number of processes aside.
PLAN = ("seed", "data.batch_size", "data.window_stride", "model.max_len")
# Of a checkpoint: the name and size of the file that its run was initialised from, instead of the path.
ORIGIN = "training.init_from"
# What may differ without a word.
PLACES = (
    *("output_dir", "data.data_dir", "data.data_file", "data.generate_sample", "training.resume", "inference."),
    *("data.validation_file", "data.test_file"),
    *("data.columns.", "data.delimiter", "data.encoding", "data.on_bad_rows", "data.download", "data.cache"),
    *("training.logger", "training.callbacks", ORIGIN),
)


class StateError(ValueError):
    """What a checkpoint has for the optimiser or the loops does not fit the run."""


def is_about_state(error: BaseException) -> bool:
    """Whether it came up while a checkpoint was restored: what the hardware, the data or a step does is no such error.

    Lightning raises whatever it is when a state does not fit, but only from one of its modules.
    """
    if memory.is_out(error):
        return False
    frames = [frame.f_globals.get("__name__") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return isinstance(error, StateError) or RESTORING in frames


def find(resume: bool | str, folder: RunFolder) -> Path | None:
    """The checkpoint that `training.resume` names, or None for a new run.

    Raises:
        UserError: if it is not there.
    """
    if resume is False or (resume == "auto" and not folder.last.is_file()):
        return None
    path = folder.last if resume in (True, "auto") else Path(str(resume)).expanduser()
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path} to resume from: start anew with training.resume=false")
    return path


def require_state(content: dict[str, Any], path: Path) -> None:
    """See that the checkpoint has what training needs beyond the weights.

    Raises:
        UserError: if it has not, or only for show.
    """
    try:
        states = content["optimizer_states"], content["lr_schedulers"], content["callbacks"]
        run = content.get("run", {"settings": {}, "world_size": 1, "seconds": 0.0})
        loop = content["loops"]["fit_loop"]
        counts = [content["global_step"], *position(content), loop["epoch_loop.state_dict"]["_batches_that_stepped"]]
        kinds = [type(part) for part in (*states, run["settings"], run["world_size"], run["seconds"])]
        if kinds != [list, list, dict, dict, int, float] or not all(type(n) is int and 0 <= n < 2**62 for n in counts):
            raise TypeError(f"counts {counts}")
        _require_counts(content["loops"])
        loss = content.get("epoch_loss", [0.0, 0.0])
        if [type(number) for number in loss] != [float, float]:
            raise TypeError(f"epoch_loss {loss}")
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} has no state of training to resume from ({type(error).__name__}: {str(error)[:200]}): start anew"
            " with training.resume=false"
        ) from error


def _require_counts(loops: Any) -> None:
    """See that all that Lightning's loops count with are whole numbers.

    Raises:
        TypeError: if one is not.
    """
    for name, part in loops.items():
        if name in ("total", "current"):
            if not all(type(n) is int and 0 <= n < 2**62 for n in part.values()):
                raise TypeError(f"counts {list(part.values())}")
        elif name == "is_last_batch":
            if type(part) is not bool:
                raise TypeError(f"{name} {part}")
        elif isinstance(part, dict):
            _require_counts(part)


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted keys."""
    values: dict[str, Any] = {}
    for key, value in settings.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return values


def recorded(config: Config) -> dict[str, Any]:
    """The settings that travel in a checkpoint, by dotted keys: no paths, which are nobody else's business."""
    return {key: value for key, value in flat(asdict(config)).items() if not key.startswith(PLACES)}


def changes(content: dict[str, Any], config: Config, path: Path) -> list[str]:
    """What has changed since the checkpoint, such as `training.lr=0.001 (was 0.0015)`.

    Raises:
        UserError: if something has that cannot, or if nothing is left to train.
    """
    here, there = recorded(config), _settings(content)
    different = [key for key in here if key in there and there[key] != here[key]]
    for key in different:
        if key in FIXED:
            raise UserError(
                f"{path} was trained with {key}={there[key]}, and here it is {here[key]}: resume with the settings it"
                " was trained with, or start anew with training.resume=false"
            )
    epoch, batches = position(content)
    if epoch + (batches > 0) > config.training.num_epochs:
        done = f"{epoch} epochs" + (f" and {batches} steps" if batches else "")
        raise UserError(
            f"{path} has {done} behind it already, more than training.num_epochs={config.training.num_epochs}: give a"
            " larger number"
        )
    steps, most = content["global_step"], config.training.max_steps
    if most is not None and steps > most:
        raise UserError(
            f"{path} has {steps} steps behind it already, more than training.max_steps={most}: give a larger number"
        )
    return [f"{key}={here[key]} (was {there[key]})" for key in different]


def _settings(content: dict[str, Any]) -> dict[str, Any]:
    """By dotted keys; of a checkpoint of the first format, those among the model's arguments."""
    if "run" in content:
        return dict(content["run"]["settings"])
    arguments = content["hyper_parameters"]
    keys = [key for key in (*FIXED, "training.lr", "training.weight_decay") if key.split(".")[1] in arguments]
    return {key: arguments[key.split(".")[1]] for key in keys}


def origin(content: dict[str, Any]) -> dict[str, Any]:
    """What the checkpoint says of the weights that its run began with, for those that come after it."""
    return {key: value for key, value in _settings(content).items() if key == ORIGIN}


def position(content: dict[str, Any]) -> tuple[int, int]:
    """Whole epochs behind a checkpoint, and the steps of the epoch that it was written in (0 at its start)."""
    loop = content["loops"]["fit_loop"]
    epochs = loop["epoch_progress"]["current"]
    is_between_epochs = epochs["processed"] == epochs["ready"]
    return epochs["processed"], 0 if is_between_epochs else loop["epoch_loop.batch_progress"]["current"]["ready"]


def is_finished(content: dict[str, Any], config: Config) -> bool:
    """Whether these settings leave nothing to train."""
    most = config.training.max_steps
    return position(content)[0] >= config.training.num_epochs or (most is not None and content["global_step"] >= most)


def has_same_batches(content: dict[str, Any], config: Config, world_size: int) -> bool:
    """Whether the batches of an epoch are those of the checkpoint's run, so that a run can resume in the middle."""
    here, there = recorded(config), _settings(content)
    same_size = here["data.batch_size"] * world_size == there.get("data.batch_size", 0) * _world_size(content)
    return same_size and all(here[key] == there.get(key) for key in PLAN if key != "data.batch_size")


def _world_size(content: dict[str, Any]) -> int:
    return int(content.get("run", {}).get("world_size", 1))


def rewind_to_epoch_start(content: dict[str, Any]) -> None:
    """Put Lightning's counters where the epoch begins that the checkpoint was written in, or that comes next.

    Lightning's own way to resume between two epochs depends on other settings, counts a step too many or, with
    `max_steps`, skips an epoch. All counters equal is the state of a trainer before an epoch.
    """
    loop = content["loops"]["fit_loop"]
    epoch, _ = position(content)
    batches = loop["epoch_loop.batch_progress"]
    for tracker in loop["epoch_progress"].values():
        _set_all(tracker, epoch)
    _set_all(batches["current"], 0)
    _set_all(batches["total"], batches["total"]["ready"])
    batches["is_last_batch"] = False
    loop["epoch_loop.state_dict"]["_batches_that_stepped"] = content["global_step"]


def mark_validation_as_due(content: dict[str, Any]) -> None:
    """Make Lightning, when it resumes from here, begin with the validation that was not finished."""
    validation = content["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
    _set_all(validation["current"], 0)
    done = validation["total"]["completed"]
    validation["total"] |= {"ready": done + 1, "started": done + 1, "processed": done, "completed": done}


def move_to(content: dict[str, Any], checkpoints: Path) -> None:
    """Tell Lightning that the checkpoints stand in this folder now, wherever they were written.

    Callbacks of the user's own write where they are told to: only the run's own best checkpoint has this name.

    Of a run that resumes in its own folder it would else forget which one is the best; of one that resumes from
    `previous/`, it would take a file that is no longer there for the best, and write none that is no better.
    """
    best = RunFolder(checkpoints.parent).best.name
    for state in content["callbacks"].values():
        if isinstance(state, dict) and Path(state.get("best_model_path", "")).name == best:
            moved = {path: str(checkpoints / Path(path).name) for path in state["best_k_models"]}
            state["dirpath"] = str(checkpoints)
            state["best_k_models"] = {moved[path]: score for path, score in state["best_k_models"].items()}
            for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
                state[key] = str(checkpoints / Path(state[key]).name) if state[key] else ""


def _set_all(tracker: dict[str, int], value: int) -> None:
    tracker.update(dict.fromkeys(tracker, value))


def prepare(
    config: Config, path: Path, content: dict[str, Any], data: "BERT4RecDataModule", trainer: "pl.Trainer"
) -> bool:
    """See whether the checkpoint fits the settings and the data, and print what has changed since.

    Returns:
        Whether the epoch that was interrupted restarts, since its batches differ now.
    """
    from lightning_utilities.core.rank_zero import rank_zero_only

    from ..runs import checkpoint

    say = rank_zero_only(print)
    checkpoint.build(content, path)
    require_state(content, path)
    changed = changes(content, config, path)
    data.load_state_dict(content["BERT4RecDataModule"])
    epoch, batches = position(content)
    rewinds = batches > 0 and not has_same_batches(content, config, trainer.world_size)
    data.start = (epoch, 0 if rewinds else batches)
    say(f"resuming    {path}: epoch {epoch}, step {content['global_step']:,}")
    if changed:
        say(f"changed     {', '.join(changed)}")
    if rewinds:
        say(f"            batch settings changed: epoch {epoch} restarts, its first {batches:,} steps are repeated")
    return rewinds
