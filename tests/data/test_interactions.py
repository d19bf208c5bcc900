"""Reading a table: ids exactly as they stand, order by time, one clear line for every mistake."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.interactions import Interactions, read_interactions
from src.errors import UserError
from tests.data import write_table


def read_text(tmp_path: Path, text: str | bytes) -> Interactions:
    path = tmp_path / "table.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_interactions(path)


def histories(interactions: Interactions) -> dict[str, list[str]]:
    """Item ids of each user, users in their order."""
    items = interactions.item_ids.take(interactions.items).to_pylist()
    offsets = interactions.offsets.tolist()
    users = interactions.user_ids.to_pylist()
    return {user: items[offsets[row] : offsets[row + 1]] for row, user in enumerate(users)}


def test_rows_are_grouped_by_user_and_sorted_by_time(tmp_path: Path) -> None:
    interactions = read_text(tmp_path, "user,item,time\nb,x,30\na,y,20\nb,z,10\na,x,5\nb,y,20\n")
    assert interactions.user_ids.to_pylist() == ["b", "a"]
    assert interactions.item_ids.to_pylist() == ["x", "y", "z"]
    assert interactions.items.tolist() == [2, 1, 0, 0, 1]
    assert interactions.offsets.tolist() == [0, 3, 5]
    assert interactions.lengths.tolist() == [3, 2]
    assert interactions.has_time
    assert (interactions.items.dtype, interactions.offsets.dtype) == ("int32", "int64")


def test_ids_stay_text(tmp_path: Path) -> None:
    interactions = read_text(tmp_path, "user,item\n007,1.0\n7,1\n07,1e0\n007,01\n")
    assert histories(interactions) == {"007": ["1.0", "01"], "7": ["1"], "07": ["1e0"]}


@pytest.mark.parametrize("user_id", ["NA", "null", "nan", "None", "true", "2024-01-31", " a", "a ", "-", "=1+1"])
def test_an_id_that_looks_like_something_else_is_an_id(tmp_path: Path, user_id: str) -> None:
    assert histories(read_text(tmp_path, f"user,item\n{user_id},x\n")) == {user_id: ["x"]}


def test_unicode_quotes_commas_and_newlines_in_ids(tmp_path: Path) -> None:
    path = write_table(
        tmp_path / "table.csv", "user,item", [("이용자", 'say "hi"'), ("zoë, the 2nd", "two\nlines"), ("이용자", "🎬")]
    )
    assert histories(read_interactions(path)) == {"이용자": ['say "hi"', "🎬"], "zoë, the 2nd": ["two\nlines"]}


def test_other_columns_and_their_order_do_not_matter(tmp_path: Path) -> None:
    interactions = read_text(tmp_path, "rating,time,note,item,user,note\n5,2,,x,a,\n3,1,?,y,a,!\n")
    assert histories(interactions) == {"a": ["y", "x"]}


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_line_ends_and_byte_order_mark(tmp_path: Path, newline: str, start: str) -> None:
    text = start + newline.join(["user,item", "a,x", "", "b,y"])
    assert histories(read_text(tmp_path, text)) == {"a": ["x"], "b": ["y"]}


@pytest.mark.parametrize(
    ("first", "second", "third"),
    [
        ("9", "10", "11"),
        ("-3", "2", "10"),
        ("0.25", "0.5", "3"),
        ("9.5e8", "1e9", "1000000001"),
        ("9007199254740992", "9007199254740993", "9007199254740994"),  # apart as integers, not as floats
        ("1969-12-31", "1970-01-02", "2024-01-31"),
        ("2024-01-31", "2024-01-31 00:00:01", "2024-02-01"),
        ("2024-01-31 12:00:00.25", "2024-01-31 12:00:00.5", "2024-01-31 12:00:01"),
        ("2024-01-31T12:00:00+09:00", "2024-01-31T12:00:00Z", "2024-01-31T12:00:00-01:00"),
    ],
)
def test_times(tmp_path: Path, first: str, second: str, third: str) -> None:
    interactions = read_text(tmp_path, f"user,item,time\na,c,{third}\na,a,{first}\na,b,{second}\n")
    assert histories(interactions) == {"a": ["a", "b", "c"]}


@pytest.mark.parametrize("header", ["user,item,time", "user,item,note"])
def test_ties_and_absent_times_keep_the_order_of_the_file(tmp_path: Path, header: str) -> None:
    rows = [(f"u{row % 3}", f"i{row * 7 % 50:02d}", 5) for row in range(50)]  # enough rows to upset an unstable sort
    interactions = read_interactions(write_table(tmp_path / "table.csv", header, rows))
    expected = {user: [item for u, item, _ in rows if u == user] for user in ("u0", "u1", "u2")}
    assert histories(interactions) == expected
    assert interactions.has_time == (header == "user,item,time")


ids = st.text(st.characters(codec="utf-8"), min_size=1, max_size=3)
tables = st.lists(st.tuples(st.sampled_from("abc") | ids, ids, st.integers(-4, 4)), min_size=1, max_size=20)


@settings(max_examples=40, deadline=None)
@given(rows=tables, has_time=st.booleans())
def test_any_table_reads_as_a_plain_loop_would(
    rows: list[tuple[str, str, int]], has_time: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    header = "user,item,time" if has_time else "user,item,other"
    interactions = read_interactions(write_table(tmp_path_factory.getbasetemp() / "any.csv", header, rows))
    expected: dict[str, list[str]] = {user: [] for user, _, _ in rows}
    for user, item, _ in sorted(rows, key=lambda row: row[2]) if has_time else rows:
        expected[user].append(item)
    assert histories(interactions) == expected
    assert list(histories(interactions)) == list(expected)
    assert interactions.item_ids.to_pylist() == list(dict.fromkeys(item for _, item, _ in rows))


def test_a_file_read_in_several_blocks_stays_in_order(tmp_path: Path) -> None:
    rows = [(f"user-{row % 3}", f"{row:012d}", row // 5) for row in range(60_000)]  # 1.6 MB, above a block of 1 MB
    rows[50_000] = ("user-2", "late", 9_999.5)  # only the second block says that times are no integers
    interactions = read_interactions(write_table(tmp_path / "table.csv", "user,item,time", rows))
    by_time = sorted(rows, key=lambda row: row[2])
    assert histories(interactions) == {
        user: [item for u, item, _ in by_time if u == user] for user in ("user-0", "user-1", "user-2")
    }


MUST_NAME = "the header must name user, item and, if there is one, time"
KEEP_ONE = "keep one of them"
FILL_IN = "fill it in or delete the row"
LEAVE_OUT = "fill it in, or leave the column out altogether"
DROP = "or leave such rows out with data.on_bad_rows=drop"
USE_TIMES = "use Unix times or dates like 2024-01-31 12:00:00"


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", ["is empty", "it must begin with the line user,item,time"]),
        ("user,item,time\n", ["has a header but no rows"]),
        ("\n", ["is empty", "it must begin with the line user,item,time"]),
        ("user,item\na,x\nb\n", ["has 1 of 2 fields in data row 2", "fix or delete the row", DROP]),
        ("user,item\na,x\nb,y,z\n", ["has 3 of 2 fields in data row 2", "fix or delete the row", DROP]),
        (b"user,item\na,\xff\n", ["has bytes that are not utf-8 in data row 1", "data.encoding=latin-1", DROP]),
        ("name,item\na,x\n", ["has no column user: found name, item", "data.columns.user=name; or =1"]),
        ("user,film,time\na,x,1\n", ["has no column item: found user, film, time", "data.columns.item=film; or =1"]),
        ("u;i\na;x\n", ["no column item: found u, i", "data.columns.user=u data.columns.item=i; or =1"]),
        ("u;v\n", ["has no column user and no column item: found u, v", MUST_NAME]),
        ("user,user,item\na,b,x\n", ["has the column user more than once", KEEP_ONE]),
        ("user,item,item\na,x,y\n", ["has the column item more than once", KEEP_ONE]),
        ("user,item,time,time\na,x,1,2\n", ["has the column time more than once", KEEP_ONE]),
        ("user,item\na,x\n,y\n", ["has no user in data row 2", FILL_IN]),
        ('user,item\na,x\na,y\na,""\n', ["has no item in data row 3", FILL_IN]),
        ("user,item,time\na,x,1\na,y,\n", ["has no time in data row 2", LEAVE_OUT]),
        ("user,item,time\na,x,\na,y,\n", ["has no time in data row 1", LEAVE_OUT]),
        ("user,item,time\na,x,1\na,y,2\na,z,inf\n", ["has the time inf in data row 3", "must be a finite number"]),
        ("user,item,time\na,x,soon\n", ["'soon' in data row 1", USE_TIMES]),
        ("user,item,time\na,x,true\n", ["'true' in data row 1", USE_TIMES]),
        ("user,item,time\na,x,12:30:00\n", ["in data row 1", USE_TIMES]),  # a time of day alone
        (
            "user,item,time\na,x,31.01.2024\n",
            ["'31.01.2024' in data row 1", "set 'data.time_format=%d.%m.%Y', or data.columns.time=false"],
        ),
        ("user,item,time\na,x,5\na,y,soon\n", ["'soon' in data row 2", USE_TIMES]),
    ],
)
def test_mistakes_in_the_table(tmp_path: Path, text: str | bytes, pieces: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        read_text(tmp_path, text)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{tmp_path / 'table.csv'} ")
    for piece in pieces:
        assert piece in message


@pytest.mark.parametrize("name", ["nothing.csv", "*.csv"])
def test_a_missing_file_names_the_overrides_and_the_sample(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError) as caught:
        read_interactions(tmp_path / name)
    message = str(caught.value)
    assert message.startswith(f"there is no file {tmp_path / name}: ")
    assert "data.data_dir=FOLDER data.data_file=FILE" in message
    assert "experiment=sample" in message
    assert "\n" not in message
