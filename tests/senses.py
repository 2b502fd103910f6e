"""A picture and a sound that are the same on every machine, and which of their tokens are compared."""

import numpy as np
import numpy.typing as npt

SAMPLE_RATE = 16_000
N_COLUMNS, N_ROWS = 10, 7
"""Tokens of the picture across and down; mtmd scales pictures of fewer than 70 tokens up."""

PIXELS_PER_TOKEN = {"full": 48, "standardized": 48, "wide": 24, "unified": 12}
"""Side of the square of pixels that becomes one token, by kind of checkpoint."""

COMPARED = slice(None, None, 7)
"""Tokens whose features are recorded."""


def picture(pixels_per_token: int) -> npt.NDArray[np.uint8]:
    """Return (height, width, 3): waves of each colour, and a dark disc, in integer arithmetic."""
    height, width = N_ROWS * pixels_per_token, N_COLUMNS * pixels_per_token
    y, x = np.mgrid[:height, :width] * 480 // width
    red, green, blue = (x * 7 // 3 + y) % 256, (x * y // 97) % 256, (3 * y + 40) % 256
    colours = np.stack([red, green, blue], axis=-1)
    colours[(x - 240) ** 2 + (y - 160) ** 2 < 90**2] //= 4
    return colours.astype(np.uint8)


def sound() -> npt.NDArray[np.float32]:
    """Return three seconds: a tone that rises, a lower one, and noise from integer arithmetic."""
    n = np.arange(3 * SAMPLE_RATE)
    time = n / SAMPLE_RATE
    noise = (n * 7919 % 1009) / 1009 - 0.5
    tones = 0.4 * np.sin(2 * np.pi * (200 + 300 * time) * time) + 0.2 * np.sin(2 * np.pi * 90 * time)
    return (tones + 0.05 * noise).astype(np.float32)
