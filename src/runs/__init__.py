"""Runs: what training, evaluation and prediction share around the model.

In: a folder, a checkpoint, a device. Out: paths and locks, weights and vocabulary, descriptions, progress bars.
May import: settings, models, kernels and the vocabulary of data.
"""
