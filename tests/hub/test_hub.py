"""Checkpoints by Hub id, from a Hub on this machine."""

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import write_checkpoint
from fake_hub import FakeHub, serving
from typer.testing import CliRunner

from gemma4_quant.cli.app import app
from gemma4_quant.converters import load_model
from gemma4_quant.errors import HubError, InputError, OutputError
from gemma4_quant.hub.downloads import HubOptions, download, resolve_checkpoint

ID = "google/gemma-4-tiny-it"


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a checkpoint as it is published: two shards, and much that no conversion reads."""
    directory = write_checkpoint(tmp_path_factory.mktemp("hub") / "c", "dense", n_shards=2)
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    return {
        **files,
        "README.md": b"---\nlicense: gemma\n---\n",
        "processor_config.json": b"{}",
        "additional_chat_templates/tools.jinja": b"{{ tools }}",
        "pytorch_model.bin": b"pickle" * 100,
        "model-old.safetensors": b"not in the index",
        "original/consolidated.00.pth": b"pth",
        "onnx/model.onnx": b"onnx",
        "gemma-Q4_K_M.gguf": b"GGUF",
        ".gitattributes": b"*",
    }


@pytest.fixture
def hub(content: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub that the process takes for the real one."""
    from huggingface_hub import constants

    older = {**content, "generation_config.json": b'{"top_k": 7}'}
    with serving(FakeHub({ID: {"main": content, "older": older}})) as fake:
        monkeypatch.setattr(constants, "ENDPOINT", fake.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", fake.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 64 << 10)
        yield fake


@pytest.fixture
def options(tmp_path: Path) -> HubOptions:
    return HubOptions(cache_dir=tmp_path / "cache")


class Recorder:
    """Progress that remembers."""

    def __init__(self) -> None:
        self.label, self.total, self.done = "", 0, 0

    def start(self, label: str, total: int, unit: str) -> None:
        assert unit == "B"
        self.label, self.total = label, total

    def advance(self, n: int) -> None:
        assert n > 0
        self.done += n

    def finish(self) -> None:
        """Need nothing."""


def test_only_what_a_conversion_reads_is_downloaded(hub: FakeHub, options: HubOptions) -> None:
    progress = Recorder()
    directory = resolve_checkpoint(ID, options, progress=progress)
    names = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
    assert names == {
        "README.md",
        "additional_chat_templates/tools.jinja",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert {name: (directory / name).read_bytes() for name in names} == {
        name: hub.files[ID]["main"][name] for name in names
    }
    # the index came before the rest was counted
    sizes = sum(len(hub.files[ID]["main"][name]) for name in names - {"model.safetensors.index.json"})
    assert progress.total == progress.done == sizes
    assert str(options.cache_dir) in progress.label
    assert "MiB free" in progress.label


@pytest.mark.usefixtures("hub")
def test_a_snapshot_is_a_checkpoint_named_after_its_repository(options: HubOptions) -> None:
    model = load_model(download(ID, options))
    assert model.metadata["general.name"].decode() == "Gemma 4 Tiny It"
    assert model.metadata["general.license"].decode() == "gemma"


def test_nothing_is_downloaded_twice(hub: FakeHub, options: HubOptions) -> None:
    first = download(ID, options)
    seen = dict(hub.downloads)
    progress = Recorder()
    assert download(ID, options, progress=progress) == first
    assert dict(hub.downloads) == seen
    assert progress.total == 0


def test_a_connection_that_breaks_off_is_taken_up_where_it_broke(hub: FakeHub, options: HubOptions) -> None:
    shard = "model-00002-of-00002.safetensors"
    hub.broken_after[shard] = 1_000_000
    directory = download(ID, options)
    assert (directory / shard).read_bytes() == hub.files[ID]["main"][shard]
    assert hub.downloads[shard] == 2
    assert len(hub.ranges) == 1
    assert 0 < int(hub.ranges[0].removeprefix("bytes=").rstrip("-")) <= 1_000_000


def test_after_a_failure_complete_files_are_kept(
    hub: FakeHub, options: HubOptions, content: dict[str, bytes]
) -> None:
    shard = "model-00002-of-00002.safetensors"
    hub.files[ID]["main"] = {**content, shard: content[shard][:-1]}
    tree = download(ID, options).parent.parent / "trees"
    for blob in (tree.parent / "blobs").iterdir():  # as if the run had been killed before the last shard was there
        if blob.stat().st_size == len(content[shard]) - 1:
            blob.unlink()
    shutil.rmtree(tree, ignore_errors=True)
    hub.files[ID]["main"] = content
    hub.downloads.clear()
    (tree.parent / "snapshots" / ("1" * 40) / shard).unlink()
    directory = download(ID, options)
    assert (directory / shard).read_bytes() == content[shard]
    assert set(hub.downloads) == {shard}


@pytest.mark.usefixtures("hub")
def test_a_revision_can_be_chosen(options: HubOptions) -> None:
    older = HubOptions("older", options.cache_dir)
    directory = download(ID, older)
    assert json.loads((directory / "generation_config.json").read_text()) == {"top_k": 7}
    with pytest.raises(HubError, match="no revision 'none'"):
        download(ID, HubOptions("none", options.cache_dir))


def test_without_network_the_cache_serves(
    hub: FakeHub, options: HubOptions, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from huggingface_hub import constants

    directory = download(ID, options)
    hub.is_down = True
    with caplog.at_level(logging.WARNING, logger="gemma4_quant"):
        assert download(ID, options) == directory
    assert "cannot be reached" in caplog.text
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert download(ID, options) == directory
    assert hub.downloads["config.json"] == 1


def test_absent_networks_and_offline_use_are_explained(options: HubOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(HubError, match=r"cannot be reached .*; connect to the network, or give the directory"):
        download(ID, options)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"not in the cache .*HF_HUB_OFFLINE"):
        download(ID, options)


def test_repositories_that_do_not_exist_or_are_gated_are_explained(hub: FakeHub, options: HubOptions) -> None:
    with pytest.raises(HubError, match=r"google/other does not exist here, .* the Hub has no google/other"):
        resolve_checkpoint("google/other", options)
    hub.gated.add(ID)
    with pytest.raises(HubError, match="gated: accept its licence"):
        download(ID, options)
    assert (download(ID, HubOptions(None, options.cache_dir, "hf_secret")) / "config.json").exists()
    assert hub.tokens == {"hf_secret"}


def test_a_repository_without_a_checkpoint_is_refused(hub: FakeHub, options: HubOptions) -> None:
    hub.files["someone/gemma-4-GGUF"] = {"main": {"README.md": b"", "gemma-Q4_K_M.gguf": b"GGUF"}}
    with pytest.raises(HubError, match=r"no config\.json"):
        download("someone/gemma-4-GGUF", options)


def test_an_index_cannot_fetch_files_from_elsewhere(
    hub: FakeHub, options: HubOptions, content: dict[str, bytes]
) -> None:
    hub.files[ID]["main"] = {
        **content,
        "model.safetensors.index.json": b'{"weight_map": {"x": "../../x.safetensors"}}',
    }
    with pytest.raises(InputError, match="only names of"):
        download(ID, options)


def test_a_full_disk_is_told_before_anything_is_downloaded(
    hub: FakeHub, options: HubOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemma4_quant.hub.downloads._free_bytes", lambda _: 1000)
    with pytest.raises(OutputError, match="1,000 are free"):
        download(ID, options)
    assert not any(name.startswith("model-") for name in hub.downloads)


def test_whatever_huggingface_hub_raises_becomes_one_error(
    options: HubOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the moon is in the way\nmore")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(
        HubError, match="cannot be downloaded: RuntimeError: the moon is in the way; run the command again"
    ):
        download(ID, options)


def test_a_path_that_exists_wins_over_an_id(
    hub: FakeHub, options: HubOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ID).mkdir(parents=True)
    assert resolve_checkpoint(ID, options) == Path(ID)
    assert not hub.downloads


@pytest.mark.parametrize(
    "name", ["missing", "/no/where", "./a/b", "../a", "a/b/c", "a/model.gguf", "~/model", "a b/c", "org/", "x" * 5000]
)
def test_what_is_no_id_does_not_exist(name: str, options: HubOptions) -> None:
    with pytest.raises(InputError, match="does not exist; give a checkpoint directory"):
        resolve_checkpoint(name, options)


def test_a_dry_run_downloads_nothing(hub: FakeHub, options: HubOptions) -> None:
    with pytest.raises(HubError, match=r"10 files, [\d,]+ bytes, must be downloaded"):
        download(ID, options, may_download=False)
    assert set(hub.downloads) == {"model.safetensors.index.json"}
    directory = download(ID, options)
    assert download(ID, options, may_download=False) == directory


def test_the_commands_take_an_id_and_write_here(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cache = ["--cache-dir", "cache", "--token", "hf_secret", "--revision", "older"]

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, [*arguments, *cache])
        assert result.exit_code == 0, result.output
        return result.stdout

    run("convert", ID)
    converted, *more = tmp_path.glob("*.gguf")
    assert converted.name.startswith("Gemma-4-Tiny-It-")
    assert more == []
    run("quantize", ID, "--type", "q8_0")
    quantized = next(path for path in tmp_path.glob("*.gguf") if path != converted)
    assert "agrees with" in run("verify", str(quantized), "--against", ID)
    assert json.loads(run("inspect", ID, "--json"))["kind"] == "checkpoint"
    assert hub.downloads["model-00001-of-00002.safetensors"] == 1
    assert hub.tokens == {"hf_secret"}
    assert not list((tmp_path / "cache").rglob("*.gguf"))


@pytest.mark.parametrize("variable", ["HF_HOME", "HF_HUB_CACHE"])
def test_the_environment_is_obeyed(hub: FakeHub, tmp_path: Path, variable: str) -> None:
    """As a person runs it: a process of its own, told by variables; then once more without the Hub."""
    environment = {**os.environ, "HF_ENDPOINT": hub.url, variable: str(tmp_path / "home"), "HF_TOKEN": "hf_own"}
    command = [sys.executable, "-m", "gemma4_quant", "inspect", ID]
    online = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert online.returncode == 0, online.stderr
    assert "download 10 files of google/gemma-4-tiny-it" in online.stderr
    assert hub.tokens == {"hf_own"}
    hub.is_down = True
    offline = {**environment, "HF_HUB_OFFLINE": "1"}
    again = subprocess.run(command, env=offline, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert again.stdout == online.stdout


def test_a_killed_download_goes_on_with_the_files_that_are_missing(hub: FakeHub, tmp_path: Path) -> None:
    slow, done = "model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors"
    hub.stalled.add(slow)
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "gemma4_quant", "inspect", ID]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    blobs = tmp_path / "home" / "hub" / "models--google--gemma-4-tiny-it" / "snapshots"
    deadline = time.monotonic() + 60
    while not (list(blobs.glob(f"*/{done}")) and hub.downloads[slow]) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert hub.downloads[slow] == 1
    hub.stalled.clear()
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert hub.downloads[done] == 1
    assert hub.downloads[slow] == 2
