"""Titles of items from a CSV."""

from pathlib import Path

import pytest

from src.data.titles import read_titles
from src.errors import UserError


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_titles_are_text_and_items_without_one_keep_their_id(tmp_path: Path) -> None:
    path = write(
        tmp_path / "items.csv",
        'item,year,title\n007,1962,"Dr. ""No"", Bond"\n7,1999,1984\nx,2001,\n7,1999,Été\n',
    )
    assert read_titles(path).of(["7", "007", "x", "unknown"]) == ["Été", 'Dr. "No", Bond', "x", "unknown"]


def test_without_a_file_ids_are_the_titles() -> None:
    assert read_titles(None).of(["a", "b"]) == ["a", "b"]


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "items.csv", "item,title\na,A\n")
    assert read_titles("~/items.csv").of(["a"]) == ["A"]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("item,words\na,A\n", "needs the column title once: found item, words"),
        ("what,words\na,A\n", "needs the column item and the column title once"),
        ("item,title,title\na,A,B\n", "needs the column title once"),
        ("item,title\na\n", "cannot be read as CSV"),
        ("", "is empty: name a CSV with the columns item and title"),
    ],
)
def test_a_file_that_does_not_do_is_one_line(tmp_path: Path, text: str, part: str) -> None:
    path = write(tmp_path / "items.csv", text)
    with pytest.raises(UserError) as caught:
        read_titles(path)
    assert part in str(caught.value)
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named_with_its_key(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no\.csv.*data\.items_file="):
        read_titles(str(tmp_path / "no.csv"))
