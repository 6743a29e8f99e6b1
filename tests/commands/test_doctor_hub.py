"""`plait doctor CONFIG` and the Hub: what can be had with this token, its size and licence, and the room that a run takes."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
from huggingface_hub import constants, snapshot_download

from plait import cli
from plait.assembly.configuration import open_config
from plait.commands.actions import hub_access, run_needs
from plait.commands.actions.findings import gigabytes
from plait.config import reading
from plait.engine.checkpoints import checkpoint
from plait.engine.evaluation import Bench
from plait.families import registry
from plait.families.nanodit.evaluate import benches as nanodit_benches
from plait.families.theworld import config as theworld
from plait.families.theworld import family as theworld_family
from tests import hub_server, toy_family
from tests.hub_server import TOKEN, Repository

GEMMA = {
    "config.json": 1_000,
    "tokenizer.json": 33_000_000,
    "model-00001-of-00002.safetensors": 5_000_000_000,
    "model-00002-of-00002.safetensors": 3_600_000_000,
    "consolidated.safetensors": 8_600_000_000,
    "pytorch_model.bin": 8_600_000_000,
    "vae/diffusion_pytorch_model.safetensors": 500_000_000,
    "vae/config.json": 1_000,
}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1e12))
    with hub_server.serving(monkeypatch, tmp_path) as server:
        yield server


@pytest.fixture
def recipe(monkeypatch, tmp_path, hub):
    return toy_family.install(monkeypatch, tmp_path)


def doctor(recipe, monkeypatch, capsys, *settings, base=(), folder=None):
    """(exit code, lines, what is printed as an error) of the command, with a toy family whose weights are at these places."""
    parts = [{"part": "toy", "name": name, "revision": None, **more} for name, more in dict(base).items()]
    monkeypatch.setattr(registry, "load", lambda name: replace(toy_family.FAMILY, base=lambda section: parts))
    code = cli.main(["doctor", str(recipe), f"--run={folder or recipe.parent / 'run'}", *settings])
    out, error = capsys.readouterr()
    assert TOKEN not in out + error and "sesame" not in out + error
    return code, out.splitlines(), error


def only(lines, *words):
    """The one line with all these words."""
    (line,) = [line for line in lines if all(word in line for word in words)]
    return line


def test_a_model_that_can_be_had_is_told_with_size_and_licence(recipe, hub, monkeypatch, capsys):
    hub.repositories["models", "someone/model"] = Repository(GEMMA, {"license": "gemma"})
    code, lines, _ = doctor(recipe, monkeypatch, capsys, base={"someone/model": {}})
    assert code == 0
    assert only(lines, "someone/model") == "ok    weights    someone/model (model: toy): 8.6 GB to download; licence gemma"
    code, lines, _ = doctor(recipe, monkeypatch, capsys, base={"someone/model": {"folder": "vae", "revision": "v2"}})
    assert "someone/model/vae@v2 (model: toy): 500 MB to download" in only(lines, "someone/model")
    assert "/api/models/someone/model/revision/v2" in [path for _, path, _ in hub.asked]
    assert "no token" in only(lines, "ok    hub ") and hub.url in only(lines, "ok    hub ")


def test_a_licence_that_is_not_on_the_hubs_list_is_told_by_name_and_address(recipe, hub, monkeypatch, capsys):
    card = {"license": "other", "license_name": "open-model", "license_link": "https://example.com/licence?signature=sesame"}
    hub.repositories["models", "someone/model"] = Repository(GEMMA, card)
    _, lines, _ = doctor(recipe, monkeypatch, capsys, base={"someone/model": {}})
    assert only(lines, "someone/model").endswith("licence other (open-model, https://example.com/licence)")


def test_a_gated_model_needs_its_licence_accepted_and_a_token(recipe, hub, monkeypatch, capsys, tmp_path):
    hub.repositories["models", "google/gemma"] = Repository(GEMMA, {"license": "gemma"}, gated=True)
    code, lines, error = doctor(recipe, monkeypatch, capsys, base={"google/gemma": {}})
    assert code == 1 and only(lines, "google/gemma") == "MEND  weights    google/gemma (model: toy): gated, and no token is set"
    assert f"accept its licence at {hub.url}/google/gemma and set HF_TOKEN (or run `hf auth login`)" in error
    (tmp_path / "token").write_text(TOKEN)
    code, lines, _ = doctor(recipe, monkeypatch, capsys, base={"google/gemma": {}})
    assert code == 0 and only(lines, "google/gemma").endswith("8.6 GB to download; licence gemma, gated: this token may read it")
    assert "a token of hf auth login" in only(lines, "ok    hub ")
    assert hub.asked[-1] == (
        "GET",
        "/api/models/google/gemma/auth-check",
        TOKEN,
    )


def test_a_token_that_may_not_read_a_gated_model_is_told(recipe, hub, monkeypatch, capsys):
    monkeypatch.setattr(hub_server, "TOKEN", "hf_" + "another" * 4)
    monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
    hub.repositories["models", "google/gemma"] = Repository(GEMMA, gated=True)
    monkeypatch.setattr(hub_server.Handler, "about", refuse_all(hub_server.Handler.about))
    code, lines, error = doctor(recipe, monkeypatch, capsys, base={"google/gemma": {}})
    assert code == 1 and only(lines, "google/gemma").endswith("gated, and the token of HF_TOKEN may not read it")
    assert "with the account of that token; a fine-grained one must also allow public gated repositories" in error


def refuse_all(about):
    """The same server, for which no token is enough."""
    return lambda handler, name, repository, rest, allowed: about(handler, name, repository, rest, False)


@pytest.mark.parametrize("kind", ["models", "datasets"])
def test_what_is_not_there_or_private_is_told(recipe, hub, monkeypatch, capsys, kind):
    data = "--data.train=[{source: datasets, name: someone/absent}]"
    settings, base = ([data], {}) if kind == "datasets" else ([], {"someone/absent": {}})
    code, lines, error = doctor(recipe, monkeypatch, capsys, *settings, base=base)
    assert code == 1 and f"there is no such {kind[:-1]}, or it is private and no token is set" in only(lines, "someone/absent")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    _, lines, error = doctor(recipe, monkeypatch, capsys, *settings, base=base)
    assert "or it is private and the token of HF_TOKEN may not see it" in only(lines, "someone/absent")
    assert "use a token that may read someone/absent" in error


@pytest.mark.parametrize("origin", ["HF_TOKEN", "hf auth login"])
def test_a_token_that_is_wrong_is_told_and_never_shown(recipe, hub, monkeypatch, capsys, tmp_path, origin):
    hub.repositories["models", "someone/model"] = Repository(GEMMA)
    wrong = "hf_sesame" + "x" * 20
    (tmp_path / "token").write_text(wrong) if origin != "HF_TOKEN" else monkeypatch.setenv("HF_TOKEN", wrong)
    code, lines, error = doctor(recipe, monkeypatch, capsys, base={"someone/model": {}})
    assert code == 1 and only(lines, "someone/model").endswith(f"the Hub refuses the token of {origin} (401)")
    assert ("set HF_TOKEN to a token that is valid" if origin == "HF_TOKEN" else "run `hf auth login` again") in error


def test_a_token_that_no_header_can_hold_is_never_shown(recipe, hub, monkeypatch, capsys):
    hub.repositories["models", "someone/model"] = Repository(GEMMA)
    monkeypatch.setenv("HF_TOKEN", "hf_sesameé")
    code, lines, _ = doctor(recipe, monkeypatch, capsys, base={"someone/model": {}})
    assert code == 1 and "could not be asked (" in only(lines, "someone/model")


def test_a_revision_that_is_not_there_and_a_status_of_the_servers_are_told(recipe, hub, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.repositories["models", "someone/model"] = Repository(GEMMA)
    for status in (403, 500):
        hub.repositories["models", f"someone/other{status}"] = Repository(GEMMA, fault=status)
    base = {"someone/model": {"revision": "v9"}, "someone/other403": {}, "someone/other500": {}}
    code, lines, error = doctor(recipe, monkeypatch, capsys, base=base)
    assert code == 1 and only(lines, "someone/model").endswith("it has no revision 'v9'")
    assert only(lines, "someone/other403").endswith("the Hub forbids it (403) with the token of HF_TOKEN")
    assert "could not be asked (it answered with status 500)" in only(lines, "someone/other500")
    assert "download on one that does: hf download someone/other500" in error


def test_a_hub_that_is_slow_is_given_up_after_a_limit_for_all(recipe, hub, monkeypatch, capsys):
    monkeypatch.setattr(hub_access, "ASK_WITHIN_S", 0.5)
    hub.repositories["models", "someone/slow"] = Repository(GEMMA, fault="slow")
    hub.repositories["models", "someone/model"] = Repository(GEMMA)
    code, lines, _ = doctor(recipe, monkeypatch, capsys, base={"someone/slow": {}, "someone/model": {}})
    assert code == 1 and f"the Hub at {hub.url} could not be asked (" in only(lines, "someone/slow")
    assert "8.6 GB to download" in only(lines, "someone/model")


def test_without_a_network_the_doctor_says_what_it_could_not_ask(recipe, hub, monkeypatch, capsys):
    monkeypatch.setattr(constants, "ENDPOINT", "http://user:sesame@127.0.0.1:1")
    data = "--data.train=[{source: datasets, name: someone/data}]"
    code, lines, error = doctor(recipe, monkeypatch, capsys, data, base={"someone/model": {}})
    refused = "the Hub at http://127.0.0.1:1 could not be asked (ConnectError: Connection refused)"
    assert code == 1 and only(lines, "someone/model").endswith(refused) and only(lines, "someone/data").endswith(refused)
    assert "hf download someone/model" in error and "download on one that does: plait data inspect CONFIG, with the same HF_HOME" in error


def small(**more):
    return Repository({"config.json": b"{}", "model.safetensors": b"x" * 2_000_000, **more})


def test_what_is_in_the_cache_is_not_downloaded_again(recipe, hub, monkeypatch, capsys):
    hub.repositories["models", "someone/model"] = small(**{"tokenizer.json": b"y" * 500_000})
    snapshot_download("someone/model", ignore_patterns=["tokenizer.json"])
    _, lines, _ = doctor(recipe, monkeypatch, capsys, base={"someone/model": {}})
    assert "500 kB of 2.5 MB to download" in only(lines, "someone/model")
    snapshot_download("someone/model")
    _, lines, _ = doctor(recipe, monkeypatch, capsys, base={"someone/model": {}})
    assert "in the cache (2.5 MB)" in only(lines, "someone/model")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    code, lines, _ = doctor(recipe, monkeypatch, capsys, base={"someone/model": {}})
    assert code == 0 and "(model: toy) is in the cache; the Hub at http://127.0.0.1:1 could not be asked" in only(lines, "someone/model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    code, lines, _ = doctor(recipe, monkeypatch, capsys, base={"someone/model": {}})
    assert code == 0 and "is in the cache; the Hub is offline and was not asked" in only(lines, "someone/model")


def test_a_cache_that_lacks_a_file_of_the_weights_is_no_model(hub, tmp_path):
    index = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}).encode()
    files = {"config.json": b"{}", "model.safetensors.index.json": index, "model-1.safetensors": b"x", "model-2.safetensors": b"x"}
    hub.repositories["models", "someone/model"] = Repository(files)
    wanted = hub_access.Wanted("model", "someone/model")
    for patterns, whole in (([], False), (["config.json"], False), (["*.json", "model-1*"], False), (["*"], True)):
        if patterns:
            snapshot_download("someone/model", allow_patterns=patterns)
        assert hub_access.cached(wanted) is whole


def test_a_repository_without_safetensors_is_told(recipe, hub, monkeypatch, capsys):
    hub.repositories["models", "someone/model"] = Repository({"config.json": 100, "pytorch_model.bin": 9_000_000})
    _, lines, _ = doctor(recipe, monkeypatch, capsys, base={"someone/model": {}})
    assert "it lists no safetensors weights, and others are not read" in only(lines, "someone/model")


def test_a_named_dataset_of_the_hub_is_counted_and_not_opened(recipe, hub, monkeypatch, capsys):
    entry = "{source: dataset, name: 'blink:val', options: {hub: true}}"
    local = "{source: jsonl, path: " + str(recipe.parent / "train.jsonl") + "}"
    settings = (f"--data.train=[{local}, {entry}]", f"--data.validation=[{entry}]")
    code, lines, _ = doctor(recipe, monkeypatch, capsys, *settings)
    assert code == 0
    assert "1 source of all stages open, with 30 samples; 1 on the Hub not opened, which would download it" in only(lines, "all stages")
    assert only(lines, "benches").endswith("have their data: loss on the Hub, not opened")
    assert hub.asked == []


def test_a_dataset_is_asked_for_once_and_not_opened(recipe, hub, monkeypatch, capsys):
    hub.repositories["datasets", "someone/data"] = Repository({"a/1.parquet": 7_000_000_000, "README.md": 10}, {"license": "cc-by-4.0"})
    entry = "{source: datasets, name: someone/data, options: {revision: v2}}"
    local = "{source: jsonl, path: " + str(recipe.parent / "train.jsonl") + "}"
    settings = (f"--data.train=[{entry}, {local}, {entry}]", f"--data.validation=[{entry}]")
    code, lines, _ = doctor(recipe, monkeypatch, capsys, *settings)
    assert code == 0
    assert only(lines, "someone/data") == "ok    data       someone/data@v2 (data): up to 7.0 GB to download; licence cc-by-4.0"
    assert "1 source of all stages open, with 30 samples; 1 on the Hub not opened, which would download it" in only(lines, "all stages")
    assert only(lines, "benches").endswith("have their data: loss on the Hub, not opened")
    assert [path for _, path, _ in hub.asked] == ["/api/datasets/someone/data/revision/v2"]


@pytest.mark.parametrize(
    ("options", "held_out", "told"),
    [
        ("{}", "", "450 GB, streamed: up to 50.0 GB on the disk at a time"),
        ("{stream: true, cache_gb: 5}", "", "450 GB, streamed: up to 5.0 GB on the disk at a time"),
        ("{stream: false}", "", "up to 450 GB to download"),
        ("{}", "{source: datasets, name: someone/data}", "up to 450 GB to download"),
    ],
)
def test_a_streamed_dataset_takes_as_much_disk_as_its_cache(recipe, hub, monkeypatch, capsys, options, held_out, told):
    hub.repositories["datasets", "someone/data"] = Repository({"a/1.parquet": 450_000_000_000}, {"license": "cc-by-4.0"})
    settings = (f"--data.train=[{{source: datasets, name: someone/data, options: {options}}}]", f"--data.validation=[{held_out}]")
    _, lines, _ = doctor(recipe, monkeypatch, capsys, *settings, "--evaluate=[]")
    assert f"someone/data (data): {told}; licence" in only(lines, "someone/data")


def test_sources_of_several_stages_are_counted_once(recipe, monkeypatch, capsys):
    _, lines, _ = doctor(recipe, monkeypatch, capsys)
    assert only(lines, "all stages") == "ok    data       1 source of all stages open, with 30 samples"
    assert only(lines, "benches") == "ok    benches    have their data: loss 8 samples"


def test_a_share_that_is_held_out_is_counted(recipe, monkeypatch, capsys):
    _, lines, _ = doctor(recipe, monkeypatch, capsys, "--data.validation=25%")
    held = int(only(lines, "benches").removeprefix("ok    benches    have their data: loss ").removesuffix(" samples"))
    assert 0 < held < 30


def test_held_out_data_that_is_not_there_is_told(recipe, monkeypatch, capsys):
    (recipe.parent / "held.jsonl").unlink()
    code, lines, error = doctor(recipe, monkeypatch, capsys)
    assert code == 1 and "held.jsonl" in only(lines, "MEND  benches") and "mend evaluate" in error


def test_a_bench_that_is_unknown_is_told(recipe, monkeypatch, capsys):
    code, lines, _ = doctor(recipe, monkeypatch, capsys, "--evaluate=[{bench: nothing}]")
    assert code == 1 and "nothing" in only(lines, "MEND  benches")


def test_encoders_that_benches_open_are_asked_for(recipe, hub, monkeypatch, capsys):
    hub.repositories["models", "meta/dino"] = Repository({"big/config.json": 10, "big/odd.safetensors": 3_000_000, "model.safetensors": 9})
    needs = {"distance": Bench(None, None, needs=lambda section: ["meta/dino/big@v2", "tiny:4x48", "./gone"])}
    monkeypatch.setattr(registry, "benches", lambda family: needs)
    code, lines, _ = doctor(recipe, monkeypatch, capsys, "--evaluate=[{bench: distance, every_steps: 2}]", "--checkpoint.best=null")
    assert code == 1
    assert "ok    weights    meta/dino/big@v2 (evaluate): 3.0 MB to download" in only(lines, "meta/dino")
    assert only(lines, "./gone") == "MEND  weights    ./gone is not here"


def test_the_benches_of_nanodit_name_what_decodes_latents_and_compares_pictures(tmp_path):
    pin = {"name": "someone/vae", "revision": "abc", "xxh3": "0"}
    latents = {"mean": [0.0], "std": [1.0], "channels": 1, "downsample": 8}
    metadata = {"latents": latents, "texts": {"width": 4}, "images": {"width": 4}, "encoders": {"latents": pin}}
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    section = SimpleNamespace(space="latents", metadata=str(tmp_path), sampling=SimpleNamespace(extractor="meta/dino"))
    assert nanodit_benches["distance"].needs(section) == ["meta/dino", "someone/vae@abc"]
    assert nanodit_benches["grid"].needs(section) == ["someone/vae@abc"]
    assert list(nanodit_benches["toy"].needs(section)) == []
    assert nanodit_benches["grid"].needs(SimpleNamespace(space="pixels", metadata=None)) == []


def test_a_start_from_the_hub_is_asked_for_and_one_from_here_is_found(recipe, hub, monkeypatch, capsys, tmp_path):
    hub.repositories["models", "someone/run"] = Repository({"weights.safetensors": 4_000_000, "manifest.json": 10, "ema.bin": 99})
    code, lines, _ = doctor(recipe, monkeypatch, capsys, "--from=someone/run@v2")
    assert code == 0 and "someone/run@v2 (from: no folder here): 4.0 MB to download" in only(lines, "someone/run")
    steps = {
        f"stage-1-a/step-0000000{step}/{name}": step * 1_000_000 for step in (5, 8) for name in ("weights.safetensors", "manifest.json")
    }
    hub.repositories["models", "someone/pushed"] = Repository(
        {**steps, "assets/tokenizer/tokenizer.json": 500_000, "metrics.jsonl": 9_000_000}
    )
    for mark, size in (("", "16.5 MB"), ("@5", "10.5 MB"), ("@best", "16.5 MB")):
        code, lines, _ = doctor(recipe, monkeypatch, capsys, f"--from=someone/pushed{mark}")
        assert code == 0 and f"someone/pushed (from: no folder here): {size} to download" in only(lines, "someone/pushed")
    code, lines, error = doctor(recipe, monkeypatch, capsys, "--from=someone/pushed@7")
    assert code == 1 and "has no checkpoint at step '7'; it has 5, 8" in only(lines, "someone/pushed") and "mend from" in error
    code, lines, _ = doctor(recipe, monkeypatch, capsys, f"--from={tmp_path}/absent")
    assert code == 1 and "does not exist" in only(lines, "absent")
    code, lines, _ = doctor(recipe, monkeypatch, capsys, f"--from={tmp_path}")
    assert code == 0 and only(lines, "is here") == f"ok    weights    {tmp_path} (from) is here"


def test_the_world_encoder_is_one_folder_of_its_repository():
    parts = theworld_family.base(theworld.Config.model_validate({}))
    assert [(part["part"], part.get("folder")) for part in parts] == [("gemma", None), ("world", "vae")]


def sizes(run):
    """(how many checkpoints a run has, the bytes of their files)."""
    folders = checkpoint.published(run)
    return len(folders), sum(path.stat().st_size for folder in folders for path in folder.iterdir())


@pytest.mark.parametrize(
    "settings",
    [
        ["train.precision=pure_bf16", "checkpoint.every_steps=null"],
        ["optim.ema=null", "train={epochs: 1, global_batch: 4}", "checkpoint.best=null", "checkpoint.keep=2"],
        ["optim.returning_moments=reset", "checkpoint.every_steps=6"],
    ],
)
def test_the_room_of_checkpoints_is_what_a_run_leaves(recipe, tmp_path, settings):
    run = toy_family.train(recipe, tmp_path / "run", *settings)
    count, size = sizes(run)
    expected_count, expected = run_needs.checkpoints(open_config(recipe, settings))
    last = run_needs.checkpoints(open_config(recipe, [*settings, "stages=[]", "checkpoint.every_steps=null"]))[1] / 2
    assert expected_count == count and expected - last == pytest.approx(size, rel=0.2)  # of a toy the manifest is most, and not exact


def test_all_checkpoints_count_where_all_are_kept(recipe, tmp_path):
    settings = ["checkpoint.best=null", "stages=[]", "evaluate=[]", "train.steps=12", "checkpoint.every_steps=3"]
    one = run_needs.checkpoints(open_config(recipe, [*settings, "checkpoint.keep=1"]))[1] // 2
    assert run_needs.checkpoints(open_config(recipe, [*settings, "checkpoint.keep=0"])) == (4, 5 * one)


def test_post_hoc_averages_that_are_kept_of_deleted_checkpoints_count(recipe, tmp_path):
    settings = ["optim.ema={decay: 0.5, post_hoc: true}", "checkpoint.keep=1", "checkpoint.best=null", "stages=[]"]
    one = run_needs.checkpoints(open_config(recipe, [*settings, "checkpoint.every_steps=null"]))[1] // 2
    averages = 2 * 45 * 4  # bytes of the toy's values in two averages, without the headers of the files
    count, size = run_needs.checkpoints(open_config(recipe, settings))
    assert count == 1 and 2 * averages < size - 2 * one < 2 * (averages + 2 * 1_000)


def test_too_little_room_for_checkpoints_or_downloads_is_told(recipe, hub, monkeypatch, capsys, tmp_path):
    hub.repositories["models", "someone/model"] = Repository(GEMMA)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=8e9))
    code, lines, error = doctor(recipe, monkeypatch, capsys, base={"someone/model": {}})
    assert (
        code == 1
        and "9 checkpoints and one being written take up to" in only(lines, "disk")
        and "; downloads 8.6 GB" in only(lines, "disk")
    )
    assert "free 633 MB more, lower checkpoint.keep or give another --run" in error
    code, lines, _ = doctor(recipe, monkeypatch, capsys)
    assert code == 0 and only(lines, "disk").startswith("ok ")


def test_checkpoints_that_are_there_take_no_more_room(recipe, monkeypatch, capsys, tmp_path):
    run = toy_family.train(recipe, tmp_path / "run")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=30_000))
    for folder, state in ((run, "ok "), (tmp_path / "new", "MEND")):
        line = only(doctor(recipe, monkeypatch, capsys, folder=folder)[1], " disk ")
        assert line.startswith(state) and ("of them there" in line) is (folder == run)


def test_the_tiny_preset_of_every_family_has_its_checkpoints_counted(tmp_path):
    for family, section in (("theworld", {"base": "tiny"}), ("molmo", {"language": "debug"})):
        tree = {"family": family, "model": section, "train": {"steps": 1}, "data": {"train": [{"source": "scenes"}]}}
        (tmp_path / "a.yaml").write_text(reading.write_yaml(tree))
        count, size = run_needs.checkpoints(open_config(tmp_path / "a.yaml"))
        assert count == 1 and 1e6 < size < 1e9


@pytest.mark.parametrize(
    ("count", "text"), [(999, "1.0 kB"), (2_500_000, "2.5 MB"), (8_633_001_000, "8.6 GB"), (489e9, "489 GB"), (2e12, "2.0 TB")]
)
def test_bytes_are_told_in_the_unit_that_fits(count, text):
    assert gigabytes(count) == text
