"""Training: from a `Config` to checkpoints, logs, figures and a report.

In: settings. Out: a run folder. `train.py` is the wiring, to be read top to bottom.
May import: every other room but prediction.
"""
