"""The cache of compiled functions: found again, dropped when any source beside a function changes, never required."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba.core.caching import CacheImpl

from gemma4_quant.compiled import compiled, is_cached

_INNER = """
from gemma4_quant.compiled import compiled

@compiled()
def step(x: float) -> float:
    return x + {step}
"""

_OUTER = """
from inner import step
from gemma4_quant.compiled import compiled, is_cached

@compiled()
def twice(x: float) -> float:
    return step(step(x))

print(is_cached(twice), is_cached(twice, 1.0), is_cached(twice, 1), twice(1.0))
"""


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A folder of two modules, of which one calls the other's compiled function."""
    (tmp_path / "inner.py").write_text(_INNER.format(step=1))
    (tmp_path / "outer.py").write_text(_OUTER)
    return tmp_path


def _run(folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "outer.py"]
    return subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True).stdout


def test_a_function_is_loaded_from_the_cache_in_the_next_process(sources: Path) -> None:
    assert _run(sources) == "False False False 3.0\n"
    assert _run(sources) == "True True False 3.0\n"


def test_a_change_beside_a_function_is_noticed_though_times_and_sizes_stay(sources: Path) -> None:
    _run(sources)
    inner = sources / "inner.py"
    times = inner.stat()
    inner.write_text(_INNER.format(step=5))
    os.utime(inner, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert _run(sources) == "False False False 11.0\n"


def test_functions_compile_where_no_folder_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CacheImpl, "_locator_classes", [])

    @compiled()
    def double(x: float) -> float:
        return x + x

    assert double(np.float64(1.5)) == 3.0
    assert not is_cached(double)
