"""Training from Python: a frame in memory as the table, and settings as a dictionary."""

import json
import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
import numpy as np
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pytorch_lightning.utilities.seed import isolate_rng

from ..command_line import cli
from ..data.readers.frames import as_frame
from ..errors import UserError
from ..kernels import compiler
from ..runs.folder import RunFolder
from ..settings import CONFIGS, Config, known_keys, parse
from ..settings.keys import misfit, unknown_key_message, value_text
from .callbacks import STOP_SIGNALS
from .train import fit_and_evaluate

# What names another table than the frame.
OTHER_TABLES = ("data.data_file", "data.download", "data.download_url", "data.generate_sample")


def fit(frame: Any, preset: str | None, settings: Mapping[str, Any]) -> tuple[Path, dict[str, float]]:
    """Train on a frame as `train_bert4rec.py experiment=PRESET KEY=VALUE ...` trains on a table, on one device.

    Returns:
        The checkpoint, best.ckpt if there is one, and its figures by name, such as `test_ndcg@10`.

    Raises:
        UserError: as the script has it.
    """
    table = as_frame(frame)
    config = compose(preset, settings)
    folder = RunFolder.at(config.output_dir)
    with _nothing_left_behind(), folder.locked():
        fit_and_evaluate(config, table, settings)
    chosen = folder.best if folder.best.exists() else folder.last
    figures = json.loads(folder.metrics.read_text(encoding="utf-8"))["figures"]
    return chosen, {key: value for rows in figures.values() for key, value in rows[f"BERT4Rec ({chosen.name})"].items()}


def compose(preset: str | None, settings: Mapping[str, Any]) -> Config:
    """The settings of a preset with other values, for a frame in the place of the table."""
    before = Singleton.get_state()
    try:
        GlobalHydra.instance().clear()  # of a program that uses Hydra itself
        hydra.initialize_config_dir(str(CONFIGS), version_base="1.3")
        composed = hydra.compose("bert4rec", [] if preset is None else [f"experiment={preset}"])
    except HydraException as error:
        raise UserError(cli.one_line(error)) from error
    finally:
        Singleton.set_state(before)
    values = {"data.generate_sample": False, "training.devices": 1, **settings}
    for key, value in values.items():
        if key not in known_keys():
            raise UserError(unknown_key_message(key))
        if key in OTHER_TABLES and value:
            raise UserError(f"{key}={value_text(value)} is not possible: the frame is the table")
        try:
            OmegaConf.update(composed, key, _plain(value))
        except OmegaConfBaseException as error:
            raise UserError(misfit(key, value)) from error
    config = parse(composed)
    devices = config.training.devices
    if config.training.num_nodes > 1 or not (devices == 1 or (isinstance(devices, list) and len(devices) == 1)):
        raise UserError(
            f"training.devices={value_text(devices)} with training.num_nodes={config.training.num_nodes} is not"
            " possible from Python: train on several devices with train_bert4rec.py"
        )
    return config


def _plain(value: Any) -> Any:
    """A value as YAML could hold it, of one that Python has in another type."""
    if isinstance(value, np.generic):
        return value.item()
    return str(value) if isinstance(value, Path) else value


@contextmanager
def _nothing_left_behind() -> Iterator[None]:
    """Undo what a script may do for good: seeds, variables, loggers, warnings, and signals that Lightning ignores."""
    variables = {name: os.environ.get(name) for name in (compiler.SWITCH, "PL_GLOBAL_SEED", "PL_SEED_WORKERS")}
    levels = {name: logging.getLogger(name).level for name in ("pytorch_lightning", "tensorboard")}
    is_main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS} if is_main else {}
    try:
        with isolate_rng(), warnings.catch_warnings():
            yield
    except SystemExit as stop:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt from stop
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        for name, value in variables.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
