"""Fail unless a wheel installs `gemma4_quant` alone, with all of its packages and its type marker."""

import sys
import zipfile
from pathlib import Path

EXPECTED = (
    "gemma4_quant/__init__.py",
    "gemma4_quant/py.typed",
    "gemma4_quant/cli/app.py",
    "gemma4_quant/converters/__init__.py",
    "gemma4_quant/calibration/__init__.py",
)


def problems(wheel: Path) -> list[str]:
    """List what is wrong with the wheel's content."""
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    found = [f"unexpected top-level name {top}" for top in sorted(tops - {"gemma4_quant"})]
    return found + [f"{name} is missing" for name in EXPECTED if name not in names]


if __name__ == "__main__":
    wrong = problems(Path(sys.argv[1]))
    sys.stdout.write("\n".join(wrong or [f"{sys.argv[1]} holds gemma4_quant and nothing else"]) + "\n")
    sys.exit(bool(wrong))
