"""The order of names with numbers in them."""

import re


def natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """Return a key for sorting names by which 2.png comes before 10.png; where numbers are equal, the text decides."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], name
