"""What is freed stays with the process, once a command asks for that; importing the package does not."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PAGES_OF_A_STEP = """
import resource, sys
import numpy as np
import mpp
if sys.argv[1] == "kept":
    from mpp.memory import keep_freed_memory
    keep_freed_memory()

def step():  # several blocks, larger than any that glibc would keep by itself
    return sum(float(block[::512].sum()) for block in [np.ones(size) for size in (3_000_000, 9_000_000, 6_000_000)])

for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 5)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_a_step_has_no_page_faults_once_its_memory_is_kept():
    def faults(kept: str) -> float:
        run = subprocess.run([sys.executable, "-c", PAGES_OF_A_STEP, kept], capture_output=True, text=True, check=True)
        return float(run.stdout)

    assert faults("kept") < 10
    assert faults("as imported") > 50  # 144 MB are 35,000 pages, or 70 huge ones


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_the_commands_keep_theirs():
    code = (
        "import mpp.cli, mpp.memory\n"
        "called = []\n"
        "mpp.cli.keep_freed_memory = lambda: called.append(1)\n"
        "code = mpp.cli.run_command('pretrain', '', lambda recipe: 0, ['mean_color', '--quiet'])\n"
        "assert (code, called) == (0, [1]), (code, called)\n"
        "mpp.cli.run_command('pretrain', '', lambda recipe: 0, ['--help'])\n"
        "assert called == [1]\n"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
