"""Which logger writes what, and what TensorBoard gets at the end."""

from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from src.batch import TrainBatch
from src.data.titles import Titles
from src.data.vocabulary import Vocabulary
from src.errors import UserError
from src.models import BERT4Rec
from src.runs.folder import RunFolder
from src.training import logs

SETTINGS = {"training.lr": "0.01", "model.max_len": "7"}


def trainer_with(loggers: list, step: int = 5) -> mock.Mock:
    return mock.Mock(spec=pl.Trainer, loggers=loggers, global_step=step)


def log_end(folder: RunFolder, most: int = 3) -> None:
    model = BERT4Rec(4, hidden_units=6, num_heads=2, num_layers=1, max_len=7)
    with torch.no_grad():
        model.network.item_embedding.weight.copy_(torch.arange(36.0).view(6, 6))
    vocabulary = Vocabulary(pa.array(["a", "b", "c", "d"]), np.array([1, 5, 3, 4]))
    with mock.patch.object(logs, "EMBEDDED_ITEMS", most):
        trainer = trainer_with(logs.loggers(["tensorboard", "csv"], folder))
        logs.log_end(trainer, SETTINGS, {"test_mrr": 0.25}, model, vocabulary, Titles({"d": "De\tDe", "b": "Bee"}))


def test_names_become_lightnings_loggers_below_the_folder(tmp_path: Path) -> None:
    board, table = logs.loggers(["tensorboard", "csv", "csv"], RunFolder(tmp_path))
    assert isinstance(board, TensorBoardLogger)
    assert Path(board.log_dir) == tmp_path / "logs"
    assert isinstance(table, CSVLogger)
    assert Path(table.log_dir) == tmp_path / "logs" / "csv" / "version_0"
    assert logs.loggers([], RunFolder(tmp_path)) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "flag"), [("mlflow", "mlflow._MLFLOW_AVAILABLE"), ("wandb", "wandb._WANDB_AVAILABLE")]
)
def test_a_logger_that_is_not_installed_is_one_line(name: str, flag: str, tmp_path: Path) -> None:
    with mock.patch(f"pytorch_lightning.loggers.{flag}", False), pytest.raises(UserError) as caught:
        logs.loggers([name], RunFolder(tmp_path))
    assert f"training.logger={name}" in str(caught.value)
    assert f"pip install -e '.[{name}]'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_mlflow_gets_settings_and_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "")  # so that it is put back
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE")
    (logger,) = logs.loggers(["mlflow"], RunFolder(tmp_path / "run a"))
    logs.log_settings(trainer_with([logger]), SETTINGS)
    logger.log_metrics({"train_loss": 2.5}, step=3)
    (run,) = tracking.MlflowClient(f"file:{tmp_path / 'mlruns'}").search_runs([logger.experiment_id])
    assert run.info.run_name == "run a"
    assert run.data.params == SETTINGS
    assert run.data.metrics == {"train_loss": 2.5}


def test_a_logger_that_cannot_start_is_an_error_before_training() -> None:
    logger = mock.Mock(spec=CSVLogger)
    logger.log_hyperparams.side_effect = RuntimeError("no api key")
    with pytest.raises(UserError, match=r"cannot start: no api key; .*training\.logger"):
        logs.log_settings(trainer_with([logger]), SETTINGS)


def test_wandb_writes_offline_below_the_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    with mock.patch("wandb.init") as init:
        (logger,) = logs.loggers(["wandb"], RunFolder(tmp_path / "run a"))
        logs.log_settings(trainer_with([logger]), SETTINGS)
    assert init.call_args.kwargs["project"] == "bert4rec"
    assert init.call_args.kwargs["name"] == "run a"
    assert init.call_args.kwargs["dir"] == str(tmp_path / "run a" / "logs")
    assert init.return_value.config.update.call_args.args[0] == SETTINGS


def test_csv_has_the_settings_from_the_start_and_each_resumption_a_file_of_its_own(tmp_path: Path) -> None:
    for version in range(2):
        (logger,) = logs.loggers(["csv"], RunFolder(tmp_path))
        logs.log_settings(trainer_with([logger]), SETTINGS)
        logger.log_metrics({"train_loss": float(version)}, step=3)
        logger.save()
        place = tmp_path / "logs" / "csv" / f"version_{version}"
        assert (place / "metrics.csv").read_text().split() == ["step,train_loss", f"3,{float(version)}"]
        assert "training.lr: '0.01'" in (place / "hparams.yaml").read_text()
    assert (tmp_path / "logs" / "csv" / "version_0" / "metrics.csv").is_file()


def test_tensorboard_gets_settings_beside_final_figures(tmp_path: Path) -> None:
    log_end(RunFolder(tmp_path))
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    assert events.Scalars("final/test_mrr")[0].value == 0.25
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    session = HParamsPluginData.FromString(content).session_start_info
    assert {key: value.string_value for key, value in session.hparams.items()} == SETTINGS
    assert metadata.PLUGIN_NAME == "hparams"


def test_the_projector_gets_the_most_popular_items_with_their_titles(tmp_path: Path) -> None:
    log_end(RunFolder(tmp_path))
    (config,) = tmp_path.rglob("projector_config.pbtxt")
    assert config.parent == tmp_path / "logs"
    (table,) = tmp_path.rglob("metadata.tsv")
    assert table.read_text().splitlines() == [
        "item\ttitle\ttraining interactions",
        "b\tBee\t5",
        "d\tDe De\t4",
        "c\tc\t3",
    ]
    (tensors,) = tmp_path.rglob("tensors.tsv")
    assert [float(line.split("\t")[0]) for line in tensors.read_text().splitlines()] == [12.0, 24.0, 18.0]
    assert str(tensors.relative_to(tmp_path / "logs")) in config.read_text()


def test_throughput_counts_training_sequences_and_training_time_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(logs.time, "perf_counter", lambda: now)
    logger = mock.Mock()
    callback, module, trainer = logs.Throughput(), mock.Mock(), mock.Mock(world_size=2, loggers=[logger])
    trainer.global_step = 5
    batch = TrainBatch(torch.zeros(12, 3), torch.zeros(0), torch.zeros(0), None, 12)
    for _ in range(2):
        callback.on_train_epoch_start(trainer, module)
        for _ in range(3):
            now += 1.0
            callback.on_train_batch_end(trainer, module, None, batch, 0)
        callback.on_validation_start(trainer, module)
        now += 50.0
        callback.on_validation_end(trainer, module)
        now += 1.0
        callback.on_train_epoch_end(trainer, module)
        logger.log_metrics.assert_called_once_with({"sequences_per_second": 3 * 12 * 2 / 4.0}, step=4)
        logger.reset_mock()
