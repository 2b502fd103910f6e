"""The package as installed: light start, no torch, one top-level name."""

import subprocess
import sys

IMPORT_EVERYTHING = """
import sys
sys.modules["torch"] = None
sys.modules["transformers"] = None
import importlib, pkgutil
import gemma4_quant, gemma4_quant.converters, gemma4_quant.calibration
names = []
for package in (gemma4_quant, gemma4_quant.converters, gemma4_quant.calibration):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
            names.append(module.name)
print(len(names))
"""

HEAVY = (
    "numpy",
    "numba",
    "gguf",
    "llama_cpp",
    "tokenizers",
    "jinja2",
    "huggingface_hub",
    "tqdm",
    "torch",
    "transformers",
)


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_imports_without_torch_and_transformers() -> None:
    assert int(run_python(IMPORT_EVERYTHING)) > 30


def test_help_loads_nothing_heavy() -> None:
    loaded = run_python(
        f"import sys\nimport gemma4_quant.cli.app\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert loaded.strip() == "[]"


def test_the_python_functions_stay_functions_after_use() -> None:
    names = ("convert", "calibrate", "quantize", "bench", "inspect", "verify", "download")
    code = f"import gemma4_quant as gq\nfor name in {names!r} * 2:\n    assert callable(getattr(gq, name)), name"
    run_python(code)
