"""The output folder of a run: what stands where, and how an earlier run makes room for a new one."""

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path


@dataclass(frozen=True)
class RunFolder:
    """Paths below `output_dir`."""

    root: Path

    @classmethod
    def at(cls, output_dir: str) -> "RunFolder":
        return cls(Path(output_dir).expanduser())

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def last(self) -> Path:
        """Checkpoint of the last epoch."""
        return self.checkpoints / "last.ckpt"

    @property
    def best(self) -> Path:
        """Checkpoint with the best `training.monitor_metric`; there is none without validation."""
        return self.checkpoints / "best.ckpt"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.json"

    @property
    def report(self) -> Path:
        """What `metrics` says, for people, with pictures."""
        return self.root / "report.html"

    @property
    def evaluation(self) -> Path:
        """Figures of `inference.evaluate=true`."""
        return self.root / "evaluation.json"

    @property
    def predictions(self) -> Path:
        return self.root / "predictions.csv"

    @property
    def sweep(self) -> Path:
        """Folder of a sweep, with one output folder a run in it."""
        return self.root / "sweep"

    def archive_sweep(self) -> Path | None:
        """As `archive`, for an earlier sweep."""
        return self._move_to_previous([self.sweep]) if self.sweep.exists() else None

    @property
    def cache(self) -> Path:
        """Prepared data of the last tables, which can be made again."""
        return self.root / "cache"

    def archive(self, results_only: bool = False) -> Path | None:
        """Move what an earlier run left to `previous/TIME/`, so that nothing of it is lost or mixed with the new run.

        Args:
            results_only: leave the checkpoints and logs for a run that goes on with them; figures and predictions are
                those of the model before.

        Returns:
            Where it went, or None if there was nothing.
        """
        kept = () if results_only else (self.checkpoints, self.logs)
        results = (
            self.metrics,
            self.report,
            self.evaluation,
            self.evaluation.with_suffix(".html"),
            self.predictions,
        )
        files = [path for path in (*kept, *results) if path.exists()]
        return self._move_to_previous(files) if files else None

    def _move_to_previous(self, files: list[Path]) -> Path:
        stamp = datetime.fromtimestamp(max(path.stat().st_mtime for path in files)).strftime("%Y-%m-%d_%H-%M-%S")
        previous = self.root / "previous"
        place = previous / stamp
        copies = 1
        while place.exists():
            copies += 1
            place = previous / f"{stamp}_{copies}"
        place.mkdir(parents=True)
        for path in files:
            os.replace(path, place / path.name)
        return place
