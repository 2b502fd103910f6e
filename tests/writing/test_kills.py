"""Real kills: whatever the moment, a next run goes on, encodes nothing twice, and ends with the same bytes."""

import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from places import EXAMPLE

import gemma4_quant as gq
from gemma4_quant.codecs.base import Effort
from gemma4_quant.errors import OutputError
from gemma4_quant.formats.shards import SplitLimits
from gemma4_quant.writing import partial_file, writer
from gemma4_quant.writing.destination import partial_of
from gemma4_quant.writing.output import Output
from gemma4_quant.writing.tiles import Destination, Tile

SCRIPT = Path(__file__).parents[1] / "killable.py"
MAX_RUNS = 12


class Runs:
    """Starts the same run again and again in a directory."""

    def __init__(self, directory: Path, arguments: Sequence[str], n_threads: Sequence[int] = ()) -> None:
        self.directory = directory
        self.log = directory.parent / f"{directory.name}.log"
        self._arguments = list(arguments)
        self._n_threads = list(n_threads)
        directory.mkdir()

    def start(self, seconds_per_tile: float) -> "subprocess.Popen[bytes]":
        """Start a run with an empty log."""
        self.log.write_bytes(b"")
        threads = [str(self._n_threads.pop(0))] if self._n_threads else []
        command = [sys.executable, SCRIPT, self.log, str(seconds_per_tile), *self._arguments, *threads]
        return subprocess.Popen(command, cwd=self.directory, stderr=subprocess.PIPE)

    def tiles(self) -> Counter[str]:
        """Return how many tiles of each tensor the last run has written."""
        return Counter(self.log.read_text().split("\n")[:-1])

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.directory.iterdir()}

    def done(self) -> set[str]:
        """Return the tensors that every journal of the directory has as done."""
        journals = [path.read_text().split("\n")[1:-1] for path in self.directory.glob("*.journal")]
        return set.intersection(*map(set, journals)) if journals else set()


def kill_until_done(runs: Runs, expected: dict[str, bytes], how: signal.Signals, seed: int) -> int:
    """Kill runs after a random number of tiles until one ends by itself; return how many were killed midway."""
    chance = random.Random(seed)
    done = set[str]()
    for n_killed in range(MAX_RUNS):
        is_last = n_killed >= 2
        process = runs.start(0 if is_last else 0.01)
        target = chance.randint(1, 60)
        while process.poll() is None and (is_last or sum(runs.tiles().values()) < target):
            time.sleep(0.005)
        process.send_signal(how)
        error = process.communicate()[1].decode()
        encoded_twice = {f"done {name}" for name in runs.tiles()} & done
        assert not encoded_twice
        check_whole_or_absent(runs, expected)
        if process.returncode == 0:
            return n_killed
        assert process.returncode in (-how, 1, 130), error
        done = runs.done()
    raise AssertionError("the runs never came to an end")


def check_whole_or_absent(runs: Runs, expected: dict[str, bytes]) -> None:
    for path in runs.directory.iterdir():
        if path.suffix == ".gguf":
            assert path.read_bytes() == expected[path.name]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_conversion_to_shards_goes_on(how: signal.Signals, tmp_path: Path) -> None:
    arguments = ["convert", str(EXAMPLE), "out.gguf", "40"]
    whole = Runs(tmp_path / "whole", arguments)
    assert whole.start(0).wait() == 0
    expected = whole.files()
    assert sorted(expected) == [f"out-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    runs = Runs(tmp_path / "killed", arguments)
    assert kill_until_done(runs, expected, how, seed=how) >= 2
    assert runs.files() == expected


def test_a_killed_run_of_several_types_goes_on_with_any_number_of_threads(example_bf16: Path, tmp_path: Path) -> None:
    arguments = ["quantize", str(example_bf16), "out-{ftype}.gguf", "Q4_0,Q8_0"]
    whole = Runs(tmp_path / "whole", arguments, [2])
    assert whole.start(0).wait() == 0
    expected = whole.files()
    assert len(expected) == 4
    runs = Runs(tmp_path / "killed", arguments, [1, 3, 2, 1, 2, 3, 1, 2, 3, 1, 2, 3])
    assert kill_until_done(runs, expected, signal.SIGKILL, seed=1) >= 2
    assert runs.files() == expected


def test_a_run_killed_between_renames_is_finished_without_encoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: Output) -> None:
        for path in self.paths[1:]:
            partial_of(path).replace(path)
        raise KeyboardInterrupt

    def convert() -> dict[str, bytes]:
        gq.convert(EXAMPLE, tmp_path / "out.gguf", "bf16", split=SplitLimits(None, 40))
        return {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    expected = convert()
    (tmp_path / "out-00001-of-00003.gguf").unlink()
    with monkeypatch.context() as patched:
        patched.setattr(Output, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            convert()
    assert not (tmp_path / "out-00001-of-00003.gguf").exists()
    monkeypatch.setattr(writer, "write_tile", None)
    assert convert() == expected


def test_a_limit_on_the_size_of_files_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    """As on a file system with a largest size of files."""
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20));"
        "from gemma4_quant.cli.main import main; main()"
    )
    command = [sys.executable, "-c", limited, "convert", str(EXAMPLE), "--outfile", str(tmp_path / "out.gguf")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "File too large" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB, where mounting is allowed."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mounted = shutil.which("mount") and mount("-t", "tmpfs", "-o", "size=8m", "tmpfs", str(directory))
    if not mounted:
        pytest.skip("mounting a small file system is not permitted here")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


def mount(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], stderr=subprocess.DEVNULL, check=False).returncode == 0


def test_a_disk_that_is_too_small_is_noticed_where_space_can_be_reserved(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(small_disk)._replace(free=1 << 40)  # another program fills it after we looked
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match=r"no space left.*free some space"):
        gq.convert(EXAMPLE, small_disk / "out.gguf", "bf16")
    assert not list(small_disk.iterdir())


def test_a_run_on_a_full_disk_goes_on_when_there_is_space(
    small_disk: Path, example_bf16: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where space cannot be reserved, the disk fills up in the middle."""
    usage = shutil.disk_usage(small_disk)._replace(free=1 << 40)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(partial_file, "_reserve", lambda *_: None)
    output = small_disk / "out.gguf"
    with pytest.raises(OutputError, match=r"no space left.*what is done is kept"):
        gq.convert(EXAMPLE, output, "bf16")
    assert {path.name for path in small_disk.iterdir()} == {"out.gguf.partial", "out.gguf.partial.journal"}
    done = set(small_disk.joinpath("out.gguf.partial.journal").read_text().split("\n")[1:-1])
    assert mount("-o", "remount,size=32m", str(small_disk))
    written: set[str] = set()
    write = writer.write_tile

    def logged(tile: Tile, destinations: Sequence[Destination], effort: Effort) -> int:
        written.add(f"done {tile.tensor.name}")
        return write(tile, destinations, effort)

    monkeypatch.setattr(writer, "write_tile", logged)
    gq.convert(EXAMPLE, output, "bf16")
    assert done
    assert not done & written
    assert output.read_bytes() == example_bf16.read_bytes()
