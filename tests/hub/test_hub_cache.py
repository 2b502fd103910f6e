"""Snapshots in Hugging Face's cache: their names, their links, and where what is made of them goes."""

from pathlib import Path

import pytest

from gemma4_quant.errors import CheckpointError
from gemma4_quant.formats.checkpoint import find_checkpoint_file
from gemma4_quant.hub.cache import output_directory, repository_of

COMMIT = "3" * 40


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    directory = tmp_path / "hub" / "models--google--gemma-4--it" / "snapshots" / COMMIT
    directory.mkdir(parents=True)
    (directory.parent.parent / "blobs").mkdir()
    return directory


def test_a_snapshot_is_named_after_its_repository(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert repository_of(snapshot) == "google/gemma-4--it"
    assert output_directory(snapshot) == Path()
    monkeypatch.chdir(snapshot.parent)
    assert repository_of(Path(COMMIT)) == "google/gemma-4--it"
    for other in (snapshot.parent, snapshot.parent.parent, Path("/"), Path(), Path("snapshots/x")):
        assert repository_of(other) is None, other
        assert output_directory(other) == other


def test_links_of_a_snapshot_may_lead_to_its_blobs(snapshot: Path) -> None:
    blob = snapshot.parent.parent / "blobs" / "abc"
    blob.write_text("{}")
    (snapshot / "config.json").symlink_to(Path("../../blobs/abc"))
    assert find_checkpoint_file(snapshot, "config.json") == snapshot / "config.json"


def test_links_may_lead_to_the_blobs_that_repositories_share_where_there_are_such(snapshot: Path) -> None:
    store = snapshot.parents[2] / "blobs"
    (store / "ab").mkdir(parents=True)
    (store / "ab" / "abc").write_text("{}")
    (snapshot.parent.parent / "blobs" / "abc").symlink_to(Path("../../blobs/ab/abc"))
    (snapshot / "config.json").symlink_to(Path("../../blobs/abc"))
    with pytest.raises(CheckpointError, match="leads out of the checkpoint"):
        find_checkpoint_file(snapshot, "config.json")
    (store / ".huggingface-shared-blobs").write_text("1\n")
    assert find_checkpoint_file(snapshot, "config.json") == snapshot / "config.json"


def test_links_may_not_lead_elsewhere(snapshot: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("{}")
    (snapshot / "config.json").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match="leads out of the checkpoint"):
        find_checkpoint_file(snapshot, "config.json")
