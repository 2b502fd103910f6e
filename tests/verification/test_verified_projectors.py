"""Projectors held against the checkpoints they were made from."""

from pathlib import Path

import numpy as np
import pytest
from projector_checkpoints import DIRECTORY_NAMES, KINDS, write_multimodal

from gemma4_quant.converters.projector import is_limit
from gemma4_quant.projector_conversion import convert_projector
from gemma4_quant.verification import verify


@pytest.mark.parametrize("kind", KINDS)
def test_projectors_are_what_their_checkpoints_make(kind: str, tmp_path: Path) -> None:
    directory = write_multimodal(tmp_path / DIRECTORY_NAMES[kind], kind)
    result = verify(convert_projector(directory, tmp_path).path, directory)
    assert result.is_ok, result.faults


def test_a_limit_that_has_changed_is_found(tmp_path: Path) -> None:
    directory = write_multimodal(tmp_path / "model", "wide")
    path = convert_projector(directory, tmp_path).path
    data = bytearray(path.read_bytes())
    at = data.index(np.float32(np.inf).tobytes(), len(data) // 2)
    data[at : at + 4] = np.float32(2).tobytes()
    path.write_bytes(data)
    subjects = {fault.subject for fault in verify(path, directory).faults}
    assert len(subjects) == 1
    assert is_limit(subjects.pop())
