"""Hub ids where a checkpoint is expected: the options that go with them, as `hf download` has them."""

import os
from pathlib import Path
from typing import Annotated

import typer

from gemma4_quant.cli.run import terminal_progress

Revision = Annotated[
    str | None,
    typer.Option("--revision", help="Branch, tag or commit of a Hub id.", show_default="main"),
]
CacheDir = Annotated[
    Path | None,
    typer.Option("--cache-dir", help="Where downloads are kept.", show_default="HF_HOME's"),
]
Token = Annotated[
    str | None,
    typer.Option("--token", help="Token for gated and private repositories.", show_default="HF_TOKEN"),
]


def local(
    source: Path,
    revision: str | None,
    cache_dir: Path | None,
    token: str | None,
    *,
    may_download: bool = True,
) -> Path:
    """Return `source` where it exists, else the directory that a Hub id is downloaded to; see resolve_checkpoint."""
    if os.path.lexists(source):
        return source
    from gemma4_quant.hub.downloads import HubOptions, resolve_checkpoint

    options = HubOptions(revision, cache_dir, token)
    return resolve_checkpoint(source, options, may_download=may_download, progress=terminal_progress())
