"""Names and other strings out of files, made safe to show: they may come from somebody who plays tricks."""

MAX_TEXT = 400
"""Strings from files are cut to so many characters wherever they are shown."""


def printable(text: str) -> str:
    """Replace what is not printable: control characters, bidi overrides, zero-width and odd spaces, surrogates.

    Terminals obey some of these, and others make a line read as something else than it is.
    """
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def clean(text: str) -> str:
    """Return a string from a file fit to be shown: printable, one line, of bounded length."""
    return cut(printable(" ".join(text.split())), MAX_TEXT)


def cut(text: str, length: int) -> str:
    """Shorten a text to so many characters in its middle: the end of a file's name tells its type."""
    if len(text) <= length:
        return text
    tail = (length - 1) * 2 // 3
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"
