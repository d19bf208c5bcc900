"""The prepared data is kept between runs, and made anew whenever it would not be right."""

import errno
import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from src.data import BERT4RecDataModule, cache, loading
from src.data.table import TableOptions
from src.errors import UserError
from tests.data import write_histories

HISTORIES = {"ann": "a b c d e", "cat": "x y", "bob": "b c a", "dan": "d a b d", "zoë": "z"}


@pytest.fixture(autouse=True)
def _small_tables_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "SMALLEST", 0)


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every table that is read from its file."""
    paths: list[Path] = []
    read = loading.read_interactions

    def recorded(path: Path, options: TableOptions, keeps_times: bool = False) -> Any:
        paths.append(path)
        return read(path, options, keeps_times)

    monkeypatch.setattr(loading, "read_interactions", recorded)
    return paths


def observe(data: loading.TrainingData) -> list[Any]:
    arrays = [data.sequences.tokens, data.sequences.offsets]
    ids = [data.item_ids.to_pylist(), data.user_ids.to_pylist()]
    return [*(array.tolist() for array in arrays), *ids, data.counts, data.notes]


def training_data(folder: Path, min_item_interactions: int = 1, **options: Any) -> loading.TrainingData:
    return loading.load_training_data(
        folder / "table.csv", TableOptions(**options), 3, min_item_interactions, folder / "run" / "cache"
    )


def test_a_second_run_reads_no_table_and_sees_the_same(tmp_path: Path, readings: list[Path]) -> None:
    write_histories(tmp_path / "table.csv", HISTORIES)
    without = loading.load_training_data(tmp_path / "table.csv", TableOptions(), 3, 1, None)
    assert not (tmp_path / "run").exists()
    first, second = training_data(tmp_path), training_data(tmp_path)
    assert observe(first) == observe(second) == observe(without)
    assert len(readings) == 2
    (interactions, again) = (
        loading.load_interactions(tmp_path / "table.csv", TableOptions(), tmp_path / "run" / "cache") for _ in range(2)
    )
    assert len(readings) == 2  # training has left them
    assert interactions.user_ids.to_pylist() == again.user_ids.to_pylist() == list(HISTORIES)
    assert (interactions.items.dtype, first.sequences.tokens.dtype) == (np.int32, np.int32)


def test_what_is_kept_is_mapped_and_cannot_be_written_to(tmp_path: Path) -> None:
    """Processes on one machine share the pages."""
    write_histories(tmp_path / "table.csv", HISTORIES)
    tokens = training_data(tmp_path).sequences.tokens
    assert isinstance(tokens.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 7


@pytest.mark.parametrize(
    "change", [{"deduplicate": True}, {"time": False}, {"on_bad_rows": "drop"}, {"min_item_interactions": 2}]
)
def test_other_settings_are_kept_apart(change: dict[str, Any], tmp_path: Path) -> None:
    write_histories(tmp_path / "table.csv", {"ann": "a a b c", "bob": "b c c d", "dan": "d a b"})
    usual = observe(training_data(tmp_path))
    cached = observe(training_data(tmp_path, **change))
    min_item = change.get("min_item_interactions", 1)
    options = {key: value for key, value in change.items() if key != "min_item_interactions"}
    without = loading.load_training_data(tmp_path / "table.csv", TableOptions(**options), 3, min_item, None)
    assert cached == observe(without)
    assert observe(training_data(tmp_path)) == usual


def test_a_changed_table_replaces_its_copy(tmp_path: Path, readings: list[Path]) -> None:
    write_histories(tmp_path / "table.csv", HISTORIES)
    old = training_data(tmp_path)
    tokens = old.sequences.tokens.tolist()
    entries = sorted(path.name for path in (tmp_path / "run" / "cache").iterdir())
    write_histories(tmp_path / "table.csv", {**HISTORIES, "eve": "e d c b a"})
    new = training_data(tmp_path)
    assert len(readings) == 2
    assert (old.counts["rows"], new.counts["rows"]) == (15, 20)
    assert old.sequences.tokens.tolist() == tokens  # whoever has it mapped keeps it
    assert sorted(path.name for path in (tmp_path / "run" / "cache").iterdir()) == entries


def test_a_table_of_the_same_size_at_another_time_is_another_one(tmp_path: Path, readings: list[Path]) -> None:
    write_histories(tmp_path / "table.csv", {"ann": "a b c"})
    training_data(tmp_path)
    write_histories(tmp_path / "table.csv", {"ann": "c b a"})
    os.utime(tmp_path / "table.csv", (1, 1))
    assert training_data(tmp_path).item_ids.to_pylist() == ["c", "b", "a"]
    assert len(readings) == 2


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [cut_short, flip, Path.unlink, lambda file: file.write_bytes(b"")])
@pytest.mark.parametrize("name", ["tokens.npy", "offsets.npy", "item_ids.arrow", "meta.json"])
def test_a_damaged_copy_is_made_anew(damage: Callable[[Path], None], name: str, tmp_path: Path) -> None:
    write_histories(tmp_path / "table.csv", HISTORIES)
    usual = observe(training_data(tmp_path))
    (file,) = (tmp_path / "run" / "cache").glob(f"training-*/{name}")
    before = file.read_bytes()
    damage(file)
    assert observe(training_data(tmp_path)) == usual
    assert file.read_bytes() == before


def test_a_copy_of_another_version_is_not_taken(tmp_path: Path, readings: list[Path], monkeypatch: Any) -> None:
    write_histories(tmp_path / "table.csv", HISTORIES)
    training_data(tmp_path)
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    training_data(tmp_path)
    assert len(readings) == 2


def test_a_meta_file_of_something_else(tmp_path: Path) -> None:
    write_histories(tmp_path / "table.csv", HISTORIES)
    usual = observe(training_data(tmp_path))
    for content in ("[]", "{}", json.dumps({"key": None}), "\xff"):
        for file in (tmp_path / "run" / "cache").glob("*/meta.json"):
            file.write_text(content, encoding="latin-1")
        assert observe(training_data(tmp_path)) == usual


def test_small_tables_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "SMALLEST", 10_000)
    write_histories(tmp_path / "table.csv", HISTORIES)
    training_data(tmp_path)
    assert not (tmp_path / "run").exists()


def test_without_room_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    write_histories(tmp_path / "table.csv", HISTORIES)
    usual = observe(loading.load_training_data(tmp_path / "table.csv", TableOptions(), 3, 1, None))

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "save", full)
    assert observe(training_data(tmp_path)) == usual
    assert f"no cache of the prepared data in {tmp_path / 'run' / 'cache'}: No space left" in capsys.readouterr().out
    assert not list((tmp_path / "run" / "cache").glob("*.part"))


def test_where_there_can_be_no_folder(tmp_path: Path, capsys: Any) -> None:
    write_histories(tmp_path / "table.csv", HISTORIES)
    (tmp_path / "run").write_text("a file\n")
    assert training_data(tmp_path).counts["rows"] == 15
    assert "warning: no cache of the prepared data" in capsys.readouterr().out


def test_a_table_that_cannot_be_used_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("user,item\na,\n")
    with pytest.raises(UserError, match="has no item in data row 1"):
        training_data(tmp_path)
    assert not [path for path in (tmp_path / "run" / "cache").iterdir() if path.is_dir()]


def prepare(folder: Path, results: Any) -> None:
    cache.SMALLEST = 0
    count = 0
    read = loading.read_interactions

    def counted(path: Path, options: TableOptions, keeps_times: bool = False) -> Any:
        nonlocal count
        count += 1
        return read(path, options, keeps_times)

    loading.read_interactions = counted
    tokens = observe(training_data(folder))[0]
    results.put((count, tokens))


def test_processes_that_start_together_read_the_table_once(tmp_path: Path) -> None:
    write_histories(tmp_path / "table.csv", HISTORIES)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=prepare, args=(tmp_path, results)) for _ in range(3)]
    for process in processes:
        process.start()
    outcomes = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(count for count, _ in outcomes) == [0, 0, 1]
    assert outcomes[0][1] == outcomes[1][1] == outcomes[2][1]


def test_the_data_module_keeps_it_where_it_is_told(tmp_path: Path, readings: list[Path]) -> None:
    write_histories(tmp_path / "table.csv", HISTORIES)
    summaries = []
    for _ in range(2):
        data = BERT4RecDataModule(str(tmp_path), "table.csv", cache_dir=tmp_path / "kept")
        data.setup()
        summaries.append((data.summary, data.vocabulary.state_dict(), data.notes))
    assert summaries[0] == summaries[1]
    assert len(readings) == 1
    assert {path.name.split("-")[0] for path in (tmp_path / "kept").iterdir()} == {"interactions", "training"}


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_table_that_changes_between_two_epochs_changes_no_batch(is_kept: bool, tmp_path: Path) -> None:
    write_histories(tmp_path / "table.csv", HISTORIES)
    cache_dir = tmp_path / "kept" if is_kept else None

    def prepare_anew() -> BERT4RecDataModule:
        data = BERT4RecDataModule(str(tmp_path), "table.csv", cache_dir=cache_dir)
        data.setup()
        return data

    def batches(data: BERT4RecDataModule) -> list[list[Any]]:
        loaders = (data.train_dataloader(), data.val_dataloader())
        return [batch.inputs.tolist() for loader in loaders for batch in loader]

    data = prepare_anew()
    first = batches(data)
    write_histories(tmp_path / "table.csv", {"ann": "z y x w v u t", "eve": "z z z z"})
    assert batches(prepare_anew()) != first  # which also puts another copy in the place of the first
    assert batches(data) == first
    (tmp_path / "table.csv").unlink()
    assert batches(data) == first


def test_ids_keep_their_letters(tmp_path: Path) -> None:
    ids = ["007", "이용자", "🎬", "\u00e9", "e\u0301"]
    write_histories(tmp_path / "table.csv", {"ann": " ".join(ids)})
    training_data(tmp_path)
    assert training_data(tmp_path).item_ids.to_pylist() == ids
