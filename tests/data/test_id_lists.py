"""Lists of users and items: what files are taken, what is read from them, and what they bar."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from src.data.id_lists import barred_tokens, read_ids
from src.errors import UserError

WANTED = ["007", "7", "film,3", "été"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'item\n007\n7\n"film,3"\n007\nété\n'),
        ("b.csv", 'user,item,time\n1,007,5\n1,7,5\n2,"film,3",4\n9,été,1\n'),
        ("c.txt", "007\n7\nfilm,3\n\n7\nété\n"),
        ("d.tsv", "movieId\trating\n007\t1\n7\t2\nfilm,3\t3\nété\t4\n"),
    ],
)
def test_distinct_ids_in_order_as_they_are_written(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert read_ids(tmp_path / name, "item").to_pylist() == WANTED


def test_parquet_by_its_extension(tmp_path: Path) -> None:
    pa.parquet.write_table(pa.table({"time": range(5), "item": [*WANTED, "7"]}), tmp_path / "a.parquet")
    assert read_ids(tmp_path / "a.parquet", "item").to_pylist() == WANTED
    pa.parquet.write_table(pa.table({"user": [12, 7, 12]}), tmp_path / "b.parquet")
    assert read_ids(tmp_path / "b.parquet", "user").to_pylist() == ["12", "7"]


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("none.csv", None, ["there is no file", "column user"]),
        ("a.csv", "", ["is empty"]),
        ("a.txt", "\n\n", ["no user"]),
        ("a.csv", "user\n", ["no user"]),
        ("a.csv", "person,item\n1,2\n", ["no column user", "person, item", ".txt"]),
        ("a.csv", "user,item\n1,2\n,3\n", ["no user in data row 2"]),
        ("a.csv", "user,item\n1\n", ["cannot be read"]),
        ("a.parquet", "hello", ["cannot be read"]),
    ],
)
def test_a_list_that_cannot_be_used(name: str, content: str | None, parts: list[str], tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as caught:
        read_ids(tmp_path / name, "user")
    assert all(part in str(caught.value) for part in [str(tmp_path / name), *parts])
    assert "\n" not in str(caught.value)


def test_barred_tokens() -> None:
    assert barred_tokens(3, None, None) is None
    only_blocked = barred_tokens(3, None, np.array([2, 0]))
    assert only_blocked is not None
    assert only_blocked[1:4].tolist() == [False, True, False]
    both = barred_tokens(3, np.array([1, 2, 0]), np.array([2]))
    assert both is not None
    assert both[1:].tolist() == [False, True, True, True]
    assert len(both) == 5
