"""The speed of `mpp` next to the libraries that a user would otherwise take: `python -m tests.benchmarks.peers --help`.

`__main__.py` is the command. `environments.py` makes an environment a library; `worker.py` is the process that is kept
alive in it and takes steps when it is told to; `whole_run.py` trains from JPEGs on disk; `measure.py` has both measured
in turn; `tables.py` writes the page. `libraries/` has one file a library: its own public names, its own defaults.
"""
