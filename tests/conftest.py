"""Models that several tests run: the example and a random mixture of experts, converted by the package itself."""

import os
from pathlib import Path

# Before libgomp is loaded: on a machine with other work, llama.cpp's threads else spend most of their time spinning.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import hypothesis
import pytest
from checkpoints import EXAMPLE, write_checkpoint

from gemma4_quant.conversion import convert

# The same examples in every run, however busy the machine. To look for new ones: `pytest
# --hypothesis-profile=default`.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")

_LONGEST = ("test_hostile_files", "test_random_damage", "test_quantization", "test_encode", "test_calibration_runs")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take minutes, or one process would be left with them at the end."""
    items.sort(key=lambda item: item.path.stem not in _LONGEST)


@pytest.fixture(scope="session")
def example_bf16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example checkpoint as a BF16 GGUF file."""
    return convert(EXAMPLE, outfile=tmp_path_factory.mktemp("gguf") / "example-BF16.gguf", out_type="bf16").path


@pytest.fixture(scope="session")
def example_f32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example checkpoint as an F32 GGUF file."""
    return convert(EXAMPLE, outfile=tmp_path_factory.mktemp("gguf") / "example-F32.gguf", out_type="f32").path


@pytest.fixture(scope="session")
def moe_bf16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random mixture of experts as a BF16 GGUF file."""
    root = tmp_path_factory.mktemp("moe")
    return convert(write_checkpoint(root / "moe", "moe"), outfile=root / "moe-BF16.gguf", out_type="bf16").path
