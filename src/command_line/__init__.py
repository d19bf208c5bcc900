"""The command line: words to settings, `--help`, a look at the files that are named, and the end of every mistake.

In: what was typed. Out: a call of a script's task with a `Config`; errors as one line and an exit code.
May import: settings and runs; `cli.py` also sweep, `named_files.py` also training's search for what to resume.
"""
