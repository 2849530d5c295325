"""The examples of docs/guides/nvflare.md, one of which is a run of NVFlare's simulator."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

pytest.importorskip("nvflare", reason="the extra nvflare is not installed")

GUIDE = (ROOT / "docs/guides/nvflare.md").read_text()
*FILES, TRAINER = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


def test_the_example_learns_beside_a_site_that_sends_nan() -> None:
    for block in FILES:
        Path(re.match(r"# (\w+\.py)\n", block)[1]).write_text(block)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "job.py"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=570)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert float(done.stdout.splitlines()[-1].removeprefix("accuracy ")) > 0.7
    left_out = r"site-(\d) in round (\d) is rejected: it has 2410 entries that are not finite"
    log = Path("simulation/digits/server/log.txt").read_text()
    assert re.findall(left_out, log) == [("3", "0"), ("3", "1"), ("3", "2")]


def test_the_trainer_of_the_guide_is_one() -> None:
    exec(compile(TRAINER, "nvflare.md", "exec"), {"__name__": "block"})
