"""Load an export in a process of its own, and ask it: a program, run with the path of a request. Imports nothing of plait.

A request is JSON: `library`, `folder`, `trust` (its code is run), `register` (a module of plait that loading needs; null: an
import of plait fails), `device`, `asked` (a question or a call each) and `out`, a folder that gets results.json and results.safetensors.
"""

import hashlib
import importlib
import json
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

KINDS = ("missing_keys", "unexpected_keys", "mismatched_keys")
"""What loading says of the names in the files of weights."""
MAX_NEW_TOKENS = 16
Answer = tuple[dict[str, Any], dict[str, Tensor]]
"""What loading says (of KINDS, `weights` by name as `digest`s, `settings`, `answers`), and tensors by name."""


def digest(value: Tensor) -> str:
    """Return the dtype, the shape and a hash of the bytes of a tensor."""
    stored = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)} {hashlib.sha256(stored.data).hexdigest()}"


def ask_transformers(library: Any, request: Mapping[str, Any]) -> Answer:
    """Return what loading says, and tensors by name: of each chat its ids, the logits and the steps of a greedy answer."""
    folder, device, trust = request["folder"], request["device"], bool(request["trust"])
    model, info = library.AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True, trust_remote_code=trust)
    processor = library.AutoProcessor.from_pretrained(folder, trust_remote_code=trust)
    model.eval().to(device)
    told: dict[str, Any] = {"weights": {name: digest(value) for name, value in model.named_parameters()}, "answers": []}
    told |= {kind: sorted(map(str, info.get(kind) or [])) for kind in KINDS}
    told["settings"] = model.generation_config.to_dict()
    arrays = {}
    options = {"tokenize": True, "return_dict": True, "add_generation_prompt": True, "return_tensors": "pt"}
    for number, chat in enumerate(request["asked"]):
        given = processor.apply_chat_template(chat, **options).to(device)
        with torch.no_grad():
            logits = model(**given).logits
            made = model.generate(**given, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, output_logits=True, return_dict_in_generate=True)
        tokens = made.sequences[:, given["input_ids"].shape[1] :]
        best = torch.stack(made.logits, 1)[0].float().topk(2).values
        told["answers"].append(processor.batch_decode(tokens, skip_special_tokens=True)[0].strip())
        arrays[f"ids.{number}"] = given["input_ids"].cpu()
        arrays[f"logits.{number}"] = logits.float().cpu()
        arrays[f"gaps.{number}"] = (best[:, 0] - best[:, 1]).cpu()
    return told, arrays


def ask_diffusers(library: Any, request: Mapping[str, Any]) -> Answer:
    """Return what loading says, and tensors by name: of each call its pictures."""
    trust = bool(request["trust"])
    pipeline = library.DiffusionPipeline.from_pretrained(request["folder"], trust_remote_code=trust)
    files = [load_file(path) for path in sorted(Path(request["folder"], "transformer").glob("*.safetensors"))]
    held, wanted = {name for tensors in files for name in tensors}, set(pipeline.transformer.state_dict())
    pipeline.set_progress_bar_config(disable=True)
    told: dict[str, Any] = dict(zip(KINDS, (sorted(wanted - held), sorted(held - wanted), []), strict=True))
    told |= {"weights": {}, "answers": [], "settings": dict(pipeline.config.settings)}
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module):
            told["weights"] |= {f"{name}.{key}": digest(value) for key, value in part.named_parameters()}
    pipeline.to(request["device"])
    pictures = [pipeline(**call, output_type="np").images for call in request["asked"]]
    return told, {f"pictures.{number}": torch.from_numpy(np.stack(drawn)) for number, drawn in enumerate(pictures)}


def ask_peft(library: Any, request: Mapping[str, Any]) -> Answer:
    """Return the adapters' weights and the logits of a model of transformers, that of `base`, with them. `asked`: rows of ids."""
    transformers, trust = importlib.import_module("transformers"), bool(request["trust"])
    (kind,) = json.loads(Path(request["base"], "config.json").read_bytes())["architectures"]
    if not (weights_file := Path(request["folder"], "adapter_model.safetensors")).is_file():  # peft would take a pickle in its place
        raise FileNotFoundError(f"there is no {weights_file.name}")
    base = getattr(transformers, kind).from_pretrained(request["base"], trust_remote_code=trust, use_safetensors=True)
    model = library.PeftModel.from_pretrained(base, request["folder"]).eval().to(request["device"])
    weights = {name: digest(value) for name, value in model.named_parameters() if ".lora_" in name}
    told: dict[str, Any] = {"weights": weights, "answers": [], "settings": {}, **{kind: [] for kind in KINDS}}
    with torch.no_grad():
        return told, {"logits": model(input_ids=torch.tensor(request["asked"], device=request["device"])).logits.float().cpu()}


def main(path: str) -> None:
    """Answer the request in the file `path`; an error becomes its result."""
    request = json.loads(Path(path).read_bytes())
    out = Path(request["out"])
    try:
        if request["register"] is None:
            sys.modules["plait"] = None  # type: ignore[assignment]  # an import of it fails
        else:
            importlib.import_module(request["register"])
        ask = {"transformers": ask_transformers, "diffusers": ask_diffusers, "peft": ask_peft}[request["library"]]
        told, arrays = ask(importlib.import_module(request["library"]), request)
        save_file({name: value.contiguous() for name, value in arrays.items()}, out / "results.safetensors")
    except BaseException as error:  # noqa: BLE001  whatever an export's code raises
        traceback.print_exc()
        told = {"error": f"{type(error).__name__}: {error}"}
    (out / "results.json.tmp").write_text(json.dumps(told), encoding="utf-8")
    (out / "results.json.tmp").replace(out / "results.json")


if __name__ == "__main__":
    main(sys.argv[1])
