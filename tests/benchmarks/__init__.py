"""Measurements, not part of the tests: `python -m tests.benchmarks.NAME --data CSV`."""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "5000")  # as the scripts do; here, since it has to be before torch is there
