"""Checkpoints by Hub id, such as `google/gemma-4-E2B-it`, through huggingface_hub and its cache."""

import logging
import os
import re
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma4_quant.errors import Gemma4QuantError, HubError, InputError, OutputError
from gemma4_quant.formats.checkpoint import INDEX_NAME, indexed_shards
from gemma4_quant.progress import Progress, SilentProgress

if TYPE_CHECKING:
    from huggingface_hub import DryRunFileInfo

logger = logging.getLogger(__name__)

SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "processor_config.json",
    "preprocessor_config.json",
    "adapter_config.json",
    "README.md",
    INDEX_NAME,
)
"""What a conversion reads beside weights, and README.md for the model card's metadata."""

_UNINDEXED = ("model*.safetensors", "adapter_model.safetensors")

# What the Hub allows in the name of an owner and of a repository.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_FILE_SUFFIXES = (".gguf", ".json", ".safetensors", ".txt")

_FILES_AT_ONCE = 2
"""Each file comes over several connections where the Hub offers that; of a killed run only these begin anew."""

_OUT_OF_ORDER = 500
"""HTTP status from which on it is the Hub that has a problem."""

_SPARE_BYTES = 64 << 20
"""Left free on the disk: file systems and other programs need some."""


@dataclass(frozen=True)
class HubOptions:
    """How to get at the Hub.

    revision: branch, tag or commit; None for `main`. cache_dir: None for HF_HOME's. token: None for HF_TOKEN or the
    one that `hf auth login` has stored.
    """

    revision: str | None = None
    cache_dir: Path | None = None
    token: str | None = None


def resolve_checkpoint(
    source: Path | str,
    options: HubOptions | None = None,
    *,
    may_download: bool = True,
    progress: Progress | None = None,
) -> Path:
    """Return the path that `source` names: itself when it exists, else the cached snapshot of a Hub id.

    What the cache lacks is downloaded. Raises InputError when it is neither, else as `download` does.
    """
    path = Path(source)
    name = source if isinstance(source, str) else path.as_posix()
    if os.path.lexists(path):
        return path
    if not _HUB_ID.fullmatch(name) or name.endswith(_FILE_SUFFIXES):
        raise InputError(
            f"{source} does not exist; give a checkpoint directory, a GGUF file, or a Hub id such as "
            "google/gemma-4-E2B-it"
        )
    try:
        return download(name, options, may_download=may_download, progress=progress)
    except HubError as error:
        raise HubError(f"{source} does not exist here, and as a Hub id: {error}") from error


def download(
    repository: str,
    options: HubOptions | None = None,
    *,
    may_download: bool = True,
    progress: Progress | None = None,
) -> Path:
    """Bring the files of a checkpoint into the cache and return the directory of the snapshot.

    Only what a conversion reads is downloaded, files that are there already are not, and a dropped connection is
    taken up where it broke. Offline (HF_HUB_OFFLINE=1), or without a network, the cached snapshot is returned.
    may_download: whether to download at all, or to raise HubError saying how much there is to download.
    Raises HubError saying what to do when the repository or revision does not exist, wants a licence accepted, or
    cannot be reached and is not in the cache; OutputError when the disk has no room.
    """
    options, progress = options or HubOptions(), progress or SilentProgress()
    with _failures(repository, options):
        from huggingface_hub import constants, errors

        if constants.HF_HUB_OFFLINE:
            return _cached(repository, options)
        try:
            wanted = _wanted(repository, options)
        except errors.DryRunError as error:  # the Hub did not answer, or with an error, which is then the cause
            cause = error.__cause__
            if isinstance(cause, errors.HfHubHTTPError) and cause.response.status_code < _OUT_OF_ORDER:
                raise cause from error
            return _cached_instead(repository, options, cause or error)
        return _fetch(repository, options, wanted, progress, may_download=may_download)


def _wanted(repository: str, options: HubOptions) -> "list[DryRunFileInfo]":
    """Return the files that a conversion reads; raises HubError when the repository holds no checkpoint."""
    found = _files(repository, options, [*SMALL_FILES, *_UNINDEXED])
    names = {file.filename for file in found}
    if INDEX_NAME in names:
        found = _files(repository, options, [*SMALL_FILES, *map(escape, _indexed(repository, options))])
    if not names & {"config.json", "adapter_config.json"}:
        raise HubError(
            f"{repository} has no config.json: it holds no checkpoint; give the repository that it was made from"
        )
    return found


def _arguments(options: HubOptions) -> dict[str, Any]:
    return {
        "revision": options.revision,
        "cache_dir": options.cache_dir,
        "token": options.token,
        "library_name": "gemma4-quant",
    }


def _files(repository: str, options: HubOptions, patterns: Sequence[str]) -> "list[DryRunFileInfo]":
    """Return the files of a repository that match, with what a download of them would take."""
    from huggingface_hub import snapshot_download

    arguments = _arguments(options)
    files: list[DryRunFileInfo] = snapshot_download(
        repository, allow_patterns=list(patterns), dry_run=True, tqdm_class=_bars(SilentProgress()), **arguments
    )
    return files


def _fetch(
    repository: str,
    options: HubOptions,
    files: "Sequence[DryRunFileInfo]",
    progress: Progress,
    *,
    may_download: bool,
) -> Path:
    from huggingface_hub import snapshot_download

    missing = [file for file in files if file.will_download]
    n_bytes = sum(file.file_size or 0 for file in missing)
    cache = _cache_directory(options)
    free = _free_bytes(cache)
    if missing and not may_download:
        raise HubError(
            f"{repository} is not in the cache {cache}: {len(missing)} files, {n_bytes:,} bytes, must be downloaded"
        )
    if n_bytes + _SPARE_BYTES > free:
        raise OutputError(
            f"{repository} needs {n_bytes:,} bytes more, {free:,} are free in {cache}; free some space, or put the "
            "cache elsewhere (--cache-dir or HF_HOME)"
        )
    names = [escape(file.filename) for file in files]
    if not missing:
        progress = SilentProgress()
    progress.start(f"download {len(missing)} files of {repository}, {free >> 20:,} MiB free in {cache}", n_bytes, "B")
    try:
        path = snapshot_download(
            repository,
            allow_patterns=names,
            max_workers=_FILES_AT_ONCE,
            tqdm_class=_bars(progress),
            **_arguments(options),
        )
        return Path(path)
    finally:
        progress.finish()


def _indexed(repository: str, options: HubOptions) -> list[str]:
    """Return the shards that the repository's index names."""
    from huggingface_hub import hf_hub_download

    index = hf_hub_download(repository, INDEX_NAME, tqdm_class=_bars(SilentProgress()), **_arguments(options))
    return indexed_shards(Path(index))


def _cached(repository: str, options: HubOptions) -> Path:
    """Return the snapshot that is in the cache; what it lacks is for the reader of the checkpoint to say."""
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(repository, local_files_only=True, allow_patterns=["config.json"], **_arguments(options))
    )


def _cached_instead(repository: str, options: HubOptions, reason: BaseException) -> Path:
    """Return the snapshot in the cache, since the Hub cannot be reached; raises HubError when there is none."""
    from huggingface_hub import errors

    try:
        path = _cached(repository, options)
    except errors.LocalEntryNotFoundError:
        raise HubError(
            f"{repository} is not in the cache, and the Hub cannot be reached ({_first_line(reason)}); "
            "connect to the network, or give the directory of a checkpoint"
        ) from reason
    logger.warning("the Hub cannot be reached (%s); using %s", _first_line(reason), path)
    return path


def _bars(progress: Progress) -> type[Any]:
    """Return a class of progress bars for huggingface_hub, which draw nothing and pass bytes on to `progress`.

    It counts the same bytes in several bars, as they arrive and as they are written; the furthest one counts.
    """
    from tqdm import tqdm

    lock = threading.Lock()
    furthest = 0

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            self._counts_bytes = kwargs.get("unit") == "B"
            self._seen = 0
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> None:
            nonlocal furthest
            if not self._counts_bytes:
                return
            with lock:
                self._seen += int(n or 0)
                if self._seen > furthest:
                    progress.advance(self._seen - furthest)
                    furthest = self._seen

    return Bar


def _cache_directory(options: HubOptions) -> Path:
    from huggingface_hub import constants

    return (options.cache_dir or Path(constants.HF_HUB_CACHE)).expanduser().absolute()


def _free_bytes(directory: Path) -> int:
    """Return the free space where `directory` is or will be."""
    existing = next(place for place in (directory, *directory.parents) if place.exists())
    return shutil.disk_usage(existing).free


@contextmanager
def _failures(repository: str, options: HubOptions) -> Iterator[None]:
    """Turn what huggingface_hub raises into HubError with a way out."""
    from huggingface_hub import errors

    what = f"{repository}" + (f" at revision {options.revision}" if options.revision else "")
    try:
        yield
    except Gemma4QuantError:
        raise
    except errors.GatedRepoError as error:
        raise HubError(
            f"{repository} is gated: accept its licence on the Hub's page of it, then give a token of that account "
            "(--token, HF_TOKEN, or `hf auth login`)"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"the Hub has no {repository}, or it is private; check the name, and give a token if it is private "
            "(--token or HF_TOKEN)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"{repository} has no revision {options.revision!r}; leave --revision out for main") from error
    except errors.LocalEntryNotFoundError as error:
        raise HubError(
            f"{what} is not in the cache {_cache_directory(options)}, and the Hub is not asked (HF_HUB_OFFLINE); "
            "download it first, or give the directory of a checkpoint"
        ) from error
    except Exception as error:  # HTTP, TLS, proxies, file systems: huggingface_hub lets much through
        raise HubError(
            f"{what} cannot be downloaded: {_first_line(error)}; run the command again, complete files are kept"
        ) from error


def _first_line(error: BaseException) -> str:
    """Return what an error says, shortened."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
