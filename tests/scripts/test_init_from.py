"""`training.init_from` through the script: a later table continues from the weights of an earlier run."""

import json
from pathlib import Path

import pytest
import torch

from src.prediction.predict import predict
from src.training.train import train
from tests.scripts.conftest import (
    ITEMS,
    TINY,
    Run,
    Table,
    call,
    checkpoint,
    files_below,
    make_rows,
    same_weights,
    train_here,
    write_table,
)

ONE_EPOCH = "training.num_epochs=1"
# So small that the weights after an epoch are those that it began with, but for rounding.
ALMOST_NOTHING = "training.lr=1e-9"
GONE = ITEMS[3]


@pytest.fixture(scope="module")
def later(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """The table some time later: an item is gone, two are new, one of them in the middle of histories."""
    rows = [row for row in make_rows() if row[1] != GONE]
    rows += [(f"u{n}", "new one", 1003) for n in range(20)]
    rows += [(f"guest {n}", item, n) for n in range(3) for item in ("new two",) * 3]
    return write_table(tmp_path_factory.mktemp("later") / "ratings.csv", rows)


def embeddings(path: Path) -> dict[str, torch.Tensor]:
    """Item id -> its row, and [MASK]'s."""
    content = checkpoint(path)
    rows = content["state_dict"]["network.item_embedding.weight"]
    ids = content["BERT4RecDataModule"]["vocabulary"]["ids"]
    return dict(zip([*ids, "[MASK]"], rows[1:], strict=True))


def neighbours(table: Table, item: str) -> list[str]:
    """What stands right beside an item in the histories without their last two items."""
    found = []
    for history in table.histories.values():
        trains = history[:-2] if len(history) > 2 else []
        for place in (place for place, each in enumerate(trains) if each == item):
            found += trains[max(0, place - 1) : place] + trains[place + 1 : place + 2]
    return found


@pytest.mark.parametrize("which", ["last", "best"])
def test_a_later_table_begins_with_what_is_known(which: str, later: Table, trained: Run, tmp_path: Path) -> None:
    source = getattr(trained, which)
    words = (f"training.init_from={source}", "model.max_len=8", ONE_EPOCH, ALMOST_NOTHING)
    run = train_here(later, tmp_path / "run", *words)
    was, now = embeddings(source), embeddings(run.last)
    known = was.keys() & now.keys()
    assert (was.keys() - known, now.keys() - known) == ({GONE}, {"new one", "new two"})
    for name in known:
        torch.testing.assert_close(now[name], was[name], rtol=0, atol=1e-6)
    mean = torch.stack([was[name] for name in neighbours(later, "new one")]).mean(0)
    torch.testing.assert_close(now["new one"], mean, rtol=0, atol=1e-6)
    assert 0 < now["new two"].abs().max() < 0.2  # N(0, 0.02)
    taken = f"{len(known) - 1} of {len(known) + 1} items, 6 of 8 positions and 1 blocks taken over, 1 items dropped"
    assert f"init_from   {source}: {taken}\n" in run.out
    assert "new items   1 start from the mean of their neighbours, 1 at random\n" in run.out
    content = checkpoint(run.last)
    steps = checkpoint(source)["global_step"]
    assert content["epoch"] == 0
    assert content["run"]["settings"]["training.init_from"] == f"{which}.ckpt, {len(was) - 1} items, step {steps}"
    assert json.loads((run.folder / "metrics.json").read_text())["settings"]["training"]["init_from"] == str(source)
    outcome = call(predict, *later.overrides, f"output_dir={run.folder}", *TINY, "inference.exclude_seen=false")
    assert (outcome.code, outcome.err) == (0, "")
    assert "guest 2" in (run.folder / "predictions.csv").read_text()


def test_a_run_continues_from_what_makes_room_for_it(later: Table, table: Table, tmp_path: Path) -> None:
    earlier = train_here(table, tmp_path / "run", ONE_EPOCH)
    elsewhere = earlier.last.read_bytes()
    init = f"training.init_from={earlier.best}"
    run = train_here(later, tmp_path / "run", init, ONE_EPOCH)
    [archived] = (tmp_path / "run" / "previous").glob("*/checkpoints/last.ckpt")
    assert archived.read_bytes() == elsewhere
    assert "new items   1 start" in run.out
    # Resumed, it keeps its own weights and where they came from, though best.ckpt has other ones by now.
    resumed = train_here(later, tmp_path / "run", init, "training.resume=true", "training.num_epochs=2")
    assert "init_from   " not in resumed.out
    assert "changed     training.num_epochs=2 (was 1)\n" in resumed.out
    assert checkpoint(run.last)["run"]["settings"]["training.init_from"].startswith("best.ckpt, 17 items")
    anew = train_here(
        later, tmp_path / "two", f"training.init_from={archived.with_name('best.ckpt')}", "training.num_epochs=2"
    )
    assert same_weights(run.last, anew.last)
    # By `auto` a run that is there wins, even if the file to begin with is not there any more.
    init = "training.init_from=no/such.ckpt"
    again = train_here(later, tmp_path / "two", init, "training.resume=auto", "training.num_epochs=2")
    assert "init_from   " not in again.out


def refused(table: Table, folder: Path, *words: str) -> str:
    """The line that ends a run, which leaves everything as it was."""
    before = files_below(folder)
    outcome = call(train, *table.overrides, f"output_dir={folder}", *TINY, *words)
    assert outcome.code == 1
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert files_below(folder) == before
    return outcome.err


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        (
            "model.hidden_units=16",
            ["was trained with model.hidden_units=8, and here it is hidden_units=16: use the same"],
        ),
        ("model.num_heads=4", ["trained with model.num_heads=2"]),
        ("model.num_layers=2", ["trained with model.num_layers=1"]),
        ("model.output_bias=true", ["trained with model.output_bias=false"]),
        ("experiment=auto model.hidden_units=16 model.num_heads=4", ["model.hidden_units=8 model.num_heads=2, and"]),
    ],
)
def test_other_sizes_are_refused_before_anything_moves(
    word: str, parts: list[str], table: Table, trained: Run, tmp_path: Path
) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "last.ckpt").write_text("of an earlier run")
    error = refused(table, tmp_path / "run", f"training.init_from={trained.last}", *word.split())
    assert [part for part in parts if part not in error] == []


def test_another_catalogue_and_another_file_are_refused(trained: Run, table: Table, tmp_path: Path) -> None:
    other = write_table(tmp_path / "other.csv", [(user, f"{item} ", time) for user, item, time in table.rows])
    error = refused(other, tmp_path / "run", f"training.init_from={trained.last}")
    assert "knows none of the 17 items of" in error
    assert "known in another form" in error
    assert "no checkpoint" in refused(table, tmp_path / "run", f"training.init_from={table.path}")
    assert "there is no checkpoint" in refused(table, tmp_path / "run", f"training.init_from={tmp_path}/x.ckpt")
