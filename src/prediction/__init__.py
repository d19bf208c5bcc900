"""Prediction: a checkpoint and histories to top-K tables, recommendations from Python, vectors, and ONNX.

In: settings, or a checkpoint's path. Out: a CSV or Parquet file, lists of ids, a model for other programs.
May import: data, models, kernels, runs, settings, the command line, and evaluation for `inference.evaluate`.
"""
