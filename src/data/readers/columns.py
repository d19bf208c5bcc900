"""Which column of a table is the user, the item, the time and the rating: by its name, or by a look at the cells.

What is certain is taken, and named in a note where the name is not the role's own. What the cells alone suggest is
never taken: it stands in the error, as settings ready to be pasted.
"""

import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from ...errors import UserError
from ..table import Reading, TableOptions
from . import times

# Small letters and digits alone, see `simplified`; the first name of a row that is there is taken.
KNOWN_NAMES = {
    role: names.split()
    for role, names in {
        "user": "user userid uid reviewerid customerid visitorid sessionid session username memberid accountid"
        " clientid",
        "item": "item itemid iid movieid productid parentasin asin articleid bookid trackid businessid videoid newsid"
        " aid songid gameid appid filmid recipeid artistid venueid locationid poiid contentid sku",
        "time": "time timestamp unixtimestamp unixreviewtime ts datetime date eventtime createdat tdat unixtime epoch"
        " eventtimestamp eventdate eventts dateadded createtime createdtime creationtime updatedat reviewtime"
        " reviewdate clicktime watchtime watchedat playedat viewedat visittime visitdate orderdate ordertime"
        " purchasedate purchasetime purchasedat transactiondate transactiontime interactiontime dt",
        "rating": "rating ratings overall stars score reviewscore",
    }.items()
}
LIST_NAMES = {  # of columns that hold lists
    "item": ["items", "itemids", "itemlist", "itemidlist", "itemsequence", "sequence", "history", "events"],
    "time": ["times", "timestamps", "timelist", "timestamplist"],
}
LISTS = {"space": re.compile(r"\w*\d\w*( \w*\d\w*)+"), "comma": re.compile(r"\[.*\]")}  # cells of several ids
NAMES_SHOWN = 12

Cells = Mapping[str, Sequence[str]]  # name of a column -> some of its cells


def simplified(name: str) -> str:
    """A column's name without capitals, blanks, `_`, and what RecBole writes behind a colon."""
    return re.sub(r"[\W_]+", "", re.sub(r":\w+$", "", name.strip().lower()))


def find(names: Sequence[str], role: str, options: TableOptions, lists: Collection[str] = ()) -> list[str]:
    """Names of the columns that may have this role, the best first; some only if they hold lists."""
    given = getattr(options, role)
    if given is not None:
        return [given] if given in names else []
    known = [simplified(name) for name in names]
    found = [names[known.index(alias)] for alias in KNOWN_NAMES[role] if alias in known]
    found += [name for name in names if name in lists and simplified(name) in LIST_NAMES.get(role, ())]
    if role == "time":
        found += [name for name in names if name.strip().lower().endswith("_dt") and name not in found]
    return found


def choose(cells: Cells, names: Sequence[str], reading: Reading, lists: Collection[str] = ()) -> dict[str, str]:
    """Name of the column in each role, with notes on it.

    Args:
        cells: every column that may have one, in order, with the first of its cells.
        names: all columns of the table.
        lists: which columns hold lists.

    Raises:
        UserError: if one is missing, stands twice or has two roles, or the time may be a column that no name tells.
    """
    path = reading.path
    shown = ", ".join([*cells][:NAMES_SHOWN]) + (", ..." if len(cells) > NAMES_SHOWN else "")
    chosen: dict[str, str] = {}
    missing = []
    for role in reading.roles:
        found, given = find([*cells], role, reading.options, lists), getattr(reading.options, role)
        if found and names.count(found[0]) > 1:
            raise UserError(f"{path} has the column {found[0]} more than once: keep one of them")
        if found:
            chosen[role] = found[0]
        elif given is not None:
            raise UserError(f"{path} has no column {given}, which data.columns.{role} names: found {shown}")
        elif role != "time":
            missing.append(role)
    others = {name: column for name, column in cells.items() if name not in chosen.values()}
    if missing:
        lacks = " and no column ".join(missing)
        way_out = proposal(others, missing, "time" in chosen, reading.content is not None)
        raise UserError(f"{path} has no column {lacks}: found {shown}; {way_out}")
    for name in chosen.values():
        roles = [role for role in chosen if chosen[role] == name]
        if len(roles) > 1:
            raise UserError(f"{path}: the column {name} cannot be both {roles[0]} and {roles[1]}: name another one")
    if "time" in reading.roles and "time" not in chosen:
        require_no_times(path, others, "column")
    _tell(chosen, names, reading)
    return chosen


def _tell(columns: Mapping[str, str], names: Sequence[str], reading: Reading) -> None:
    """Add notes if columns were recognised that are not called as the documentation calls them, or could be others."""
    told = []
    for role, name in columns.items():
        rivals = [other for other in find(names, role, reading.options)[1:] if other not in columns.values()]
        if name != role or rivals:
            told.append(f"{name} as {role}" + (f" (not {', '.join(rivals)})" if rivals else ""))
    if told:
        reading.notes.append(f"columns     {', '.join(told)} (others with data.columns.user, item, time)")
    rating = find(names, "rating", reading.options)
    if len(reading.ids) == 2 and reading.options.min_rating is None and rating:
        reading.notes.append(
            f"ratings     {rating[0]} is not used: every row counts (data.min_rating=4 leaves lower ones out)"
        )


def require_no_times(path: Path, others: Cells, what: str) -> None:
    """Refuse a table whose time stands in a column that no name tells, instead of taking the order of its rows."""
    found = [name for name, column in others.items() if times.look_like_times(column)]
    if found:
        ways = " or ".join(f"data.columns.time={shlex.quote(name)}" for name in found[:3])
        raise UserError(
            f"{path} has no known time column, but times in the {what} {found[0]}, such as"
            f" {next(cell for cell in others[found[0]] if cell)}: set {ways}, or data.columns.time=false to take the"
            " order of the rows"
        )


def proposal(others: Cells, missing: Sequence[str], has_time: bool, is_text: bool) -> str:
    """What to set where columns are not known by their names, ready to be pasted. A text may be without any names."""
    otherwise = "; or =1, =2, ... if there is no header line" if is_text else ""
    if pasted := _pasted(others, missing, has_time or len(missing) == 1):
        return f"say what they are called, such as {pasted}{otherwise}"
    if "rating" in missing:
        return "say what it is called with data.columns.rating=NAME, or leave data.min_rating out"
    return (
        "the header must name user, item and, if there is one, time; say what they are called with"
        f" data.columns.{missing[0]}=NAME{otherwise}"
    )


def places(rows: Sequence[Sequence[str]]) -> str | None:
    """Settings for a table without a header line, ready to be pasted; None if the first row may be a header line."""
    first = rows[0]
    if len(first) < 2 or not any(_is_value(cell) for cell in first):
        return None
    whole = [row for row in rows if len(row) == len(first)]
    cells = {str(place): column for place, column in enumerate(zip(*whole, strict=True), 1)}
    return _pasted(cells, ("user", "item"), has_time=False)


def _pasted(cells: Cells, missing: Sequence[str], has_time: bool) -> str | None:
    """Settings for roles that are missing, as the cells suggest them, and for lists; None if they suggest too few.

    The time is a column that looks like one, the ids are the first others that may be.
    """
    guessed: dict[str, str] = {}
    time = next((name for name, column in cells.items() if times.look_like_times(column)), None)
    may_be_ids = [name for name, column in cells.items() if name != time and _may_be_ids(column)]
    without_numbers = [name for name in may_be_ids if not _number_the_rows(cells[name])]
    if len(without_numbers) >= len({"user", "item"}.intersection(missing)):
        may_be_ids = without_numbers
    lists = {name: delimiter for name in may_be_ids if (delimiter := between(cells[name])) is not None}
    if "item" in missing and lists:
        guessed["item"] = next(iter(lists))
        may_be_ids = [name for name in may_be_ids if name not in lists]
    for role in ("user", "item"):
        if role in missing and role not in guessed and may_be_ids:
            guessed[role] = may_be_ids.pop(0)
    if not guessed.keys() >= set(missing):
        return None
    if time is not None and not has_time:
        guessed["time"] = time
    settings = [
        f"data.columns.{role}={shlex.quote(guessed[role])}" for role in ("user", "item", "time") if role in guessed
    ]
    if guessed.get("item") in lists:
        settings.append(f"data.list_delimiter={lists[guessed['item']]}")
    return " ".join(settings)


def _number_the_rows(column: Sequence[str]) -> bool:
    """Whether cells are 1, 2, 3, ..., while a user comes more than once somewhere."""
    return len(column) > 2 and list(column) == [str(number) for number in range(1, len(column) + 1)]


def between(column: Sequence[str]) -> str | None:
    """Name of the delimiter if every cell looks like a list of ids."""
    return next(
        (name for name, form in LISTS.items() if column and all(form.fullmatch(cell.strip()) for cell in column)), None
    )


def tell_of_lists(column: Sequence[str], reading: Reading) -> None:
    """Add a warning if cells of items are read as one id each, but look like lists."""
    delimiter = between(column) if reading.options.list_delimiter is None else None
    if delimiter is not None:
        cell = f"{column[0][:60]!r} as one item"
        reading.notes.append(f"warning: {reading.path} has {cell}: data.list_delimiter={delimiter} splits such cells")


def _may_be_ids(column: Sequence[str]) -> bool:
    """Whether no cell is empty or a fraction."""
    return bool(column) and all(cell.strip() and not re.fullmatch(r"-?\d*\.\d*[1-9]\d*", cell) for cell in column)


def _is_value(cell: str) -> bool:
    """Whether a cell is a number, a time or empty, as no name of a column is."""
    return re.fullmatch(r"\s*|-?\d+([.,]\d+)?", cell) is not None or times.look_like_times([cell])
