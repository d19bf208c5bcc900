"""Tables as people have them: formats, names, kinds of ids and times, and dirt of every sort."""

import gzip
import multiprocessing
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.interactions import Interactions, _order, read_ids, read_interactions, stable_argsort
from src.data.readers import delimited, sources
from src.data.table import TableOptions
from src.errors import UserError
from tests.data import write_table
from tests.data.test_interactions import histories

CSV = "user,item,rating,time\n007,a,5,30\n7,b,3,20\n007,c,4,10\n7,ü,1,5\n007,b,2,40\n"
ROWS = [line.split(",") for line in CSV.splitlines()[1:]]
EXPECTED = {"007": ["c", "a", "b"], "7": ["ü", "b"]}
HEADERLESS = CSV.split("\n", 1)[1]
PLACES = TableOptions(user=1, item=2, rating=3, time=4)


def zipped(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def packed(codec: str) -> Callable[[bytes], bytes]:
    return lambda content: pa.compress(content, codec, asbytes=True)


def streamed(codec: str, content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def parquet(columns: dict[str, Any], **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(pa.table(columns), sink, **options)
    return sink.getvalue().to_pybytes()


def columns_of(rows: list[list[str]]) -> dict[str, Any]:
    users, items, ratings, times = zip(*rows, strict=True)
    return {"user": users, "item": items, "rating": [int(r) for r in ratings], "time": [int(t) for t in times]}


FORMATS: dict[str, tuple[str, bytes, TableOptions]] = {
    "comma": ("t.csv", CSV.encode(), TableOptions()),
    "tab": ("t.tsv", CSV.replace(",", "\t").encode(), TableOptions()),
    "semicolon": ("t.csv", CSV.replace(",", ";").encode(), TableOptions()),
    "bar": ("t.txt", CSV.replace(",", "|").encode(), TableOptions()),
    "space": ("t.txt", CSV.replace(",", " ").encode(), TableOptions()),
    "told": ("t.txt", CSV.replace(",", "~").encode(), TableOptions(delimiter="~")),
    "two letters told": ("t.txt", CSV.replace(",", "||").encode(), TableOptions(delimiter="||")),
    "two letters with a header": ("t.txt", CSV.replace(",", "::").encode(), TableOptions()),
    "MovieLens": ("ratings.dat", HEADERLESS.replace(",", "::").encode(), PLACES),
    "headerless tab": ("u.data", HEADERLESS.replace(",", "\t").encode(), PLACES),
    "headerless comma": ("r.csv", HEADERLESS.encode(), PLACES),
    "gzip": ("t.csv.gz", gzip.compress(CSV.encode()), TableOptions()),
    "two gzips in one": ("t.gz", gzip.compress(CSV[:30].encode()) + gzip.compress(CSV[30:].encode()), TableOptions()),
    "zstd": ("t.csv.zst", streamed("zstd", CSV.encode()), TableOptions()),
    "bzip2": ("t.csv.bz2", streamed("bz2", CSV.encode()), TableOptions()),
    "gzip by another name": ("t.csv", gzip.compress(CSV.encode()), TableOptions()),
    "latin-1": ("t.csv", CSV.encode("latin-1"), TableOptions(encoding="latin-1")),
    "utf-16": ("t.csv", CSV.encode("utf-16"), TableOptions(encoding="utf-16")),
    "byte-order mark": ("t.csv", b"\xef\xbb\xbf" + CSV.encode(), TableOptions()),
    "Windows": ("t.csv", CSV.replace("\n", "\r\n").encode(), TableOptions()),
    "old Mac": ("t.csv", CSV.replace("\n", "\r").encode(), TableOptions()),
    "no line end": ("t.csv", CSV.rstrip().encode(), TableOptions()),
    "all quoted": (
        "t.csv",
        "".join(f'"{line}"\n'.replace(",", '","') for line in CSV.split()).encode(),
        TableOptions(),
    ),
    "spaces in the header": ("t.csv", CSV.replace("user,item", "user , item ").encode(), TableOptions()),
    "RecBole": (
        "t.inter",
        CSV.replace("user,item,rating,time", "user_id:token,item_id:token,rating:float,timestamp:float")
        .replace(",", "\t")
        .encode(),
        TableOptions(),
    ),
    "MovieLens 20M": (
        "ratings.csv",
        CSV.replace("user,item,rating,time", "userId,movieId,rating,timestamp").encode(),
        TableOptions(),
    ),
    "named": (
        "t.csv",
        CSV.replace("user,item,rating,time", "who,what,stars,when").encode(),
        TableOptions(user="who", item="what", time="when"),
    ),
    "Parquet": ("t.parquet", parquet(columns_of(ROWS)), TableOptions()),
    "Parquet in small groups": ("t.parquet", parquet(columns_of(ROWS), row_group_size=2), TableOptions()),
    "Parquet by another name": ("t.csv", parquet(columns_of(ROWS)), TableOptions()),
    "Parquet in gzip": ("t.gz", gzip.compress(parquet(columns_of(ROWS))), TableOptions()),
    "Parquet without dictionaries": ("t.pq", parquet(columns_of(ROWS), use_dictionary=False), TableOptions()),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_interactions(kind: str, tmp_path: Path) -> None:
    name, content, options = FORMATS[kind]
    (tmp_path / name).write_bytes(content)
    interactions = read_interactions(tmp_path / name, options)
    assert histories(interactions) == EXPECTED
    assert list(histories(interactions)) == ["007", "7"]
    assert interactions.item_ids.to_pylist() == ["a", "b", "c", "ü"]
    assert interactions.has_time


@pytest.mark.parametrize("member", ["ratings.csv", "folder/ratings.csv"])
def test_a_zip_with_one_table(member: str, tmp_path: Path) -> None:
    zipped(tmp_path / "t.zip", {"folder/": b"", member: CSV.encode(), "__MACOSX/._ratings.csv": b"\0"})
    assert histories(read_interactions(tmp_path / "t.zip")) == EXPECTED


def test_a_folder_and_a_pattern(tmp_path: Path) -> None:
    header, *lines = CSV.splitlines(keepends=True)
    (tmp_path / "part-1.csv").write_text(header + "".join(lines[:2]))
    (tmp_path / "part-2.csv.gz").write_bytes(gzip.compress((header + "".join(lines[2:])).encode()))
    (tmp_path / "_SUCCESS").write_text("")
    (tmp_path / ".part-1.csv.crc").write_text("crc")
    (tmp_path / "below").mkdir()
    assert histories(read_interactions(tmp_path)) == EXPECTED
    assert histories(read_interactions(tmp_path / "part-*")) == EXPECTED
    assert histories(read_interactions(tmp_path / "part-1*")) == {"007": ["a"], "7": ["b"]}


def test_a_name_that_looks_like_a_pattern_is_a_name(tmp_path: Path) -> None:
    (tmp_path / "r[1].csv").write_text(CSV)
    assert histories(read_interactions(tmp_path / "r[1].csv")) == EXPECTED


def test_numbers_in_one_file_and_fractions_in_another(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("user,item,time\na,x,3\n")
    (tmp_path / "2.csv").write_text("user,item,time\na,y,2.5\n")
    assert histories(read_interactions(tmp_path)) == {"a": ["y", "x"]}


def test_dates_of_different_units_in_two_files(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("user,item,time\na,x,2024-01-02\n")
    (tmp_path / "2.csv").write_text("user,item,time\na,y,2024-01-01 23:59:59.5\n")
    assert histories(read_interactions(tmp_path)) == {"a": ["y", "x"]}


@pytest.mark.parametrize(
    ("first", "second", "what"),
    [
        ("user,item,time\na,x,3\n", "user,item\na,y\n", "only some"),
        ("user,item,time\na,x,3\n", "user,item,time\na,y,2024-01-01\n", "dates"),
    ],
)
def test_files_that_do_not_fit_together(first: str, second: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text(first)
    (tmp_path / "2.csv").write_text(second)
    with pytest.raises(UserError, match=f"do not fit together: .*{what}"):
        read_interactions(tmp_path)
    assert histories(read_interactions(tmp_path, TableOptions(time=False))) == {"a": ["x", "y"]}


# Ids


BIG = 2**62 + 1
PARQUET_IDS = {
    "int8": ([7, -7], pa.int8(), ["7", "-7"]),
    "int64": ([BIG, -BIG], pa.int64(), [str(BIG), str(-BIG)]),
    "uint64": ([2**64 - 1, 0], pa.uint64(), [str(2**64 - 1), "0"]),
    "float64": ([7.0, -3.0], pa.float64(), ["7", "-3"]),
    "large_string": (["007", "é"], pa.large_string(), ["007", "é"]),
    "string_view": (["007", "é"], pa.string_view(), ["007", "é"]),
    "dictionary": (["b", "a"], pa.dictionary(pa.int8(), pa.string()), ["b", "a"]),
    "dictionary of numbers": ([5, 3], pa.dictionary(pa.int8(), pa.int64()), ["5", "3"]),
    "decimal": (["12345678901234567890", "3"], pa.string(), ["12345678901234567890", "3"]),
}


@pytest.mark.parametrize("kind", PARQUET_IDS)
def test_ids_of_every_kind_in_parquet(kind: str, tmp_path: Path) -> None:
    values, type_, expected = PARQUET_IDS[kind]
    ids = pa.array(values, type_)
    if kind == "decimal":
        ids = ids.cast(pa.decimal128(20, 0))
    try:
        (tmp_path / "t.parquet").write_bytes(parquet({"user": ids, "item": ids}))
    except pa.ArrowNotImplementedError:  # pyarrow 17 reads string_view, but cannot write it
        pytest.skip(f"this pyarrow writes no {kind} to Parquet")
    interactions = read_interactions(tmp_path / "t.parquet")
    assert interactions.user_ids.to_pylist() == interactions.item_ids.to_pylist() == expected


def test_categories_that_no_row_has_are_no_users(tmp_path: Path) -> None:
    users = pa.DictionaryArray.from_arrays(pa.array([2, 0, 2], pa.int32()), pa.array(["a", "", "b", "c"]))
    (tmp_path / "t.parquet").write_bytes(parquet({"user": users, "item": ["x", "y", "z"]}))
    assert histories(read_interactions(tmp_path / "t.parquet")) == {"b": ["x", "z"], "a": ["y"]}


@pytest.mark.parametrize(
    ("ids", "what"),
    [
        (pa.array([0.5, 1.0]), "has fractions in user"),
        (pa.array([True, False]), "has bool in user"),
        (pa.array([[1], [2]]), "user"),
        (pa.array([b"a", b"b"]), "has binary in user"),
    ],
)
def test_ids_of_other_kinds_are_refused(ids: pa.Array, what: str, tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(parquet({"user": ids, "item": ["x", "y"]}))
    with pytest.raises(UserError, match=what):
        read_interactions(tmp_path / "t.parquet")


ids = st.text(st.characters(codec="utf-8"), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.tuples(ids, ids), min_size=1, max_size=12), sizes=st.integers(1, 5))
def test_the_same_id_never_becomes_two_nor_two_one(
    rows: list[tuple[str, str]], sizes: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever the format: CSV quoted where needed, and Parquet in groups."""
    folder = tmp_path_factory.getbasetemp()
    users, items = zip(*rows, strict=True)
    write_table(folder / "ids.csv", "user,item", rows)
    (folder / "ids.parquet").write_bytes(parquet({"user": users, "item": items}, row_group_size=sizes))
    for name in ("ids.csv", "ids.parquet"):
        interactions = read_interactions(folder / name)
        assert interactions.user_ids.to_pylist() == list(dict.fromkeys(users))
        assert interactions.item_ids.to_pylist() == list(dict.fromkeys(items))
        assert read_ids(folder / name, "item").to_pylist() == list(dict.fromkeys(items))


def test_ids_alone(tmp_path: Path) -> None:
    (tmp_path / "users.csv").write_text("userId,age\nb,1\na,2\nb,3\n")
    assert read_ids(tmp_path / "users.csv", "user").to_pylist() == ["b", "a"]
    (tmp_path / "items.txt").write_text("film\nb\n007\n")
    assert read_ids(tmp_path / "items.txt", "item", TableOptions(item="film")).to_pylist() == ["b", "007"]
    (tmp_path / "plain.txt").write_text("b\n007\nb\n")
    assert read_ids(tmp_path / "plain.txt", "item", TableOptions(item=1)).to_pylist() == ["b", "007"]
    with pytest.raises(UserError, match="has no column item: found userId, age"):
        read_ids(tmp_path / "users.csv", "item")


# Times, and their order


@pytest.mark.parametrize(
    ("kind", "times"),
    [
        (pa.timestamp("ns"), [3, 1, 2]),
        (pa.timestamp("s", "Asia/Seoul"), [3, 1, 2]),
        (pa.date32(), [3, 1, 2]),
        (pa.date64(), [3 * 86400000, 86400000, 2 * 86400000]),
        (pa.int16(), [3, 1, 2]),
        (pa.uint64(), [2**64 - 1, 1, 2]),
        (pa.float32(), [3.5, 1.0, 1.5]),
        (pa.string(), ["1970-01-02", "1969-12-30", "1970-01-01"]),
        (pa.string(), ["10", "8", "9"]),
    ],
)
def test_times_of_every_kind_in_parquet(kind: pa.DataType, times: list[Any], tmp_path: Path) -> None:
    columns = {"user": ["u"] * 3, "item": ["c", "a", "b"], "time": pa.array(times, kind)}
    (tmp_path / "t.parquet").write_bytes(parquet(columns))
    assert histories(read_interactions(tmp_path / "t.parquet")) == {"u": ["a", "b", "c"]}


def test_times_can_be_left_alone(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("user,item,time\na,x,soon\na,y,\n")
    interactions = read_interactions(tmp_path / "t.csv", TableOptions(time=False))
    assert histories(interactions) == {"a": ["x", "y"]}
    assert not interactions.has_time


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 70_000), st.sampled_from([0, 1, 2, 2**40, -(2**62), 2**62])), min_size=1),
    dtype=st.sampled_from([np.int64, np.float64]),
)
def test_rows_are_ordered_as_a_stable_sort_orders_them(rows: list[tuple[int, int]], dtype: type) -> None:
    users = np.array([user for user, _ in rows], dtype=np.int32)
    times = np.array([time for _, time in rows], dtype=dtype)
    assert _order(users, times).tolist() == np.lexsort((times, users)).tolist()
    assert _order(users, times // 2**45).tolist() == np.lexsort((times // 2**45, users)).tolist()
    assert _order(users, None).tolist() == np.argsort(users, kind="stable").tolist()
    assert stable_argsort(times).tolist() == np.argsort(times, kind="stable").tolist()


YEAR = 365 * 86400


@pytest.mark.parametrize(
    ("unit", "odd", "is_odd"),
    [
        (1, 1, False),
        (1000, 1000, False),
        (10**6, 10**6, False),
        (10**9, 10**9, False),
        (1, -1, True),
        (1, 1000, True),  # milliseconds among seconds
        (1000, -1, True),
        (10**9, 3, False),  # nanoseconds have room for 292 years, and early ones are not negative
    ],
)
def test_times_far_away_are_named_and_keep_their_place(unit: int, odd: int, is_odd: bool, tmp_path: Path) -> None:
    now = 1_700_000_000
    rows = [("a", f"i{n}", (now + n) * unit) for n in range(5)] + [("a", "odd", (now + 2) * odd)]
    interactions = read_interactions(write_table(tmp_path / "t.csv", "user,item,time", rows))
    ordered = sorted(rows, key=lambda row: row[2])
    assert histories(interactions) == {"a": [item for _, item, _ in ordered]}
    expected = f"1 times before 1970 or far in the future, first {(now + 2) * odd} in data row 6"
    assert [expected in note for note in interactions.notes] == [True] * is_odd


@pytest.mark.parametrize(("times", "count"), [(["1", "2", "3"], 0), (["2024-01-01", "9999-12-31", "1960-05-05"], 2)])
def test_mere_numbers_are_never_odd_and_dates_may_be(times: list[str], count: int, tmp_path: Path) -> None:
    rows = [("a", "x", time) for time in times]
    notes = read_interactions(write_table(tmp_path / "t.csv", "user,item,time", rows)).notes
    assert [note.split(" has ")[1][:7] for note in notes] == [f"{count} times"] * (count > 0)


# What is said, and what is left out


def read(tmp_path: Path, text: str | bytes, **options: Any) -> Interactions:
    (tmp_path / "t.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_interactions(tmp_path / "t.csv", TableOptions(**options))


def test_recognised_columns_are_named(tmp_path: Path) -> None:
    assert read(tmp_path, "user,item,time\na,x,1\n").notes == ()
    (note,) = read(tmp_path, "movieId,userId,Timestamp\nx,a,1\n").notes
    assert note == (
        "columns     userId as user, movieId as item, Timestamp as time (others with data.columns.user, item, time)"
    )


def test_the_usual_name_goes_first(tmp_path: Path) -> None:
    text = "user_id,user,date,time,item_id,item\nno,a,2024-01-01,1,no,x\n"
    assert histories(read(tmp_path, text)) == {"a": ["x"]}
    assert histories(read(tmp_path, text, user="user_id", item="item_id")) == {"no": ["no"]}


@pytest.mark.parametrize("min_rating", [3, 3.5, 5])
def test_min_rating(min_rating: float, tmp_path: Path) -> None:
    interactions = read(tmp_path, CSV, min_rating=min_rating)
    kept = [row for row in sorted(ROWS, key=lambda row: int(row[3])) if float(row[2]) >= min_rating]
    expected: dict[str, list[str]] = {}
    for user, item, _, _ in kept:
        expected.setdefault(user, []).append(item)
    assert histories(interactions) == expected
    assert interactions.notes == (f"left out    {5 - len(kept)} rows rated lower than data.min_rating={min_rating:g}",)


def test_min_rating_in_parquet_and_by_another_name(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(parquet({"user": ["a", "a"], "item": ["x", "y"], "mark": [1.5, 2.5]}))
    options = TableOptions(rating="mark", min_rating=2)
    assert histories(read_interactions(tmp_path / "t.parquet", options)) == {"a": ["y"]}


def test_min_rating_that_nothing_reaches_or_without_a_column(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no row with a rating of at least data\.min_rating=6"):
        read(tmp_path, CSV, min_rating=6)
    with pytest.raises(UserError, match=r"has no column rating: .*data.columns.rating=NAME"):
        read(tmp_path, "user,item\na,x\n", min_rating=3)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"), st.integers(0, 9)), min_size=1))
def test_deduplicate_leaves_out_what_follows_itself(
    rows: list[tuple[str, str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write_table(tmp_path_factory.getbasetemp() / "repeats.csv", "user,item,time", rows)
    expected: dict[str, list[str]] = {user: [] for user, _, _ in rows}
    for user, item, _ in sorted(rows, key=lambda row: row[2]):
        if expected[user][-1:] != [item]:
            expected[user].append(item)
    assert histories(read_interactions(path, TableOptions(deduplicate=True))) == expected


# Dirt


BAD = {
    "no user": (",x,3,1", "no user"),
    "no item": ('a,"",3,1', "no item"),
    "no time": ("a,x,3,", "no time"),
    "a time that is a word for nothing": ("a,x,3,NaN", "no time"),
    "a time that is none": ("a,x,3,soon", "the time 'soon'"),
    "a date among numbers": ("a,x,3,2024-01-31", "the time '2024-01-31'"),
    "a time without end": ("a,x,3,inf", "the time inf"),
    "too few fields": ("a,x", "2 of 4 fields"),
    "too many fields": ("a,x,3,4,5", "5 of 4 fields"),
    "no rating": ("a,x,,1", "no rating"),
    "a rating that is none": ("a,x,good,1", "the rating 'good'"),
    "foreign bytes": ("a,\udcff,3,1", "bytes that are not utf-8"),
    "foreign bytes and too few fields": ("a,\udcff", "2 of 4 fields"),
}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_is_named_or_left_out(kind: str, end: str, tmp_path: Path) -> None:
    line, what = BAD[kind]
    lines = [*CSV.splitlines()[:4], line, "", *CSV.splitlines()[4:]]
    text = end.join(lines).encode(errors="surrogateescape")
    with pytest.raises(UserError) as caught:
        read(tmp_path, text, min_rating=0)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 't.csv'} has {what} in data row 4: ")
    assert message.endswith(", or leave such rows out with data.on_bad_rows=drop")
    assert "\n" not in message
    interactions = read(tmp_path, text, min_rating=0, on_bad_rows="drop")
    assert histories(interactions) == EXPECTED
    assert interactions.notes == (
        f"left out    1 bad rows of 6 in {tmp_path / 't.csv'} (data.on_bad_rows=drop): {what} in data row 4",
    )


def test_five_bad_rows_are_named_and_all_are_counted(tmp_path: Path) -> None:
    bad = ["a,x", ",x,3,1", "a,,3,1", "a,x,3,soon", "a,b,c,d,e", "a,x,3,", "b,x,3,?"]
    text = "\n".join([*CSV.splitlines(), *bad]) + "\n"
    note, _ = sorted(read(tmp_path, text, on_bad_rows="drop").notes)
    assert note == (
        f"left out    7 bad rows of 12 in {tmp_path / 't.csv'} (data.on_bad_rows=drop): 2 of 4 fields in data row 6,"
        " no user in data row 7, no item in data row 8, the time 'soon' in data row 9, 5 of 4 fields in data row 10"
        ", ..."
    )


def test_the_rows_of_a_headerless_table_count_from_its_first_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no user in data row 1: "):
        read(tmp_path, ",x\nb,y\n", user=1, item=2)
    with pytest.raises(UserError, match="has 1 of 2 fields in data row 2: "):
        read(tmp_path, "a,x\nb\n", user=1, item=2)


def test_bad_rows_in_parquet(tmp_path: Path) -> None:
    columns = {"user": ["a", None, "a", "b", "a"], "item": [1.0, 2.0, None, 4.0, 5.0], "time": [5, 4, 3, None, 1]}
    (tmp_path / "t.parquet").write_bytes(parquet(columns, row_group_size=2))
    with pytest.raises(UserError, match="has no user in data row 2: "):
        read_interactions(tmp_path / "t.parquet")
    interactions = read_interactions(tmp_path / "t.parquet", TableOptions(on_bad_rows="drop"))
    assert histories(interactions) == {"a": ["5", "1"]}
    assert "3 bad rows of 5" in interactions.notes[0]


def test_nothing_but_bad_rows(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no row that can be used: the first has no item in data row 1"):
        read(tmp_path, "user,item\na,\nb,\n", on_bad_rows="drop")


def test_the_kind_of_time_that_most_rows_have_is_right(tmp_path: Path) -> None:
    text = "user,item,time\na,x,5\na,y,2024-01-02\na,z,2024-01-01\n"
    with pytest.raises(UserError, match="has the time '5' in data row 1"):
        read(tmp_path, text)
    assert histories(read(tmp_path, text, on_bad_rows="drop")) == {"a": ["z", "y"]}


def test_large_whole_numbers_stay_apart_beside_a_bad_row(tmp_path: Path) -> None:
    text = f"user,item,time\na,y,{2**53 + 1}\na,x,{2**53}\na,z,\n"
    assert histories(read(tmp_path, text, on_bad_rows="drop")) == {"a": ["x", "y"]}


def test_a_bad_row_far_behind_the_first_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "BLOCK", 4096)
    rows = [f"u{n % 7},i{n % 11},{n}" for n in range(3000)]
    rows[2500] = "u1,i1,late"
    text = "user,item,time\n" + "\n".join(rows)
    with pytest.raises(UserError, match="has the time 'late' in data row 2501: "):
        read(tmp_path, text)
    assert len(read(tmp_path, text, on_bad_rows="drop").items) == 2999


QUOTED = 'user,item,title\na,x,"one\ntwo"\nb,"y, z","say ""hi"""\na,w,5" disc\n'


def test_quotes_commas_and_line_breaks_in_other_columns(tmp_path: Path) -> None:
    assert histories(read(tmp_path, QUOTED)) == {"a": ["x", "w"], "b": ["y, z"]}
    with pytest.raises(UserError, match="has no item in data row 4"):
        read(tmp_path, QUOTED + 'b,,"t\n"\n')


@pytest.mark.parametrize(
    ("line", "row"), [('b,"y', 2), ('b,y"', None), ('"b,y', 2), ('b,"y"z', 2)], ids=["open", "inside", "first", "after"]
)
def test_a_quote_that_is_not_closed_loses_no_rows(line: str, row: int | None, tmp_path: Path) -> None:
    text = "\n".join(["user,item", "a,x", line, "c,w", 'd,"v\nv"', "e,u", ""])
    if row is None:
        assert len(read(tmp_path, text).items) == 5
        return
    with pytest.raises(UserError) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 't.csv'} has a quote in data row {row} that is not closed where")


def test_a_quote_at_the_very_end(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has a quote in data row 3 that is not closed"):
        read(tmp_path, 'user,item\na,x\nb,y\nc,"z\n')


CUT = CSV.encode() * 400
DAMAGED: dict[str, tuple[bytes, str]] = {
    "gzip": (gzip.compress(CUT)[:-20], "cannot be unpacked, it is damaged or cut short"),
    "gzip header": (gzip.compress(CUT)[:5], "cannot be unpacked, it is damaged or cut short"),
    "zstd": (streamed("zstd", CUT)[:-6], "cannot be unpacked, it is damaged or cut short"),
    "bzip2": (streamed("bz2", CUT)[:-6], "cannot be unpacked, it is damaged or cut short"),
    "zip": (b"PK\x03\x04" + bytes(90), "cannot be unpacked, it is damaged or cut short"),
    "parquet": (parquet(columns_of(ROWS))[:-9], "cannot be read as Parquet, it is damaged or cut short"),
    "parquet header": (b"PAR1", "cannot be read as Parquet, it is damaged or cut short"),
    "empty gzip": (gzip.compress(b""), "is empty"),
    "utf-16": (CSV.encode("utf-16"), "is UTF-16: say so with data.encoding=utf-16"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4, "has no column user and no column item"),
    "header of Parquet alone": (
        parquet({"user": pa.array([], pa.string()), "item": pa.array([], pa.string())}),
        "no rows",
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_named(kind: str, tmp_path: Path) -> None:
    content, what = DAMAGED[kind]
    with pytest.raises(UserError) as caught:
        read(tmp_path, content)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 't.csv'} ")
    assert what in message
    assert "\n" not in message


def test_archives_that_are_no_single_table(tmp_path: Path) -> None:
    zipped(tmp_path / "two.zip", {"a.csv": b"user,item\n", "b.csv": b"user,item\n"})
    with pytest.raises(UserError, match=r"holds 2 files \(a.csv, b.csv\): unpack it and name the one"):
        read_interactions(tmp_path / "two.zip")
    zipped(tmp_path / "none.zip", {"folder/": b""})
    with pytest.raises(UserError, match="holds 0 files"):
        read_interactions(tmp_path / "none.zip")
    zipped(tmp_path / "t.xlsx", {"[Content_Types].xml": b"<x/>", "xl/workbook.xml": b"<x/>"})
    with pytest.raises(UserError, match="is an office document: save the table as CSV"):
        read_interactions(tmp_path / "t.xlsx")


def test_places_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has 2 columns, but data.columns.time=4 asks for another one"):
        read(tmp_path, "a,x\nb,y\n", user=1, item=2, time=4)
    with pytest.raises(UserError, match="the same place"):
        read(tmp_path, "a,x\nb,y\n", user=1, item=1)
    (tmp_path / "t.parquet").write_bytes(parquet(columns_of(ROWS)))
    with pytest.raises(UserError, match="is Parquet, which names its columns"):
        read_interactions(tmp_path / "t.parquet", PLACES)


def test_names_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no column who, which data.columns.user names: found user, item"):
        read(tmp_path, "user,item\na,x\n", user="who")
    with pytest.raises(UserError, match="cannot be both user and item"):
        read(tmp_path, "user,item\na,x\n", item="user")
    with pytest.raises(UserError, match=r"found c0, c1, .*c11, \.\.\.;"):
        read(tmp_path, ",".join(f"c{n}" for n in range(99)) + "\n")


def test_a_delimiter_of_two_letters_in_a_text_with_control_characters(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"control character \\x1f"):
        read(tmp_path, "user::item\na\x1f::x\n")


def test_a_file_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = sources.load

    def load_and_append(path: Path) -> sources.Source:
        source = load(path)
        path.write_text(CSV + "more")
        return source

    monkeypatch.setattr(sources, "load", load_and_append)
    with pytest.raises(UserError, match="was changed while it was read: run again once it is whole"):
        read(tmp_path, CSV)


def test_without_permission_to_read(tmp_path: Path) -> None:
    """As a user who is not the administrator, to whom nothing is forbidden."""
    for name in ("open", "closed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "t.csv").write_text(CSV)
    for folder in [tmp_path, *tmp_path.parents[:2]]:
        folder.chmod(0o755)
    paths = [tmp_path / "open" / "t.csv", tmp_path / "closed", tmp_path / "closed" / "t.csv"]
    context = multiprocessing.get_context("fork")
    told = context.SimpleQueue()

    def read_all() -> None:
        if os.geteuid() == 0:
            os.seteuid(65534)
        for path in paths:
            try:
                told.put(f"{read_interactions(path)}")
            except UserError as error:
                told.put(str(error))

    paths[0].chmod(0)
    paths[1].chmod(0)
    try:
        (process := context.Process(target=read_all)).start()
        process.join(60)
    finally:
        paths[1].chmod(0o755)
    hint = "cannot be read: permission denied; allow it with chmod, or copy it"
    assert process.exitcode == 0
    assert [told.get() for _ in paths] == [f"{path} {hint}" for path in paths]


def test_a_history_of_a_million_items(tmp_path: Path) -> None:
    count = 1_000_000
    (tmp_path / "t.csv").write_text("user,item\n" + "".join(f"a,{n}\n" for n in range(count)) + "b,0\n")
    interactions = read_interactions(tmp_path / "t.csv")
    assert interactions.lengths.tolist() == [count, 1]
    assert interactions.items[: count : count // 4].tolist() == list(range(0, count, count // 4))


@pytest.mark.parametrize("name", ["last_watch_dt", "Time Stamp", "event-time", "purchase_date", "DateTime"])
def test_more_names_of_times_are_known(name: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"user_id;item_id;{name};total_dur\na;x;2021-05-12;9\na;y;2021-05-11;4\n")
    interactions = read_interactions(path, TableOptions())
    assert histories(interactions) == {"a": ["y", "x"]}
    assert any(f"{name} as time" in note for note in interactions.notes)


@pytest.mark.parametrize(
    "cells", [("2021-05-12", "2021-05-11"), ("1600000009", "1600000003"), ("1600000009123", "1600000003456")]
)
def test_a_column_of_times_that_is_not_known_as_such_is_named(cells: tuple[str, str], tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"user,item,watched,price\na,x,{cells[0]},3\na,y,{cells[1]},4\n")
    with pytest.raises(UserError) as caught:
        read_interactions(path, TableOptions())
    assert str(caught.value) == (
        f"{path} has no known time column, but times in the column watched, such as {cells[0]}: set"
        " data.columns.time=watched, or data.columns.time=false to take the order of the rows"
    )
    assert histories(read_interactions(path, TableOptions(time="watched"))) == {"a": ["y", "x"]}
    assert histories(read_interactions(path, TableOptions(time=False))) == {"a": ["x", "y"]}


def test_a_parquet_column_of_times_that_is_not_known_as_such_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    days = pa.array([2, 1], pa.date32())
    path.write_bytes(parquet({"user": ["a", "a"], "item": ["x", "y"], "watched": days}))
    with pytest.raises(UserError, match=r"set data\.columns\.time=watched, or data\.columns\.time=false"):
        read_interactions(path, TableOptions())


def test_numbers_that_are_no_times_are_no_times(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("user,item,price,year\na,x,3,2021\na,y,44444,1999\n")
    assert histories(read_interactions(path, TableOptions())) == {"a": ["x", "y"]}


def test_a_header_with_blanks_is_split_where_every_row_is(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("User ID,Item ID,Time Stamp\nu 1,x,5\nu 1,y,4\n")
    assert histories(read_interactions(path, TableOptions())) == {"u 1": ["y", "x"]}
