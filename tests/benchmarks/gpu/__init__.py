"""What has to be known on one GPU, by one command: `python -m tests.benchmarks.gpu OUT`.

It is made for an H100 or H200 that is there for minutes only. The work is in pieces, most valuable first; each piece is
a list of cases. Every case is written to `OUT/PIECE.json` when it ends, so that the same command, given again, does
what is missing, and an interrupt loses one case. A call ends before `--seconds` (540) are over. `OUT/report.md` is a
summary of all that was measured so far.

    python -m tests.benchmarks.gpu OUT              all that is not finished
    python -m tests.benchmarks.gpu OUT --list       the pieces, their estimated seconds, what is finished
    python -m tests.benchmarks.gpu OUT --piece NAME one piece; may be given several times
    python -m tests.benchmarks.gpu OUT --retry      failed cases once more
    python -m tests.benchmarks.gpu OUT --report     only write the summary
    python -m tests.benchmarks.gpu OUT --rehearse   the same code on the CPU, with tiny sizes

Images, runs and logs go to OUT/work, or to the folder of `--work`; they are made anew where they are missing. A machine
that keeps nothing needs only the JSON files: bring them back, and put them into OUT before the next call there. No
network is needed; at the start the command lists the Python packages that are missing, and how to bring them. What
needs PyTorch alone is measured without them.

Exit codes: 0, all is finished; 1, something failed (the traceback is in its JSON file); 2, the command is wrong or
nothing can run here; 3, nothing failed, and cases are left for another call; 130 and 143, stopped by a signal.
"""
