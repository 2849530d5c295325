"""A framework that is not installed is one sentence, and nothing else of the package needs it."""

from __future__ import annotations

import subprocess
import sys

import pytest

EXTRAS = {"flower": ("flwr", "Flower"), "nvflare": ("nvflare", "NVIDIA FLARE")}


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_that_is_not_installed_is_one_sentence(extra: str) -> None:
    module, name = EXTRAS[extra]
    code = f"import sys; sys.modules['{module}'] = None; import leadfl_pl.interop.{extra}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip().splitlines()[-1] == (
        f"ModuleNotFoundError: leadfl_pl.interop.{extra} needs {name}: "
        f"pip install 'leadfl_pl[{extra}]'"
    )
