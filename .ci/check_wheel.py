"""Fail unless a wheel installs `gemma4_quant` alone, with all of its packages, texts and its type marker."""

import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "gemma4_quant": "gemma4_quant",
    "converters": "gemma4_quant/converters",
    "calibration": "gemma4_quant/calibration",
}
"""Folders of the repository and where a wheel has them."""

SUFFIXES = {".py", ".jsonl", ".txt"}
"""Modules, and the texts of calibration and measurement."""


def expected() -> list[str]:
    """List the files that a wheel must have: all that stand in the packages' folders, modules and data alike."""
    return [
        f"{place}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, place in FOLDERS.items()
        for path in sorted((ROOT / folder).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    ]


def problems(wheel: Path) -> list[str]:
    """List what is wrong with the wheel's content."""
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    found = [f"unexpected top-level name {top}" for top in sorted(tops - {"gemma4_quant"})]
    return found + [f"{name} is missing" for name in expected() if name not in names]


if __name__ == "__main__":
    wrong = problems(Path(sys.argv[1]))
    sys.stdout.write("\n".join(wrong or [f"{sys.argv[1]} holds gemma4_quant and nothing else"]) + "\n")
    sys.exit(bool(wrong))
