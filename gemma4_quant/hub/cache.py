"""The layout of Hugging Face's cache: `models--ORG--NAME/snapshots/COMMIT` consists of links into `blobs`."""

from pathlib import Path

_PREFIX = "models--"
_SHARED_MARKER = ".huggingface-shared-blobs"


def repository_of(directory: Path) -> str | None:
    """Return the Hub id, such as `google/gemma-4-E2B-it`, whose snapshot in the cache a directory is, else None."""
    snapshots = directory.absolute().parent
    folder = snapshots.parent.name
    if snapshots.name != "snapshots" or not folder.startswith(_PREFIX):
        return None
    return folder.removeprefix(_PREFIX).replace("--", "/", 1)


def blob_folders(directory: Path) -> tuple[Path, ...]:
    """Return where the links of a snapshot may lead: the repository's blobs, and those that repositories share."""
    root = directory.resolve()
    if root.parent.name != "snapshots":
        return ()
    repository = root.parent.parent
    shared = repository.parent / "blobs"
    return (repository / "blobs", *((shared,) if (shared / _SHARED_MARKER).is_file() else ()))


def output_directory(checkpoint: Path) -> Path:
    """Return where what is made of a checkpoint goes by default: into it, but never into the cache."""
    return checkpoint if repository_of(checkpoint) is None else Path()
