"""The types of settings: numbers that may be written as text, and the strict section that every part of a configuration is."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from plait.config.sections.places import address, on_disk


def as_number(value: Any) -> Any:
    """Convert text such as "3e-4" to the number that it spells; return anything else unchanged."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _as_whole_number(value: Any) -> Any:
    """Convert 1e4 and "100" to int; return anything that is not a whole number unchanged."""
    number = as_number(value)
    return int(number) if isinstance(number, float) and number.is_integer() else value


Float = Annotated[float, BeforeValidator(as_number)]
"""A number, which may be written as text ("3e-4"); Int, Count (from 1) and Natural (from 0) are whole numbers, also as 1e4."""
Int = Annotated[int, BeforeValidator(_as_whole_number)]
Count = Annotated[Int, Field(ge=1)]
Natural = Annotated[Int, Field(ge=0)]
Rate = Annotated[Float, Field(gt=0)]
"""A number above 0; a Share is one from 0 to below 1."""
Folder = Annotated[str, AfterValidator(on_disk)]
"""A path on a disk, not an address such as s3://bucket/folder."""
Address = Annotated[str, AfterValidator(address)]
"""An address of a folder, such as s3://bucket/folder."""
Share = Annotated[Float, Field(ge=0, lt=1)]
Switch = Annotated[Literal["off", "auto", "on"], BeforeValidator(lambda value: {True: "on", False: "off"}.get(value, value))]  # YAML's


class Section(BaseModel):
    """Base of all sections of settings (pydantic classes): strict in types, frozen, and without unknown keys, infinities and NaN."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False, validate_by_alias=True, validate_by_name=True)
