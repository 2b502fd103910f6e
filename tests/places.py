"""Where tests find what is recorded and shipped."""

from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"
"""Facts recorded from other tools."""

EXAMPLE = Path(__file__).parents[1] / "examples" / "tiny-gemma4-e"
"""The checkpoint that ships with the sources."""
