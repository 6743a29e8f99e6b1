"""One JSON object on standard output, for programs: what a verb's `--json` prints. Other lines go to standard error then (reporter.py)."""

import json
import logging
import math
from collections.abc import Mapping
from typing import Any

from plait.engine.monitoring.reporter import WHOLE

log = logging.getLogger(__name__)


def show_json(value: Mapping[str, Any]) -> None:
    """Print a verb's object. A number that is not finite, which JSON cannot say, is null."""
    log.info(json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False), extra=WHOLE)


def finite(value: Any) -> Any:
    """Return a value for JSON, in which a number that is not finite is None."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
