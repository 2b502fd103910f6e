"""Record what llama-bench prints: run `python tests/recording/record_llama_bench.py LLAMA_BENCH MODEL.gguf`.

MODEL.gguf: the example in BF16. Writes tests/golden/llama-bench.json: arguments and standard output of a run in each
format, for the defaults, for many settings, and for ranges.
"""

import json
import subprocess
import sys
from pathlib import Path

GOLDEN = Path(__file__).parents[1] / "golden" / "llama-bench.json"

DEFAULTS = ["-p", "16", "-n", "2", "-r", "2", "-t", "1"]
SETTINGS = [
    *("-p", "8,16", "-n", "2", "-pg", "8,2", "-d", "0,4", "-r", "1", "-b", "64,2048", "-ub", "8"),
    *("-ctk", "q8_0", "-ctv", "q8_0", "-fa", "on", "-t", "1", "-dev", "none", "-ngl", "0"),
]
RANGES = [
    "-p",
    "1-9+4,2-8*2",
    "-n",
    "0",
    "-pg",
    "3,0",
    "-pg",
    "0,0",
    "-pg",
    "0,4",
    "-d",
    "0-6+3",
    "-r",
    "1",
    "-t",
    "1",
]


def main() -> None:
    """Run llama-bench and write the recording."""
    program, model = sys.argv[1:]

    def run(arguments: list[str], output: str) -> str:
        command = [program, "-m", Path(model).name, *arguments, "-o", output]
        return subprocess.run(command, cwd=Path(model).parent, check=True, capture_output=True, text=True).stdout

    recorded = {
        "defaults": {
            "arguments": DEFAULTS,
            **{form: run(DEFAULTS, form) for form in ("md", "csv", "json", "jsonl", "sql")},
        },
        "settings": {"arguments": SETTINGS, **{form: run(SETTINGS, form) for form in ("md", "csv")}},
        "ranges": {"arguments": RANGES, "md": run(RANGES, "md")},
    }
    GOLDEN.write_text(json.dumps(recorded, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
