"""Evaluation: ranks of held-out items to figures, intervals, comparisons, tables and the report.

In: a model and an evaluation set, or what training collected. Out: content of metrics.json, tables, report.html.
May import: data, models, runs, settings, and the command line for what to run next.
"""
