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
    def predictions(self) -> Path:
        return self.root / "predictions.csv"

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
        files = [path for path in (*kept, self.metrics, self.predictions) if path.exists()]
        if not files:
            return None
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
