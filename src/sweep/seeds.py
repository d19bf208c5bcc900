"""What a sweep over seeds shows: mean and standard deviation of the figures, for each of the other settings."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..atomic_files import write_whole
from ..runs.folder import RunFolder

if TYPE_CHECKING:
    from .sweep import Record

SEED = "seed"


def summarize(records: Sequence["Record"], varied: Sequence[str], folder: Path) -> list[str]:
    """Lines of a table with a row for each setting that ran with several seeds; writes seeds.csv too.

    Figures are those of the last stage, the test if there is one. The deviation is that of a sample, by n - 1.

    Args:
        records: the runs of the sweep in `folder`. Those that failed or were stopped early do not count.
        varied: the keys in which they differ.

    Returns:
        Nothing if no setting ran to its end with two seeds.
    """
    import pandas as pd

    done = [record for record in records if record.state == "done"]
    if SEED not in varied or len(done) < 2:
        return []
    others = [key for key in varied if key != SEED]
    stages, figures = zip(*(_figures(folder / str(record.number)) for record in done), strict=True)
    settings = pd.DataFrame([{key: record.settings.get(key, "") for key in others} for record in done])
    groups = pd.DataFrame(figures).groupby([settings[key] for key in others] or [0] * len(done), sort=False)
    means, deviations, seeds = groups.mean(), groups.std(), groups.size()
    is_shown = seeds > 1
    if not is_shown.any():
        return []
    shown = means.map("{:.4f}".format) + " ± " + deviations.map("{:.4f}".format)
    exact = means.add_suffix("_mean").join(deviations.add_suffix("_deviation"))
    for table in (shown, exact):
        table.insert(0, "seeds", seeds)
    write_whole(folder / "seeds.csv", exact[is_shown].to_csv(index=bool(others)).encode())
    shown = shown[is_shown].reset_index(drop=not others)
    shown.columns = [name.upper() if name in means else name.rpartition(".")[2] for name in shown]
    stage = {"val": "validation"}.get(stages[0], stages[0])
    return [f"{stage}, mean ± standard deviation over seeds", shown.to_string(index=False), ""]


def _figures(folder: Path) -> tuple[str, dict[str, float]]:
    """The last stage of a run that has ended, and the model's figures there, such as hit@10."""
    stage, rows = list(json.loads(RunFolder(folder).metrics.read_text())["figures"].items())[-1]
    [own] = [row for name, row in rows.items() if name.startswith("BERT4Rec")]
    return stage, {name.removeprefix(f"{stage}_"): value for name, value in own.items()}
