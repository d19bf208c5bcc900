"""From a file to the batches that Lightning is given."""

import inspect
from collections.abc import Iterable
from dataclasses import fields
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from src.batch import EvalBatch, TrainBatch
from src.data import BERT4RecDataModule, cache, sample
from src.data.table import TableOptions
from src.errors import UserError
from src.settings.schema import DataConfig
from tests.data import write_histories

# Five items in the vocabulary, a to e as 1 to 5; cat and eve are too short, dan's last item is a repeat.
HISTORIES = {"ann": "a b c d e", "cat": "x y", "bob": "b c a", "dan": "d a b d", "eve": "z"}
MASK = 6


def data_module(folder: Path, histories: dict[str, str] = HISTORIES, **settings: Any) -> BERT4RecDataModule:
    write_histories(folder / "table.csv", histories)
    data = BERT4RecDataModule(**{"data_dir": str(folder), "data_file": "table.csv", **settings})
    data.prepare_data()
    data.setup()
    return data


def process(data: BERT4RecDataModule, rank: int, world_size: int, device: str = "cpu") -> BERT4RecDataModule:
    """As if a trainer had started the data module in this process, on this device."""
    strategy = SimpleNamespace(root_device=torch.device(device))
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, strategy=strategy)
    return data


def original_sequences(steps: Iterable[TrainBatch]) -> list[list[int]]:
    """Sequences before masking, in a fixed order."""
    sequences = []
    for batch in steps:
        restored = batch.inputs.clone()
        restored.view(-1)[batch.places] = batch.targets
        sequences += [[token for token in row if token] for row in restored.tolist()]
    return sorted(sequences)


def plain(batches: Any) -> Any:
    """Batches with lists in the place of tensors."""
    if isinstance(batches, torch.Tensor):
        return batches.tolist()
    return batches if batches is None or isinstance(batches, int) else [plain(part) for part in batches]


def evaluated(batches: Iterable[EvalBatch]) -> list[tuple[int, list[int], int]]:
    """Row, input without padding, and target of every evaluated user."""
    return [
        (user, [token for token in row if token], target)
        for batch in batches
        for user, row, target in zip(*(t.tolist() for t in (batch.users, batch.inputs, batch.targets)), strict=True)
    ]


def test_summary_of_a_small_table(tmp_path: Path) -> None:
    data = data_module(tmp_path)
    assert data.num_items == 5
    assert data.vocabulary.ids.to_pylist() == list("abcde")
    assert data.vocabulary.counts.tolist() == [2, 2, 1, 1, 0]  # of ann a b c, bob b, dan d a
    assert data.summary == {
        "split": "leave_one_out: the last item tests, the one before validates",
        "rows": 15,
        "users": 5,
        "items": 8,
        "has_time": 0,
        "short_users": 2,
        "short_users_rows": 3,
        "train_users": 3,
        "train_items": 5,
        "train_rows": 6,
        "longest_history": 5,
        "evaluated_users": 3,
        "repeated_targets": 1,
    }


def test_holdout_2_validates_and_tests(tmp_path: Path) -> None:
    data = data_module(tmp_path, holdout=2)
    assert original_sequences(data.train_dataloader()) == [[1, 2, 3], [2], [4, 1]]
    assert sorted(evaluated(data.val_dataloader())) == [
        (0, [1, 2, 3, MASK], 4),
        (1, [2, MASK], 3),
        (2, [4, 1, MASK], 2),
    ]
    assert sorted(evaluated(data.test_dataloader())) == [
        (0, [1, 2, 3, 4, MASK], 5),
        (1, [2, 3, MASK], 1),
        (2, [4, 1, 2, MASK], 4),
    ]


def test_holdout_1_validates_on_the_last_item(tmp_path: Path) -> None:
    data = data_module(tmp_path, holdout=1)
    assert original_sequences(data.train_dataloader()) == [[1, 2, 3, 4], [2, 3], [4, 1, 2]]
    assert sorted(evaluated(data.val_dataloader())) == [
        (0, [1, 2, 3, 4, MASK], 5),
        (1, [2, 3, MASK], 1),
        (2, [4, 1, 2, MASK], 4),
    ]
    assert data.test_dataloader() == []
    assert (data.summary["train_rows"], data.summary["evaluated_users"]) == (9, 3)


def test_holdout_0_trains_on_everything(tmp_path: Path) -> None:
    data = data_module(tmp_path, holdout=0)
    assert original_sequences(data.train_dataloader()) == [[1, 2, 3, 4, 5], [2, 3, 1], [4, 1, 2, 4]]
    assert data.val_dataloader() == data.test_dataloader() == []
    assert data.summary["train_rows"] == 12
    assert "evaluated_users" not in data.summary


def test_a_user_too_short_to_evaluate_still_trains(tmp_path: Path) -> None:
    data = data_module(tmp_path, {"ann": "a b c", "bob": "b a", "eve": "c"}, min_interactions=1)
    assert original_sequences(data.train_dataloader()) == [[1], [2, 1], [3]]
    assert sorted(evaluated(data.test_dataloader())) == [(0, [1, 2, 4], 3)]


def test_a_target_seen_before_counts_once_however_often_it_was_seen(tmp_path: Path) -> None:
    data = data_module(tmp_path, {"ann": "a b a a", "bob": "b a a", "dan": "a c b d"})
    assert data.summary["repeated_targets"] == 2


def test_long_histories_and_windows(tmp_path: Path) -> None:
    histories = {"ann": "a b c d e f g", "bob": "b a"}
    data = data_module(tmp_path, histories, holdout=0, min_interactions=1, max_len=4)
    assert original_sequences(data.train_dataloader()) == [[2, 1], [4, 5, 6, 7]]
    data = data_module(tmp_path, histories, holdout=0, min_interactions=1, max_len=4, window_stride=2)
    assert original_sequences(data.train_dataloader()) == [[1, 2, 3, 4], [2, 1], [2, 3, 4, 5], [4, 5, 6, 7]]


def test_the_time_column_counts(tmp_path: Path) -> None:
    (tmp_path / "timed.csv").write_text("user,item,time\nann,a,3\nann,b,1\nann,c,2\n")
    data = data_module(tmp_path, data_file="timed.csv", holdout=0)
    assert original_sequences(data.train_dataloader()) == [[2, 3, 1]]
    assert data.summary["has_time"] == 1


@pytest.mark.parametrize("filter_seen", [True, False])
def test_filter_seen(tmp_path: Path, filter_seen: bool) -> None:
    data = data_module(tmp_path, filter_seen=filter_seen)
    (batch,) = data.test_dataloader()
    seen = sorted(zip(batch.users[batch.seen_rows].tolist(), batch.seen_items.tolist(), strict=True))
    assert seen == [(0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (1, 3), (2, 1), (2, 2), (2, 4)] * filter_seen


def test_evaluation_batches_are_of_similar_length(tmp_path: Path) -> None:
    histories = {f"u{row}": "a b c d e f g h i j k l"[: 5 + 2 * (row * 7 % 10)] for row in range(10)}
    data = data_module(tmp_path, histories, eval_batch_size=2)
    assert [batch.inputs.shape[1] for batch in data.test_dataloader()] == [4, 6, 8, 10, 12]


def test_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "folder").mkdir()
    write_histories(tmp_path / "folder" / "table.csv", HISTORIES)
    data = BERT4RecDataModule(data_dir="~/folder", data_file="table.csv")
    data.setup()
    assert data.num_items == 5


def test_setup_for_each_stage_reads_once(tmp_path: Path) -> None:
    data = data_module(tmp_path)
    (tmp_path / "table.csv").unlink()
    data.setup("fit")
    data.setup("test")
    assert data.num_items == 5


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_together_evaluate_each_user_once(tmp_path: Path, world_size: int) -> None:
    histories = {f"u{row}": "a b c d e"[: 5 + 2 * (row % 3)] for row in range(7)}
    data = data_module(tmp_path, histories, eval_batch_size=2, batch_size=1)
    shares = [[*evaluated(process(data, rank, world_size).test_dataloader())] for rank in range(world_size)]
    assert sorted(user for share in shares for user, _, _ in share) == list(range(7))
    steps = {len(list(process(data, rank, world_size).train_dataloader())) for rank in range(world_size)}
    assert steps == {-(-7 // world_size)}


@pytest.mark.filterwarnings("ignore:.*configure_optimizers. returned .None", "ignore:.*no .validation_step")
def test_every_epoch_of_a_trainer_has_every_user_once_and_masks_of_its_own(tmp_path: Path) -> None:
    class Recorder(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.epochs: list[list[TrainBatch]] = [[], [], []]

        def training_step(self, batch: TrainBatch, batch_idx: int) -> None:
            self.epochs[self.current_epoch].append(batch)

        def configure_optimizers(self) -> None:
            return None

    def record() -> list[list[TrainBatch]]:
        recorder = Recorder()
        histories = {f"u{row}": "a b c d e f g h" for row in range(6)}
        histories["u6"] = "b c d e"
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=3,
            default_root_dir=tmp_path,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(recorder, data_module(tmp_path, histories, batch_size=3, holdout=0, seed=5))
        return recorder.epochs

    epochs = record()
    assert [original_sequences(steps) for steps in epochs] == [[[1, 2, 3, 4, 5, 6, 7, 8]] * 6 + [[2, 3, 4, 5]]] * 3
    inputs = [sorted(row for batch in steps for row in batch.inputs.tolist()) for steps in epochs]
    assert inputs[0] != inputs[1] != inputs[2] != inputs[0]
    assert plain(record()) == plain(epochs)


# For each argument, a value other than that of `settings` in the test below.
CHANGES: dict[str, Any] = {
    "data_dir": "other",
    "data_file": "other.csv",
    "batch_size": 3,
    "min_interactions": 4,
    "min_item_interactions": 9,
    "table_options": TableOptions(deduplicate=True),
    "num_workers": 1,
    "max_len": 3,
    "mask_prob": 0.9,
    "mask_token_share": 0.1,
    "random_token_share": 0.5,
    "mask_last_share": 0.9,
    "holdout": 1,
    "window_stride": 1,
    "filter_seen": False,
    "eval_batch_size": 3,
    "num_negatives": 4,
    "negative_power": 0.9,
    "on_device": True,
    "seed": 43,
}


def observe(data: BERT4RecDataModule) -> list[Any]:
    """All that a trainer can see of a data module; its workers on a device whose batches are made on the CPU."""
    loaders = [data.train_dataloader(), data.val_dataloader(), data.test_dataloader()]
    batches = [plain(loader) for loader in loaders]
    device = "cpu" if data.on_device is True else "mps"
    return [data.summary, data.state_dict(), batches, process(data, 0, 1, device).train_dataloader().num_workers]


def test_every_argument_matters(tmp_path: Path) -> None:
    other = {"ann": "a b c d e", "bob": "b c a", "dan": "d a b c"}
    (tmp_path / "other").mkdir()
    write_histories(tmp_path / "other" / "table.csv", other)
    write_histories(tmp_path / "other.csv", other)
    histories = {f"u{row}": "a b c d e f g h i j"[: 5 + 2 * row] for row in range(8)} | {"u8": "a b c c d"}
    settings = {"batch_size": 2, "num_workers": 2, "max_len": 6, "mask_prob": 0.4, "eval_batch_size": 2, "seed": 42}
    settings |= {"mask_token_share": 0.5, "random_token_share": 0.2, "mask_last_share": 0.1}
    settings |= {"num_negatives": 3, "negative_power": 0.0}
    usual = observe(data_module(tmp_path, histories, **settings))
    assert observe(data_module(tmp_path, histories, **settings)) == usual
    for name, value in CHANGES.items():
        value = str(tmp_path / value) if name == "data_dir" else value
        data = BERT4RecDataModule(
            **{"data_dir": str(tmp_path), "data_file": "table.csv", **settings, name: value},
        )
        data.setup()
        assert observe(data) != usual, f"{name} changes nothing"


def test_no_argument_is_left_out_of_the_tests() -> None:
    arguments = set(inspect.signature(BERT4RecDataModule).parameters)
    assert arguments == {
        *CHANGES,
        "split",
        "frame",
        "generate_sample",
        "download",
        "download_url",
        "cache_dir",
    }  # with tests of their own
    split = {"split_at", "split_targets", "validation_file", "test_file"}  # of `SplitOptions`
    options = {"columns", *(field.name for field in fields(TableOptions))}
    assert {field.name for field in fields(DataConfig)} - options - {"cache", "items_file"} <= arguments | split


def test_generate_sample_writes_the_table_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "USERS", 30)
    without = BERT4RecDataModule(str(tmp_path), "sample.csv")
    without.prepare_data()
    assert list(tmp_path.iterdir()) == []
    data = BERT4RecDataModule(str(tmp_path), "sample.csv", generate_sample=True)
    data.prepare_data()
    data.setup()
    assert data.summary["users"] == 30


def test_workers_and_pinned_memory_are_for_accelerators(tmp_path: Path) -> None:
    data = data_module(tmp_path, num_workers=2)
    assert data.train_dataloader().num_workers == 0
    assert not data.train_dataloader().pin_memory
    assert process(data, 0, 1, "cpu").val_dataloader().num_workers == 0
    module = process(data, 0, 1, "cuda")
    module.on_device = False
    assert [module.train_dataloader().num_workers, module.val_dataloader().num_workers] == [2, 0]  # see `_options`
    assert module.val_dataloader().pin_memory


def test_small_batches_are_made_some_in_a_row_on_a_cpu_alone(tmp_path: Path) -> None:
    small, large = (data_module(tmp_path, batch_size=size, max_len=50, num_workers=1) for size in (128, 2000))
    assert small.train_dataloader().ahead == 8
    assert large.train_dataloader().ahead == 1  # 100,000 tokens each, of 131,072 at a time
    assert process(small, 0, 1, "mps").train_dataloader().ahead == 1


def test_no_negatives_by_default(tmp_path: Path) -> None:
    assert {step.negatives for step in data_module(tmp_path).train_dataloader()} == {None}


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*none\.csv"):
        BERT4RecDataModule(str(tmp_path), "none.csv").setup()


def test_rare_items_are_left_out_in_turn_with_short_users(tmp_path: Path) -> None:
    histories = {"ann": "a b c", "bob": "b c a d", "dan": "a d e", "eve": "a b c f"}
    data = data_module(tmp_path, histories, min_interactions=3, min_item_interactions=2, holdout=0)
    assert data.vocabulary.ids.to_pylist() == ["a", "b", "c"]  # d is too rare once dan, without e, is too short
    assert original_sequences(data.train_dataloader()) == [[1, 2, 3], [1, 2, 3], [2, 3, 1]]
    assert (data.summary["short_users"], data.summary["short_users_rows"], data.summary["items"]) == (1, 5, 6)
    with pytest.raises(UserError) as caught:
        data_module(tmp_path, histories, min_item_interactions=5)
    assert str(caught.value) == (
        f"{tmp_path / 'table.csv'} has no user with at least data.min_interactions=3 interactions after items with"
        " fewer than data.min_item_interactions=5 are left out: the longest history has 4"
    )


def test_what_reading_had_to_say_is_handed_on(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("userId,movieId\na,x\na,y\na,\na,z\n")
    data = BERT4RecDataModule(str(tmp_path), "table.csv", table_options=TableOptions(on_bad_rows="drop"))
    data.setup()
    assert [note.split()[0] for note in data.notes] == ["columns", "left", "time"]


@pytest.mark.filterwarnings("ignore:.*configure_optimizers. returned .None", "ignore:.*no .validation_step")
@pytest.mark.parametrize("is_cached", [True, False])
def test_a_table_that_changes_between_two_epochs_changes_nothing(
    tmp_path: Path, is_cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "SMALLEST", 0)
    seen: list[list[list[int]]] = []

    class Vandal(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def on_train_epoch_start(self) -> None:
            seen.append([])
            (tmp_path / "table.csv").write_text("user,item\nx,y\n" * self.current_epoch)
            for file in (tmp_path / "kept").glob("*/*"):
                file.unlink()

        def training_step(self, batch: TrainBatch, batch_idx: int) -> None:
            seen[-1] += original_sequences([batch])

        def configure_optimizers(self) -> None:
            return None

    data = data_module(tmp_path, holdout=0, batch_size=2, cache_dir=tmp_path / "kept" if is_cached else None)
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    pl.Trainer(accelerator="cpu", max_epochs=3, enable_model_summary=False, **options).fit(Vandal(), data)
    assert [sorted(epoch) for epoch in seen] == [[[1, 2, 3, 4, 5], [2, 3, 1], [4, 1, 2, 4]]] * 3


def test_a_history_of_many_items_becomes_windows(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("user,item\n" + "".join(f"a,{n}\n" for n in range(100_000)))
    data = BERT4RecDataModule(str(tmp_path), "table.csv", max_len=50, window_stride=50, batch_size=256)
    data.setup()
    spans = data.train_dataloader().dataset.spans
    assert (len(spans), spans.lengths.sum()) == (2000, 100_000)  # the first two overlap
    batch = next(iter(data.train_dataloader()))
    assert batch.inputs.shape[1] == 50
    assert [target for _, _, target in evaluated(data.test_dataloader())] == [100_000]


def test_no_user_is_long_enough(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        data_module(tmp_path, min_interactions=6)
    assert str(caught.value) == (
        f"{tmp_path / 'table.csv'} has no user with at least data.min_interactions=6 interactions:"
        " the longest history has 5"
    )


@pytest.mark.parametrize("holdout", [1, 2])
def test_nobody_can_be_evaluated(tmp_path: Path, holdout: int) -> None:
    with pytest.raises(UserError) as caught:
        data_module(tmp_path, {"ann": "a b"[: 2 * holdout - 1], "bob": "c"}, min_interactions=1, holdout=holdout)
    assert str(caught.value) == (
        f"{tmp_path / 'table.csv'} has no user with more than data.holdout={holdout} interactions, so nothing can"
        " be evaluated: train on everything with data.holdout=0"
    )


def test_state_names_the_items_and_survives_a_checkpoint(tmp_path: Path) -> None:
    data = data_module(tmp_path)
    file = BytesIO()
    torch.save(data.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert state["vocabulary"] == {"ids": list("abcde"), "counts": [2, 2, 1, 1, 0]}
    assert (state["table"]["users"], state["table"]["rows"]) == (
        len(data.sequences.histories),
        len(data.sequences.tokens),
    )
    data.load_state_dict(state)
    assert data.vocabulary.ids.to_pylist() == list("abcde")


@pytest.mark.parametrize(
    ("histories", "difference"),
    [
        ({"u": "a b c d"}, "5 there and 4 here, 'e' is in one of them alone"),
        ({"u": "a b c d e f"}, "5 there and 6 here, 'f' is in one of them alone"),
        ({"u": "b a c d e"}, "5 there and 5 here, they come in another order"),
    ],
)
def test_the_state_of_another_vocabulary_is_refused(tmp_path: Path, histories: dict[str, str], difference: str) -> None:
    state = data_module(tmp_path).state_dict()
    other = data_module(tmp_path, histories)
    before = other.state_dict()
    with pytest.raises(UserError) as caught:
        other.load_state_dict(state)
    assert str(caught.value) == (
        f"the checkpoint was trained on other items than {tmp_path / 'table.csv'} has: {difference}; resume on the file"
        " it was trained on, or start anew with training.resume=false, and from its weights with"
        " training.init_from=FILE"
    )
    assert other.state_dict() == before


def test_the_state_of_other_interactions_with_the_same_items_is_refused(tmp_path: Path) -> None:
    histories = {"u": "a b c d e", "v": "b c e d a", "w": "a b"}
    state = data_module(tmp_path, histories).state_dict()
    for user, other in (("v", "b c d e a"), ("v", "b c e d"), ("x", "a c e")):
        with pytest.raises(UserError, match=r"was trained on other interactions than .*10 of 2 users there and"):
            data_module(tmp_path, histories | {user: other}).load_state_dict(state)
    data_module(tmp_path, histories | {"w": "b"}).load_state_dict(state)  # too short to count before and after
    del state["table"]
    data_module(tmp_path, histories | {"v": "b c d e a"}).load_state_dict(state)  # the first format did not know


def test_batches_go_to_another_device_whole_and_stay_where_they_are_on_a_cpu(tmp_path: Path) -> None:
    data = data_module(tmp_path, num_negatives=2)
    step = next(iter(data.train_dataloader()))
    assert data.transfer_batch_to_device(step, torch.device("cpu"), 0) is step
    moved = data.transfer_batch_to_device(step, torch.device("meta"), 0)
    assert [tensor.device.type for tensor in moved[:3]] == ["meta"] * 3
    assert [tensor.device.type for tensor in moved.negatives] == ["meta"] * 2
