"""Sweeps: many training runs, each in a folder of its own, and what they show together.

In: a task and overrides with several values. Out: run folders, a closing table, plots; trials for Optuna.
May import: settings, runs, the words of the command line, and the plots of evaluation.
"""
