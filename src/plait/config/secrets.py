"""Detection of secrets in settings. They belong in the environment; no file and no command line may hold one.

An error message never repeats the value.
"""

import re

from plait.config.nodes import Node
from plait.errors import PlaitError

_NAME = re.compile(
    r"^(?:token|(?:hf|hub|hugging_?face|wandb|auth|use_auth|access|api|github|git|bearer|secret)_token"
    r"|(?:\w+_)?(?:api_?key|secret|secret_key|access_key|password|passwd|credentials?))$",
    re.IGNORECASE,
)
_VALUE = re.compile(r"hf_[A-Za-z0-9]{20,}|wandb_v\d_\w{20,}|://[^/\s:@]+:[^/\s@]+@")


def refuse(node: Node) -> None:
    """Raise PlaitError if a setting at or below `node` is named like a secret and has a value, or has a value that looks like one."""
    if isinstance(node.value, dict | list):
        pairs = node.value.items() if isinstance(node.value, dict) else [("", child) for child in node.value]
        for key, child in pairs:
            if looks_secret(key) and child.value not in (None, ""):
                raise refusal(child.location, child.path)
            refuse(child)
    elif isinstance(node.value, str) and _VALUE.search(node.value):
        raise refusal(node.location, node.path, node.value)


def refuse_argument(text: str) -> None:
    """Raise PlaitError if one command line argument (`--a.b=value`) is named like a secret, or its value looks like one."""
    key, _, value = text.removeprefix("--").partition("=")
    if any(looks_secret(step) for step in key.split(".")) or _VALUE.search(value) or _VALUE.search(key):
        raise refusal("command line", "this argument" if _VALUE.search(key) else key, key + value)


def looks_secret(name: str) -> bool:
    """Return whether a key is named like a secret, as hf_token or wandb_api_key are."""
    return bool(_NAME.match(name.replace("-", "_")))


def refusal(location: str, path: str, value: str = "") -> PlaitError:
    """Return the PlaitError for a secret at `path`: it names the environment variable to use, and does not repeat `value`."""
    last = "hf" if re.search(r"hf_\w{20}", value) else path.lower()
    variable = "WANDB_API_KEY" if "wandb" in last else "HF_TOKEN" if re.search(r"hf|hub|hugging|(^|\.)token$", last) else None
    where = f"the environment variable {variable}" if variable else "the environment (HF_TOKEN, WANDB_API_KEY)"
    return PlaitError(f"{location}: {path} looks like a secret, which no file or command line may hold: remove it and set {where}")
