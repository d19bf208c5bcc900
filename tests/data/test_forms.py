"""Forms in which public data sets come: each is read as it is, or with the settings that its error proposes."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data import id_forms
from src.data.interactions import Interactions, read_interactions
from src.data.readers import json_lines
from src.data.table import TableOptions
from src.errors import UserError

IN_FILE_ORDER = (
    "time        no column is known as time: the order of the rows counts (data.columns.time=NAME, or =false)"
)


def read(path: Path, text: str, **options: Any) -> Interactions:
    path.write_text(text, encoding="utf-8", newline="")
    return read_interactions(path, TableOptions(**options))


def refusal(path: Path, text: str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(path, text, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def histories(table: Interactions) -> dict[str, list[str]]:
    items = table.item_ids.take(pa.array(table.items)).to_pylist()
    return {user: items[table.offsets[n] : table.offsets[n + 1]] for n, user in enumerate(table.user_ids.to_pylist())}


# JSON lines


def test_reviews_as_json_lines(tmp_path: Path) -> None:
    """As Amazon's: one interaction a line, with fields that nobody needs."""
    lines = [
        {"reviewerID": "A2", "asin": "0000013714", "helpful": [0, 0], "overall": 5.0, "unixReviewTime": 1393545600},
        {"reviewerID": "A2", "asin": "B000", "overall": 2.0, "unixReviewTime": 1393545599, "style": {"Size:": "L"}},
        {"overall": 4.0, "asin": "B000", "reviewerID": "A3", "unixReviewTime": 1393545599},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    assert histories(read(tmp_path / "r.jsonl", text)) == {"A2": ["B000", "0000013714"], "A3": ["B000"]}
    table = read(tmp_path / "r.jsonl", text, min_rating=4.0)
    assert histories(table) == {"A2": ["0000013714"], "A3": ["B000"]}


def test_sessions_as_json_lines(tmp_path: Path) -> None:
    """As OTTO's: one session a line with a list of events."""
    text = (
        '{"session":7,"events":[{"aid":59,"ts":1661724000278,"type":"clicks"},{"aid":60,"ts":1661724000270}]}\n'
        '{"session":8,"events":[{"aid":59,"ts":1661724000278,"type":"carts"}]}\n'
    )
    assert histories(read(tmp_path / "o.jsonl", text)) == {"7": ["60", "59"], "8": ["59"]}


def test_lists_of_items_as_json_lines(tmp_path: Path) -> None:
    text = '{"user":"a","items":["x","y","x"]}\n{"user":"b","items":[]}\n{"user":"c","items":["z"]}\n'
    table = read(tmp_path / "l.jsonl", text)
    assert histories(table) == {"a": ["x", "y", "x"], "c": ["z"]}
    assert f"left out    1 rows with an empty list of items in {tmp_path / 'l.jsonl'}" in table.notes


def test_json_lines_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes('{"user":"é","item":2}\n'.encode("utf-16"))
    table = read_interactions(tmp_path / "t.jsonl", TableOptions(encoding="utf-16"))
    assert histories(table) == {"é": ["2"]}


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{broken", "a line that is no JSON object in data row 2"),
        ("5", "a line that is no JSON object in data row 2"),
        ('{"user":"a"}', "no item in data row 2"),
        ('{"user":"a","item":["x"]}', "where text or a number belongs in data row 2"),
        ('{"user":"a","item":true}', "true where text or a number belongs in data row 2"),
    ],
)
def test_a_bad_line_of_json_is_named_or_left_out(line: str, what: str, tmp_path: Path) -> None:
    text = f'{{"user":"a","item":"x"}}\n{line}\n{{"user":"b","item":7}}\n'
    assert what in refusal(tmp_path / "t.jsonl", text)
    table = read(tmp_path / "t.jsonl", text, on_bad_rows="drop")
    assert histories(table) == {"a": ["x"], "b": ["7"]}
    assert any(note.startswith("left out    1 bad rows of 3") and what in note for note in table.notes)


@pytest.mark.parametrize(
    ("text", "way_out"),
    [
        ('[{"user":1,"item":2}]\n', "jq -c '.[]' t.json > t.jsonl"),
        ('[\n {"user":1,"item":2},\n {"user":1,"item":3}\n]\n', "jq -c '.[]' t.json > t.jsonl"),
        ('{\n "user": 1,\n "item": 2\n}\n', "jq -c . t.json > t.jsonl"),
    ],
)
def test_json_that_is_not_lines_is_refused_with_the_way_to_lines(text: str, way_out: str, tmp_path: Path) -> None:
    assert way_out in refusal(tmp_path / "t.json", text)


def test_a_line_longer_than_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "BLOCK", 4096)
    events = [{"aid": n, "ts": n} for n in range(5000)]
    text = json.dumps({"session": 1, "events": events}) + '\n{"session":2,"events":[{"aid":3,"ts":1}]}\n'
    table = read(tmp_path / "o.jsonl", text)
    assert histories(table) == {"1": [str(n) for n in range(5000)], "2": ["3"]}


IDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=4)


@settings(deadline=None, max_examples=40)
@given(rows=st.lists(st.tuples(IDS, IDS, st.integers(10**9, 2 * 10**9)), min_size=1, max_size=20))
def test_json_lines_hold_what_a_csv_of_the_same_rows_holds(
    rows: list[tuple[str, str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("json")
    lines = [json.dumps({"user": u, "item": i, "time": t}, ensure_ascii=False) for u, i, t in rows]
    quoted = ['"' + '","'.join(cell.replace('"', '""') for cell in (u, i, str(t))) + '"' for u, i, t in rows]
    from_json = read(folder / "t.jsonl", "\n".join(lines))
    from_csv = read(folder / "t.csv", "\n".join(["user,item,time", *quoted]))
    assert histories(from_json) == histories(from_csv)


# Several items in one row


def test_cells_of_several_items(tmp_path: Path) -> None:
    """As MIND's behaviours, whose error proposes all but the form of the time."""
    text = (
        "1\tU2\t11/13/2019 8:36:57 AM\tN55 N42 N34\tN9-1 N8-0\n"
        "2\tU1\t11/12/2019 6:11:30 PM\tN31\tN9-1\n"
        "3\tU2\t11/11/2019 9:05:58 AM\tN1 N2\tN9-1\n"
    ).replace("N31", "N31 N6")
    message = refusal(tmp_path / "b.tsv", text)
    pasted = "data.columns.user=2 data.columns.item=4 data.columns.time=3 data.list_delimiter=space"
    assert message.endswith(f"such as {pasted}")
    options = {"user": 2, "item": 4, "time": 3, "list_delimiter": " "}
    assert "set 'data.time_format=%m/%d/%Y %I:%M:%S %p'" in refusal(tmp_path / "b.tsv", text, **options)
    table = read(tmp_path / "b.tsv", text, time_format="%m/%d/%Y %I:%M:%S %p", **options)
    assert histories(table) == {"U2": ["N1", "N2", "N55", "N42", "N34"], "U1": ["N31", "N6"]}


@pytest.mark.parametrize(("cell", "name"), [("7 8", "space"), ("[7, 8]", "comma")])
def test_a_cell_that_looks_like_a_list_is_told_of(cell: str, name: str, tmp_path: Path) -> None:
    text = f'user,item\na,"{cell}"\n'
    note = f"warning: {tmp_path / 't.csv'} has {cell!r} as one item: data.list_delimiter={name} splits such cells"
    table = read(tmp_path / "t.csv", text)
    assert note in table.notes
    assert histories(table) == {"a": [cell]}
    split = read(tmp_path / "t.csv", text, list_delimiter={"space": " ", "comma": ","}[name])
    assert histories(split) == {"a": ["7", "8"]}
    assert note not in split.notes


def test_a_repeated_list_of_a_user_is_told_of_and_left_out_on_demand(tmp_path: Path) -> None:
    text = "user,item\na,x y\na,x y\nb,x y\n"
    table = read(tmp_path / "t.csv", text, list_delimiter=" ")
    assert histories(table) == {"a": ["x", "y", "x", "y"], "b": ["x", "y"]}
    assert any("1 rows that repeat a user's list" in note and "data.deduplicate=true" in note for note in table.notes)
    assert histories(read(tmp_path / "t.csv", text, list_delimiter=" ", deduplicate=True)) == {
        "a": ["x", "y"],
        "b": ["x", "y"],
    }


def test_histories_a_line(tmp_path: Path) -> None:
    text = "1 5 6 7\n2 5 6\n3 8 9 10 11\n"
    assert refusal(tmp_path / "h.txt", text).endswith("set data.history_lines=true")
    table = read(tmp_path / "h.txt", text, history_lines=True)
    assert histories(table) == {"1": ["5", "6", "7"], "2": ["5", "6"], "3": ["8", "9", "10", "11"]}
    assert "delimiter   lines of histories are split at blanks (another with data.delimiter)" in table.notes
    assert histories(read(tmp_path / "h.txt", "a,x y,z\nb,w\n", history_lines=True)) == {"a": ["x y", "z"], "b": ["w"]}


def test_lists_in_parquet(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(
        pa.table({"user": ["a", "b"], "items": [[3, 1], [2]], "times": [[5, 4], [1]]}), tmp_path / "t.parquet"
    )
    assert histories(read_interactions(tmp_path / "t.parquet")) == {"a": ["1", "3"], "b": ["2"]}


def test_lists_of_structs_in_parquet(tmp_path: Path) -> None:
    events = [[{"aid": 3, "ts": 5}, {"aid": 1, "ts": 4}], [], None]
    pyarrow.parquet.write_table(pa.table({"session": [7, 8, 9], "events": events}), tmp_path / "t.parquet")
    table = read_interactions(tmp_path / "t.parquet")
    assert histories(table) == {"7": ["1", "3"]}
    assert any("2 rows with an empty list of items" in note for note in table.notes)


def test_lists_of_different_lengths_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(pa.table({"user": ["a"], "items": [[3, 1]], "times": [[5]]}), path)
    with pytest.raises(UserError, match="2 items and 1 values of time in data row 1"):
        read_interactions(path)


# Tables without a header line


@pytest.mark.parametrize(
    ("text", "pasted", "expected"),
    [
        (  # Yoochoose's clicks
            "1,2014-04-07T10:54:09.868Z,214536500,0\n1,2014-04-07T10:51:09.277Z,214536502,0\n",
            "data.columns.user=1 data.columns.item=3 data.columns.time=2",
            {"1": ["214536502", "214536500"]},
        ),
        (  # Gowalla's check-ins
            "0\t2010-10-19T23:55:27Z\t30.2359\t-97.795\t22847\n0\t2010-10-18T22:17:43Z\t30.26\t-97.7\t420315\n",
            "data.columns.user=1 data.columns.item=5 data.columns.time=2",
            {"0": ["420315", "22847"]},
        ),
        (  # pairs as SASRec has them
            "1 1\n1 2\n1 3\n2 1\n2 7\n",
            "data.columns.user=1 data.columns.item=2",
            {"1": ["1", "2", "3"], "2": ["1", "7"]},
        ),
        ("u1::9::5::978300760\nu1::8::3::978300759\n", None, {"u1": ["8", "9"]}),
    ],
)
def test_the_error_proposes_places_that_work(
    text: str, pasted: str | None, expected: dict[str, list[str]], tmp_path: Path
) -> None:
    message = refusal(tmp_path / "t.dat", text)
    assert "has no header line, its first line is " in message
    proposed = message.partition("such as ")[2]
    if pasted is not None:
        assert proposed == pasted
    places = {role: int(place) for role, place in re.findall(r"data\.columns\.(\w+)=(\d)", proposed)}
    assert histories(read(tmp_path / "t.dat", text, **places)) == expected


def test_a_stray_quote_in_a_table_of_tabs(tmp_path: Path) -> None:
    """As in Last.fm's table of plays, whose error proposes the places and, after that, `data.quotes=false`."""
    text = (
        'user_1\t2009-05-04T23:08:57Z\tf1\tDeep Dish\t\tF "Me\n'
        'user_1\t2009-05-04T13:54:10Z\ta7\tArtist\tm\t"Composition\n'
        "user_2\t2009-05-04T13:52:04Z\ta7\tArtist\tm\tMc2 (Live)\n"
    )
    assert refusal(tmp_path / "t.tsv", text).endswith("data.columns.user=1 data.columns.item=3 data.columns.time=2")
    places = {"user": 1, "item": 3, "time": 2}
    assert refusal(tmp_path / "t.tsv", text, **places).endswith("data.quotes=false")
    assert histories(read(tmp_path / "t.tsv", text, quotes=False, **places)) == {
        "user_1": ["a7", "f1"],
        "user_2": ["a7"],
    }


def test_places_for_a_table_with_a_header_line_are_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path / "t.csv", "userId,movieId,timestamp\n1,2,3\n", user=1, item=2)
    assert message.endswith("set data.columns.user=userId data.columns.item=movieId")


# Ids


def test_whole_numbers_written_as_floats_are_whole_numbers(tmp_path: Path) -> None:
    table = read(tmp_path / "t.csv", "user,item\n1.0,37.0\n1.0,38.0\n2,5\n")
    assert histories(table) == {"1": ["37", "38"], "2": ["5"]}
    assert "ids         item: all are whole numbers, some written like 37.0, and are read like 37" in table.notes


@pytest.mark.parametrize("ids", [["37.0", "x"], ["37.5", "37.0"], ["007.0", "7.0"], ["37", "38"]])
def test_other_ids_stay_as_they_are(ids: list[str], tmp_path: Path) -> None:
    table = read(tmp_path / "t.csv", "user,item\n" + "".join(f"a,{item}\n" for item in ids))
    assert histories(table) == {"a": ids}
    assert not any("whole numbers" in note for note in table.notes)


def test_ids_find_their_other_form_but_their_own_first() -> None:
    known = pa.array(["37.0", "38", "38.0", "007", "Ab"])
    asked = pa.array(["37", "38", "38.0", "7", "ab", "37.00"])
    assert id_forms.index_in(asked, known).tolist() == [0, 1, 2, -1, -1, -1]
    assert id_forms.matched(asked, known) == "1 items are matched as numbers: 37 is known as 37.0"
    assert id_forms.near(pa.array(["7", "ab", "new"]), known) == (
        "; 2 of them are known in another form: 7 is known as 007, ab is known as Ab"
    )


@settings(deadline=None)
@given(st.lists(st.integers(-5, 5).map(str) | st.sampled_from(["1.0", "2.0", "x", "0.5"]), min_size=1, max_size=9))
def test_an_id_that_is_known_is_found_as_itself(ids: list[str]) -> None:
    known = pa.array(dict.fromkeys(ids), pa.string())
    assert id_forms.index_in(known, known).tolist() == list(range(len(known)))


# Times


def test_times_in_two_units_are_told_of(tmp_path: Path) -> None:
    table = read(tmp_path / "t.csv", "user,item,time\na,x,1600000000\na,y,1600000001000\n")
    assert (
        f"warning: {tmp_path / 't.csv'} has times in seconds and in milliseconds, whose order is wrong: write them in"
        " one unit" in table.notes
    )


@pytest.mark.parametrize(
    ("cells", "form"),
    [
        (("31.01.2024", "02.01.2024"), "%d.%m.%Y"),
        (("08 3, 2014", "07 30, 2014"), "%m %d, %Y"),
    ],
)
def test_dates_in_another_form_name_the_setting_that_reads_them(
    cells: tuple[str, str], form: str, tmp_path: Path
) -> None:
    text = f'user,item,time\na,x,"{cells[0]}"\na,y,"{cells[1]}"\n'
    assert f"set 'data.time_format={form}'" in refusal(tmp_path / "t.csv", text)
    assert histories(read(tmp_path / "t.csv", text, time_format=form)) == {"a": ["y", "x"]}


def test_dates_that_may_be_of_two_forms_name_both(tmp_path: Path) -> None:
    message = refusal(tmp_path / "t.csv", "user,item,time\na,x,01/02/2024\n")
    assert "set 'data.time_format=%m/%d/%Y' or 'data.time_format=%d/%m/%Y', whichever is meant" in message


# What is guessed is said


def test_the_order_of_the_rows_is_told_of(tmp_path: Path) -> None:
    assert IN_FILE_ORDER in read(tmp_path / "t.csv", "user,item\na,x\n").notes
    assert IN_FILE_ORDER not in read(tmp_path / "t.csv", "user,item\na,x\n", time=False).notes


def test_rows_that_come_twice_are_told_of(tmp_path: Path) -> None:
    text = "user,item,time\na,x,5\na,x,5\na,x,6\nb,x,5\n"
    note = "repeats     1 rows have user, item and time of the row before and count again (data.deduplicate=true leaves"
    assert any(line.startswith(note) for line in read(tmp_path / "t.csv", text).notes)


def test_a_second_column_that_may_have_the_role_is_named(tmp_path: Path) -> None:
    table = read(tmp_path / "t.csv", "user,item,timestamp,date\na,x,5,2024-01-01\n")
    assert "columns     timestamp as time (not date) (others with data.columns.user, item, time)" in table.notes
