"""A look at the files that the settings name, before anything slow is imported: a wrong path shows within a second.

What is in the files is checked by those who read them.
"""

import difflib
import glob
import re
from pathlib import Path

from ..errors import UserError
from ..runs.folder import RunFolder, is_first_process
from ..settings import Config
from ..training import resume
from . import cli

TABLE = "name yours with data.data_dir=FOLDER data.data_file=FILE, or try the built-in sample with experiment=sample"
SHOWN = 5  # names of files


def require_for_training(config: Config) -> None:
    """See that a training run has the files that it begins with.

    Raises:
        UserError: that names the first one that is missing, and the nearest one that is there.
    """
    _require_table(config)
    _require_targets(config)
    _require_titles(config)
    resumes = resume.find(config.training.resume, RunFolder.at(config.output_dir)) is not None
    init_from = config.training.init_from
    # The first process alone reads it, and may have moved it to previous/ by the time the others begin.
    if init_from is not None and not resumes and is_first_process():
        way_out = "name a last.ckpt or best.ckpt, or train from the beginning with training.init_from=null"
        _require_file(Path(init_from).expanduser(), way_out, resume.ORIGIN, what="checkpoint")


def require_for_prediction(config: Config) -> None:
    """See that a prediction, an evaluation, an export or vectors have the files that it begins with.

    Raises:
        UserError: as above.
    """
    settings = config.inference
    way_out = f"train first with {cli.command('train')}, or name one with inference.checkpoint_path=FILE"
    for checkpoint in settings.checkpoints(RunFolder.at(config.output_dir).last):
        _require_file(checkpoint, way_out, what="checkpoint")
    if settings.history is not None:
        _require_source(Path(settings.history).expanduser(), "name a table of histories with it", "inference.history")
    elif settings.needs_histories:
        _require_table(config)
    if settings.evaluate:
        _require_targets(config)
        _require_titles(config)
    for key, column in (("users", "user"), ("candidates", "item"), ("exclude", "item"), ("similar", "item")):
        path = getattr(settings, key)
        if path is not None:
            way_out = f"give a table with the column {column}, or a .txt with one id a line"
            _require_file(Path(path).expanduser(), way_out, f"inference.{key}")


def _require_table(config: Config) -> None:
    data = config.data
    if data.download or data.generate_sample:  # it is made
        return
    folder = Path(data.data_dir).expanduser()
    if folder.is_file():
        raise UserError(
            f"data.data_dir={data.data_dir} is a file: write data.data_dir={folder.parent} data.data_file={folder.name}"
        )
    _require_source(data.path, TABLE)


def _require_targets(config: Config) -> None:
    """The tables of data.split=files."""
    files = config.data.split_options
    for name in ("validation", "test"):
        if files[name] is not None:
            _require_source(files[name], "it is looked for in data.data_dir", f"data.{name}_file")


def _require_titles(config: Config) -> None:
    if config.data.items_file is not None:
        titles = Path(config.data.items_file).expanduser()
        _require_file(titles, "name a CSV with the columns item and title with data.items_file=FILE")


def _require_source(path: Path, way_out: str, key: str = "") -> None:
    """See that there is a file, or a folder with files, or files that match a pattern."""
    if _is_there(path) or any(Path(match).is_file() for match in glob.glob(str(path))):
        return
    if not path.is_dir():
        _require_file(path, way_out, key)
    elif not any(file.is_file() and file.name[0] not in "._" for file in path.iterdir()):
        raise UserError(f"there is no file in the folder {path}: {way_out}")


def _require_file(path: Path, way_out: str, key: str = "", what: str = "file") -> None:
    if not _is_there(path):
        raise UserError((f"{key}: " if key else "") + f"{_missing(what, path)}: {way_out}")


def _is_there(path: Path) -> bool:
    """Whether it is a file, or lies where nobody may look, which whoever reads it will say."""
    try:
        return path.is_file()
    except PermissionError:
        return True


def _missing(what: str, path: Path) -> str:
    """What is not there, a file or already its folder, and the nearest that is."""
    absent = path
    while not absent.parent.exists():
        absent = absent.parent
    if absent != path and what == "file":
        message = f"there is no folder {absent}, so no file {path}"
    else:
        message = f"there is no {what} {path}"
    try:
        beside = sorted(entry.name for entry in absent.parent.iterdir() if not entry.name.startswith("."))
    except OSError:
        return message
    plain = {_plain(name): name for name in reversed(beside)}
    near = difflib.get_close_matches(_plain(absent.name), plain, n=1, cutoff=0.75)
    if near:
        return f"{message} (did you mean {absent.with_name(plain[near[0]])}?)"
    files = [name for name in beside if Path(name).suffix == path.suffix] if absent == path else []
    if files and what == "file":
        more = ", ..." if len(files) > SHOWN else ""
        return f"{message} ({path.parent} has {', '.join(files[:SHOWN])}{more})"
    return message


def _plain(name: str) -> str:
    """A name without what people mix up: case, hyphens, underscores, blanks."""
    return re.sub(r"[-_ ]", "", name.lower())
