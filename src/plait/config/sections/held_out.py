"""The share of data that is held out, as settings write it: "1%" or 0.01."""

from typing import Annotated, Any

from pydantic import BeforeValidator

from plait.config.sections.base import as_number


def fraction(share: str) -> float:
    """Return the number that a share spells: 0.05 of "5%"."""
    return float(share.removesuffix("%")) / 100


def _as_share(value: Any, whole: str = "list of sources or a share of the training data") -> str:
    """Convert "1%" and 0.01 to the text "1%". Raises ValueError for anything that is no share of a whole."""
    number = as_number(value.removesuffix("%")) if isinstance(value, str) else value
    if not isinstance(number, int | float):
        raise ValueError(f"must be a {whole}, such as 1%, got {value!r}")
    percent = number if isinstance(value, str) and value.endswith("%") else number * 100
    if not 0 < percent < 100:
        raise ValueError(f"holds out {value}: a share is more than 0% and less than 100%, such as 1%")
    return f"{percent:.12g}%"


def _as_own_share(value: Any) -> str:
    """Convert "5%" and 0.05 to the text "5%", and 0 to "0%". Raises ValueError for anything else."""
    return "0%" if value in (0, "0", "0%") else _as_share(value, "share of the source")


HeldOutShare = Annotated[str, BeforeValidator(_as_share)]
"""The share of each training source that `data.validation` holds out."""
OwnShare = Annotated[str, BeforeValidator(_as_own_share)]
"""The share that `held_out` of one source holds out of it, also none."""
