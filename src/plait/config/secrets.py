"""Detection of secrets in settings. They belong in the environment; no file and no command line may hold one.

A secret is recognised by the name of its setting, by its form (as that of a Hub token), or by its place in a URL: the user part,
user:password@host, or a signature in the query (after ?) or fragment (after #). An error message never repeats the value.
"""

import os
import re
from pathlib import Path
from urllib.parse import unquote_plus

from plait.config.nodes import Node
from plait.errors import PlaitError
from plait.files import expanded

_NAME = re.compile(
    r"token|(?:hf|hub|hugging_?face|wandb|auth|use_auth|access|api|github|git|bearer|secret|session|refresh)_token"
    r"|(?:\w+_)?(?:api_?key|secret|secret_key|access_key|access_key_id|account_key|auth_key|shared_key|private_key|passphrase|credentials?"
    r"|authorization|cookies?|jwt|connection_string)|\w*(?:password|passwd)"
)
_TOKEN = re.compile(r"(\w+)_token")
_SPECIAL_TOKENS = re.compile(
    r"(?:additional_)?special|assistant|bo[ist]|bos|cls|end|eo[ist]|eot|image|mask|max|min|pad|point|sep|start|stop|system|tool|unk|user|video"
    r"|audio|vision|world"
)
"""Words before `_token` that name a token of a text, not one that opens a door."""
_VALUE = re.compile(
    r"hf_[A-Za-z0-9]{20,}|wandb_v\d_\w{20,}|gh[opsu]_[A-Za-z0-9]{30,}|github_pat_\w{22,}|glpat-[\w-]{20,}|sk-[\w-]{20,}"
    r"|xox[abprs]-[\w-]{10,}|(?:AKIA|ASIA)[0-9A-Z]{16}|AIza[\w-]{35}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|(?i:bearer|basic) [\w.~+/=-]{16,}"
)
_USER = re.compile(r"//[^/\s:@?#]+:[^/\s@?#]+@|https?://[^/\s@?#]+@")
_QUERY = re.compile(r"[?&#;]([^=&#;\s?]+)=([^&#;\s]+)")
_SIGNATURE = re.compile(
    r"x-(?:amz|goog)-(?:signature|credential|security-token)|sig|signature|key-pair-id|awsaccesskeyid|googleaccessid|auth|authkey|hmac|sas",
    re.IGNORECASE,
)
_ANY_USER = re.compile(r"(?<=://)[^/\s@?#'\"]*@|(?<=//)[^/\s:@?#'\"]+:[^/\s@?#'\"]+@")
_WEB_QUERY = re.compile(r"(https?://[^\s?#'\"]*)[?#][^\s'\"]*")
_SHORTEST = 8  # characters of a value of the environment that is looked for in what is printed
_VARIABLE = re.compile(r"\$(?:\w+|\{\w+\})")
_filled_in: dict[str, str] = {}
"""{path with the values of its variables: as it was written}, for `masked`: of each path in which variables were filled in, the part up
to the last of them."""


def refuse(node: Node) -> None:
    """Raise PlaitError for a secret at or below `node`: text that looks like one, or whose setting is named like one."""
    if isinstance(node.value, dict | list):
        pairs = node.value.items() if isinstance(node.value, dict) else [("", child) for child in node.value]
        for key, child in pairs:
            if looks_secret(key, child.value) and child.value not in (None, ""):
                raise refusal(child.location, child.path)
            if holds_secret(key):
                raise refusal(child.location, "a key", key)
            refuse(child)
    elif isinstance(node.value, str) and holds_secret(node.value):
        raise refusal(node.location, node.path, node.value)


def refuse_argument(text: str) -> None:
    """Raise PlaitError if a command line argument holds a secret, or is a setting (`--a.b=value`) that is named like one."""
    key, equals, value = text.removeprefix("--").partition("=")
    named = equals and any(looks_secret(step, value) for step in key.split("."))
    if named or holds_secret(text):
        setting = equals and re.fullmatch(r"[\w.-]+", key) and not holds_secret(key)
        raise refusal("command line", key if setting else "this argument", text)


def holds_secret(text: str) -> bool:
    """Return whether a text holds something like a secret: a token, or a URL with a user part or a signature."""
    return bool(_VALUE.search(text)) or in_address(text)


def in_address(text: str) -> bool:
    """Return whether a URL in `text` has a password (name:password@), or a signature (as X-Amz-Signature=...) after its ? or #.

    References to variables ($NAME) are taken out first. A URL may lack its scheme, as `//user:password@host`.
    """
    if "//" not in text:
        return False
    written = _VARIABLE.sub("", text)
    return bool(_USER.search(written)) or any(looks_signed(unquote_plus(match[1])) for match in _QUERY.finditer(written))


def looks_signed(name: str) -> bool:
    """Return whether a parameter of a URL's query is named like a part of its signature, as X-Amz-Signature and sig are."""
    return bool(_SIGNATURE.fullmatch(name)) or looks_secret(name, "text")


def looks_secret(name: str, value: object = "") -> bool:
    """Return whether a key is named like a secret, as apiKey is. `value`: its value; a name like hf_token counts only if that is text."""
    plain = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).replace("-", "_").lower()
    token = _TOKEN.fullmatch(plain)
    return bool(_NAME.fullmatch(plain)) or (token is not None and not _SPECIAL_TOKENS.fullmatch(token[1]) and isinstance(value, str))


def without_secrets(text: str) -> str:
    """Return a text without the user parts of its URLs, and without the query and fragment of http and https ones."""
    return _WEB_QUERY.sub(r"\1", _ANY_USER.sub("", text))


def unset_in(written: str) -> str | None:
    """Return the name of the first environment variable in a text, `$NAME` or `${NAME}`, that is not set; None without one."""
    names = (variable.strip("${}") for variable in _VARIABLE.findall(written))
    return next((name for name in names if name not in os.environ), None)


def filled_in(written: str) -> Path:
    """Return a path on disk with `~` and each `$VARIABLE` filled in; from then on `masked` puts the variables back into texts.

    What was filled in is kept in this module, for the whole process. Raises PlaitError for a variable that is not set, unless there is a
    file or folder of this very name.
    """
    if (name := unset_in(written)) and not expanded(written).exists():
        raise PlaitError(f"{without_secrets(written)} needs the environment variable {name}, which is not set")
    path = expanded(os.path.expandvars(written))
    steps = written.split("/")
    held = [number for number, step in enumerate(steps) if _VARIABLE.search(step)]
    prefix = "/".join(steps[: held[-1] + 1]) if held else ""
    value = expanded(os.path.expandvars(prefix))
    if str(value) not in (prefix, "/", "."):
        _filled_in[str(value)] = prefix
        if held[-1] == len(steps) - 1 and len(value.parts) > 2 and not value.is_dir():  # a file: images are relative to its folder
            _filled_in.setdefault(str(value.parent), f"{prefix}/..")
            if _VARIABLE.fullmatch(steps[-1]) and value.suffix:  # samples are named after their file
                _filled_in.setdefault(value.name, steps[-1])
    return path


def masked(text: str) -> str:
    """Replace values of environment variables in a text by $NAME.

    Those are meant that are named like a secret, such as HF_TOKEN, or that `filled_in` has filled in: a path is shown as it was written.
    """
    for value in sorted(_filled_in, key=len, reverse=True):
        if value in text:
            is_path = "/" in value
            before = r"(?<![\w.$-])" if is_path else r"(?<![\w.$/-])"
            after = r"(?![\w-])" if is_path or "." in value or len(value) >= _SHORTEST else "(?=/)"  # a short word may be any word
            text = re.sub(f"{before}{re.escape(value)}{after}", _filled_in[value].replace("\\", r"\\"), text)
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and value in text and looks_secret(name, value):
            text = text.replace(value, f"${name}")
    return text


def shown(text: str) -> str:
    """Return a text fit for logs and files: secrets in URLs removed, values of variables named as secrets (HF_TOKEN) replaced by $NAME."""
    return masked(without_secrets(text))


def refusal(location: str, path: str, value: str = "") -> PlaitError:
    """Return, to be raised, the PlaitError for a secret in the setting `path`: it names the environment variable to use instead.

    `location`: file and line; `value`: what was found, which decides the advice and is not repeated.
    """
    if in_address(value) and not _VALUE.search(value):
        return PlaitError(
            f"{location}: {path} is an address in which a part looks like a secret, which no file or command line may hold: put the "
            "address, or the part after its ?, into an environment variable and name that here, as in path: $ADDRESS or https://host/a.tar?$SIGNATURE"
        )
    last = "hf" if re.search(r"hf_\w{20}", value) else path.lower()
    variable = "WANDB_API_KEY" if "wandb" in last else "HF_TOKEN" if re.search(r"hf|hub|hugging|(^|\.)token$", last) else None
    where = f"the environment variable {variable}" if variable else "the environment (HF_TOKEN, WANDB_API_KEY)"
    return PlaitError(f"{location}: {path} looks like a secret, which no file or command line may hold: remove it and set {where}")
