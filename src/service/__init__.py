"""Service: recommendations over HTTP, for `inference.serve`.

In: a checkpoint, and requests with histories of original ids. Out: JSON with the best items, health and metrics.
May import: prediction, settings, runs. Only `server` can be imported without the extra `serve`.
"""
