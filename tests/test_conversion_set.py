"""Converting everything that goes together: names, the checks before anything is written, loading in llama.cpp."""

import json
from pathlib import Path

import pytest
from checkpoints import EXAMPLE, write_checkpoint
from projector_checkpoints import write_multimodal
from typer.testing import CliRunner

import gemma4_quant as gq
from gemma4_quant.cli.app import app
from gemma4_quant.conversion_set import check_drafter, convert_all, forecast_all
from gemma4_quant.converters import load_model
from gemma4_quant.errors import CheckpointError, ConfigError, OutputError, UnmappedTensorsError
from gemma4_quant.inspection import inspect
from gemma4_quant.quantization import quantize
from gemma4_quant.runner.companions import Companions


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_multimodal(tmp_path_factory.mktemp("full") / "gemma-4-E2B-it", with_text=True)


@pytest.fixture(scope="module")
def drafter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("drafter") / "gemma-4-E2B-it-assistant", "assistant")


def files_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_all_writes_three_files_that_llama_cpp_loads_together(
    checkpoint: Path, drafter: Path, tmp_path: Path
) -> None:
    result = convert_all(checkpoint, tmp_path, drafter=drafter)
    assert files_in(tmp_path) == {
        "Gemma-4-E2B-It-6.3M-BF16.gguf",
        "mmproj-Gemma-4-E2B-It-BF16.gguf",
        "Gemma-4-E2B-It-Assistant-444K-BF16.gguf",
    }
    assert result.companions == Companions(sees=True, hears=True, drafts=True)
    assert result.projector is not None
    assert inspect(result.projector.path).architecture == "clip"


def test_a_name_and_a_type_hold_for_model_and_projector(checkpoint: Path, tmp_path: Path) -> None:
    result = gq.convert_all(checkpoint, tmp_path, "q8_0", model_name="Mine")
    assert files_in(tmp_path) == {"Mine-6.3M-Q8_0.gguf", "mmproj-Mine-Q8_0.gguf"}
    assert result.companions == Companions(sees=True, hears=True, drafts=False)


@pytest.mark.parametrize(("kind", "hears"), [("standardized", False), ("wide", True), ("unified", True)])
def test_projectors_of_every_kind_load(kind: str, hears: bool, tmp_path: Path) -> None:
    checkpoint = write_multimodal(tmp_path / "model", kind, with_text=True)
    (tmp_path / "out").mkdir()
    result = convert_all(checkpoint, tmp_path / "out", "f16")
    assert result.companions == Companions(sees=True, hears=hears, drafts=False)


def test_a_text_only_checkpoint_has_no_projector(tmp_path: Path) -> None:
    result = convert_all(EXAMPLE, tmp_path)
    assert result.projector is None
    assert len(files_in(tmp_path)) == 1
    with pytest.raises(ConfigError, match="text-only"):
        gq.convert_projector(EXAMPLE, tmp_path)


def test_a_drafter_of_another_model_stops_before_anything_is_written(checkpoint: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other", "unified_assistant")
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match="number of local key-value heads is 2 in the drafter, 1 in the target"):
        convert_all(checkpoint, tmp_path / "out", drafter=other)
    with pytest.raises(CheckpointError, match="no drafter"):
        convert_all(checkpoint, tmp_path / "out", drafter=EXAMPLE)
    assert files_in(tmp_path / "out") == set()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [({"head_dim": 32}, "width of local heads is 32"), ({"global_head_dim": 64}, "width of global heads is 64")],
)
def test_drafters_must_have_the_heads_of_their_target(
    changes: dict[str, int], complaint: str, checkpoint: Path, tmp_path: Path
) -> None:
    own = write_checkpoint(tmp_path / "drafter", "assistant", changes={**changes, "per_layer_config": None})
    with pytest.raises(CheckpointError, match=complaint):
        check_drafter(load_model(checkpoint), load_model(own))


def test_damaged_encoders_stop_before_anything_is_written(tmp_path: Path) -> None:
    checkpoint = write_multimodal(tmp_path / "model", with_text=True)
    config = json.loads((checkpoint / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] = 3
    (checkpoint / "config.json").write_text(json.dumps(config))
    (tmp_path / "out").mkdir()
    with pytest.raises(UnmappedTensorsError, match=r"layers\.2\.input_layernorm\.weight"):
        convert_all(checkpoint, tmp_path / "out")
    assert files_in(tmp_path / "out") == set()


def test_a_drafter_is_no_target_and_files_need_a_directory(drafter: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--drafter"):
        convert_all(drafter, tmp_path)
    with pytest.raises(OutputError, match="not a directory"):
        convert_all(drafter, tmp_path / "missing")


def test_a_projector_is_not_quantized(checkpoint: Path, tmp_path: Path) -> None:
    projector = gq.convert_projector(checkpoint, tmp_path).path
    with pytest.raises(gq.Gemma4QuantError, match="holds a projector"):
        quantize(projector)


def test_the_command_writes_a_projector_and_refuses_contradictions(checkpoint: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, ["convert", str(checkpoint), "--outfile", str(tmp_path), *arguments])
        return result.exit_code, result.stdout, result.stderr

    code, stdout, _ = run("--mmproj", "--dry-run")
    assert code == 0
    assert "mmproj-Gemma-4-E2B-It-BF16.gguf (1.06 MiB, 217 tensors)" in stdout
    assert files_in(tmp_path) == set()
    code, stdout, _ = run("--mmproj", "--json")
    assert code == 0
    assert json.loads(stdout)["types"] == {"F32": 178, "BF16": 39}
    code, stdout, _ = run("--all", "--exact-gelu")
    assert code == 0
    assert inspect(next(tmp_path.glob("mmproj-*.gguf"))).metadata["clip.use_gelu"] is True
    assert stdout.splitlines()[-1] == "llama.cpp loads what was written, for text, pictures, sound"
    for arguments in (
        ["--mmproj", "--all"],
        ["--mmproj", "--split-max-tensors", "5"],
        ["--drafter", str(tmp_path)],
        ["--exact-gelu"],
    ):
        code, _, stderr = run(*arguments)
        assert code == 2
        assert "Invalid value" in stderr


def test_a_forecast_names_the_files_and_sizes_that_are_then_written(
    checkpoint: Path, drafter: Path, tmp_path: Path
) -> None:
    forecast = forecast_all(checkpoint, tmp_path, drafter=drafter)
    assert files_in(tmp_path) == set()
    convert_all(checkpoint, tmp_path, drafter=drafter)
    written = {path: path.stat().st_size for path in tmp_path.iterdir()}
    expected = [file for output in forecast.outputs for file in output.files]
    assert {file.path: file.n_bytes for file in expected} == written
    assert forecast.disk_bytes == sum(written.values())
