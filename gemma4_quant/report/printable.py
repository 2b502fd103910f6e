"""Names and other strings out of files, made safe to show: they may come from somebody who plays tricks."""


def printable(text: str) -> str:
    """Replace what is not printable: control characters, bidi overrides, zero-width and odd spaces, surrogates.

    Terminals obey some of these, and others make a line read as something else than it is.
    """
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
