"""`plait verify`: no byte and no claim of an export, a push or a run changes without being named."""

import copy
import json
import re
import shutil
import warnings

import pytest

from plait import cli, files
from plait.assembly import weight_files
from plait.assembly.configuration import open_config
from plait.commands.actions.passport import listing, proofs, seal
from plait.config import signed
from plait.engine.checkpoints import checkpoint
from tests import hub_store
from tests import toy_family as toy


def verify(*words):
    return cli.main(["verify", *map(str, words)])


def pulled(repo, folder):
    """The files of a repository's main branch in a folder."""
    for name, content in repo.files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def pushed(made, tmp_path_factory):
    """A repository to which the finished run was pushed."""
    folder = tmp_path_factory.mktemp("sent")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(), hub_store.serving(patch, folder) as hub:
        warnings.simplefilter("ignore", DeprecationWarning)  # of the client's own uploads
        run = shutil.copytree(made[1], folder / "run")
        assert cli.main(["push", str(run), "someone/toy"]) == 0
        return hub.repos["someone/toy"]


@pytest.fixture
def folder(pushed, tmp_path):
    """A copy of what was pushed."""
    return pulled(pushed, tmp_path / "pulled")


@pytest.fixture
def repo(pushed, hub):
    """The pushed repository on a Hub that answers."""
    hub.repos["someone/toy"] = again = copy.deepcopy(pushed)
    return again


def told(capsys):
    """The only line on standard error."""
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    return err.removeprefix("plait: ").rstrip("\n")


def test_what_was_pushed_is_shown_as_a_table_and_is_what_its_passport_says(folder, made, repo, capsys):
    assert verify(folder) == verify(folder, "--run", made[1]) == 0
    shown = capsys.readouterr().out
    fingerprint = next(iter(toy.at(made[1], 18).manifest["data"].values()))
    row = rf"  2  vision      6 to 12   24       projector 20, vision 20  jsonl:train.jsonl {fingerprint}  planned steps done"
    digest = weight_files.passport_digest(folder)
    for line in (row, "  base        toy: drawn from the seed", "  survived    no stop: it ran through", f"  digest      {digest}"):
        assert f"\n{line}\n" in shown
    assert shown.endswith(f"{folder} is what its passport says\n") and f"passport `{digest}`" in (folder / "README.md").read_text()
    assert verify("someone/toy", "--digest", digest) == verify(folder, "--digest", digest.removeprefix("sha256:")) == 0


FILES = ["assets/tokenizer/words", "ema.safetensors", "manifest.json", "plait-run.json", "run-config.yaml", "weights.safetensors"]


@pytest.mark.parametrize("name", FILES)
def test_each_file_that_is_changed_cut_missing_or_a_link_is_named(name, folder, repo, capsys):
    path, body = folder / name, (folder / name).read_bytes()
    changed = bytes([body[0] ^ 1]) + body[1:]
    path.write_bytes(changed)
    assert verify(folder) == 1
    was = json.loads((folder / "passport.json").read_text())["claims"]["files"][name]["sha256"]
    line = f"{name} is changed: its sha256 was {was}, is {listing.sha256(path)}"
    assert told(capsys).startswith(f"{folder} is not what its passport says: {line}")
    repo.commit("main", repo.files() | {name: changed}, "changed")
    assert verify("someone/toy") == 1 and f"is not what its passport says: {line}" in told(capsys)
    path.write_bytes(body + b"\n")
    assert verify(folder) == 1 and f"{name} is changed: it had {len(body):,} bytes, has {len(body) + 1:,}" in told(capsys)
    path.rename(folder / "aside.md")
    assert verify(folder) == 1 and f"{name} is missing: the passport lists {len(body):,} bytes" in told(capsys)
    path.symlink_to(folder / "aside.md")
    (folder / "aside.md").write_bytes(body)
    assert verify(folder) == 1 and f"{name} is a link, and no file of its own" in told(capsys)
    repo.commit("main", {other: content for other, content in repo.files().items() if other != name}, "gone")
    assert verify("someone/toy") == 1 and f"{name} is missing" in told(capsys)


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "sub/pytorch_model.bin",
        "modeling.py",
        "generation_config.json",
        "chat.jinja",
        "merges.txt",
        ".git/hooks/evil.py",
        ".cache/huggingface/model.SAFETENSORS",
    ],
)
def test_a_file_that_a_program_may_load_is_a_fault_where_it_was_added(name, folder, repo, capsys):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"x")
    repo.commit("main", repo.files() | {name: b"x"}, "added")
    for what in (folder, "someone/toy"):
        assert verify(what) == 1 and told(capsys).endswith(f"is not what its passport says: {name} is not in the passport: it was added")


def test_a_claim_cannot_draw_lines_or_colours_of_its_own(folder, capsys):
    claims = json.loads((folder / "passport.json").read_text())["claims"]
    claims["versions"] = {"plait": "0\n  WRONG \x1b[31m\u2028x\u202e is"}
    files.write_json(folder / "passport.json", seal.sealed(claims))
    assert verify(folder) == 1
    said = capsys.readouterr()
    assert "  versions    plait 0\\n  WRONG \\x1b[31m\\u2028x\\u202e is\n" in said.out and said.err.count("\n") == 1
    assert not any(char in said.out + said.err for char in "\x1b\u2028\u202e")


def test_a_digest_in_capitals_is_the_same_and_a_run_that_is_none_cannot_be_compared(folder, tmp_path, capsys):
    digest = weight_files.passport_digest(folder)
    for text in (digest.upper(), digest.removeprefix("sha256:").upper()):
        assert verify(folder, "--digest", text) == 0
    (tmp_path / "empty").mkdir()
    for name, reason in {"nope": "there is no such folder", "empty": "it has no checkpoint"}.items():
        assert verify(folder, "--run", tmp_path / name) == 2
        assert told(capsys) == f"--run {tmp_path / name}: {reason}: name the run"


def test_a_licence_a_picture_and_what_a_download_keeps_are_no_fault_and_are_told(folder, repo, capsys):
    for name in ("LICENSE", "shot.png", ".cache/huggingface/download/x.metadata"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    (folder / ".git/objects").mkdir(parents=True)
    for name in ("HEAD", "objects/ab"):
        (folder / ".git" / name).write_bytes(b"x")
    assert verify(folder) == 0
    told = "not covered: .gitattributes, LICENSE, README.md, shot.png, .cache/huggingface/ (1 file), .git/ (2 files)\n"
    assert told in capsys.readouterr().out


def test_a_folder_that_is_a_link_is_named(folder, tmp_path, capsys):
    (folder / "assets").rename(tmp_path / "aside")
    (folder / "assets").symlink_to(tmp_path / "aside")
    assert verify(folder) == 1 and "assets/tokenizer/words is in a folder that is a link: assets" in capsys.readouterr().out


def leaves(value, path=()):
    """(path, value) of every leaf of a JSON value; of an empty list or object too."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [leaf for key, one in inner for leaf in leaves(one, (*path, key))] or [(path, value)]


def with_leaf(value, path, new):
    changed = copy.deepcopy(value)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return changed


def named(path):
    """A leaf's name in a message: stages[0].steps."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
    return text.removeprefix(".")


def other(value):
    return f"{value}x" if isinstance(value, str) else [value] if isinstance(value, list | dict) else "x" if value is None else value + 1


def test_each_claim_that_is_changed_is_named_with_what_it_was_and_is(folder):
    whole = json.loads((folder / "passport.json").read_text())
    paths = leaves(whole["claims"], ("claims",))
    assert len(paths) > 90
    for path, value in paths:
        (fault,) = seal.unseal(files.json_text(with_leaf(whole, path, other(value))).encode()).faults
        was, now = (one if isinstance(one, str) else json.dumps(one) for one in (value, other(value)))
        assert fault.startswith(f"claim {named(path[1:])} was {was[:70]}") and f", is {now[:70]}" in fault, path
        held = seal.unseal(files.json_text(with_leaf(whole, path, other(value))).encode()).claims
        assert held == whole["claims"], "files are compared with what the sealed copy says of them"


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("format", "plait-passport-9", "format was plait-passport-1, is plait-passport-9: changed, or of another version of plait"),
        ("digest", "sha256:" + "0" * 64, "digest was sha256:{digest}, is sha256:" + "0" * 64),
        ("sealed", "{", "sealed: the copy of the claims was changed: it is no JSON"),
        ("sealed", 1, "passport.json: sealed is missing, or of another type"),
        ("more", 1, "passport.json: more does not belong there"),
    ],
)
def test_the_seal_itself_cannot_be_changed_alone(name, value, line, folder, capsys):
    whole = json.loads((folder / "passport.json").read_text())
    files.write_json(folder / "passport.json", whole | {name: value})
    assert verify(folder) == 1
    assert line.format(digest=whole["digest"][7:]) in told(capsys)


def test_a_claim_and_its_copy_that_are_changed_together_do_not_fit_the_digest_nor_the_card_the_new_one(folder, capsys):
    whole = json.loads((folder / "passport.json").read_text())
    claims = with_leaf(whole["claims"], ("stages", 0, "samples"), 2400)
    files.write_json(folder / "passport.json", whole | {"claims": claims, "sealed": seal.canonical(claims)})
    assert verify(folder) == 1 and "digest was sha256:" in told(capsys)
    files.write_json(folder / "passport.json", seal.sealed(claims))
    assert verify(folder) == 1 and told(capsys).startswith(f"{folder} is not what its passport says: README.md tells passport sha256:")
    (folder / "README.md").unlink()
    assert verify(folder, "--digest", whole["digest"]) == 1 and f"digest was to be {whole['digest']}, is sha256:" in told(capsys)


def test_the_stages_of_a_pushed_checkpoint_are_those_that_its_manifest_is_linked_to(folder, made, capsys):
    claims = json.loads((folder / "passport.json").read_text())["claims"]
    (folder / "README.md").unlink()
    files.write_json(folder / "passport.json", seal.sealed(with_leaf(claims, ("stages", 0, "manifest_xxh3"), "0" * 16)))
    linked = toy.at(made[1], 6).manifest["xxh3"]
    assert verify(folder) == 1
    assert f": stage projection ended with manifest xxh3 {'0' * 16}, and manifest.json is linked to {linked}" in told(capsys)


def test_weights_that_are_not_those_of_the_manifest_are_named_although_the_passport_is_whole(folder, capsys):
    (folder / "README.md").unlink()
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    listed["weights.safetensors"]["xxh3"] = "0" * 16
    rewritten(folder, files=listed)
    claims = json.loads((folder / "passport.json").read_text())["claims"]
    claims["checkpoint"]["files"]["weights.safetensors"]["xxh3"] = "0" * 16
    claims["files"]["manifest.json"] = listing.entry(folder / "manifest.json").model_dump()
    files.write_json(folder / "passport.json", seal.sealed(claims))
    assert verify(folder) == 1
    assert f"{folder / 'weights.safetensors'} is damaged: xxh3 " in told(capsys)


def test_samples_are_counted_by_the_batch_from_each_step_on(run, capsys):
    folder = toy.at(run, 18).folder
    rewritten(folder, state={**toy.at(run, 18).manifest["state"], "batches": [[0, 4], [2, 8], [5, 1]]})
    assert verify(f"{run}@18") == 0
    assert f"  3  language    12 to 18  {2 * 4 + 3 * 8 + 1 * 1}       language 5 " in capsys.readouterr().out


def test_the_run_finds_a_passport_that_was_made_anew(folder, run, capsys):
    whole = json.loads((folder / "passport.json").read_text())
    (folder / "README.md").unlink()
    files.write_json(folder / "passport.json", seal.sealed(with_leaf(whole["claims"], ("stages", 0, "samples"), 2400)))
    assert verify(folder) == 0
    assert verify(folder, "--run", run) == 1
    assert told(capsys) == f"{folder} is not what its passport says: in {run} claim stages[0].samples was 24, is 2400"
    shutil.rmtree(toy.at(run, 18).folder)
    assert verify(folder, "--run", run) == 1 and f"checkpoint stage-3-language/step-00000018 is not in {run}" in told(capsys)


DAMAGED = {b"": "no JSON", b"{": "no JSON", b"[]": "no object", b"\xff": "no JSON", b'{"a": ' * 100_000: "no JSON"}


@pytest.mark.parametrize("body", DAMAGED, ids=["empty", "cut", "list", "bytes", "deep"])
def test_a_damaged_passport_is_told_in_a_line(body, folder, capsys):
    (folder / "passport.json").write_bytes(body)
    assert verify(folder) == 1 and told(capsys).startswith(
        f"{folder} is not what its passport says: passport.json is damaged: it is {DAMAGED[body]}"
    )


def test_blanks_and_names_given_twice_in_a_passport_are_told(folder, capsys):
    text = (folder / "passport.json").read_text()
    for changed in (text + "\n", text.replace('  "format"', '  "format": "x",\n  "format"', 1)):
        (folder / "passport.json").write_text(changed)
        assert verify(folder) == 1 and "passport.json: its bytes are not as plait wrote them" in told(capsys)


def test_a_passport_that_is_a_link_or_none_is_refused(folder, tmp_path, capsys):
    (folder / "passport.json").rename(tmp_path / "aside")
    assert verify(folder) == 2
    assert f"{folder} has no passport.json, and is no run: an export or push of an older plait, or of another program" in told(capsys)
    (folder / "passport.json").symlink_to("passport.json")
    assert verify(folder) == 1 and "passport.json is a link, and no file of its own" in told(capsys)
    (folder / "passport.json").unlink()
    (folder / "passport.json").symlink_to(tmp_path / "aside")
    assert verify(folder) == 1 and "passport.json is a link, and no file of its own" in told(capsys)
    (folder / "passport.json").unlink()
    (folder / "passport.json").mkdir()
    assert verify(folder) == 1 and "passport.json is no regular file" in told(capsys)


def test_a_repository_without_a_passport_or_none_at_all_is_told(hub, capsys):
    hub.repos["someone/old"] = hub_store.Repo(private=False)
    assert verify("someone/old") == 2
    assert told(capsys) == "someone/old on the Hub has no passport.json: it was pushed by an older plait, or by another program"
    assert verify("someone/none") == 2 and told(capsys).startswith("someone/none cannot be checked: there is no http")
    hub.fault = lambda method, path: 503
    assert verify("someone/old") == 2 and told(capsys).startswith("someone/old cannot be checked: ")


def test_the_hub_is_asked_for_small_files_alone(repo, hub):
    assert verify("someone/toy@stage-3-language") == 0
    fetched = {path.rpartition("/")[2] for method, path, _ in hub.asked if method == "GET" and "/resolve/" in path}
    assert fetched == {"passport.json", "README.md", "words", "manifest.json", "plait-run.json", "run-config.yaml"}


def test_every_fault_is_listed_and_json_has_all(folder, capsys):
    (folder / "weights.safetensors").write_bytes(b"")
    (folder / "extra.bin").write_bytes(b"")
    assert verify(folder, "--json") == 1
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["intact"] is False and [fault.partition(" ")[0] for fault in found["faults"]] == ["weights.safetensors", "extra.bin"]
    assert found["claims"]["stages"][2]["trained"] == {"language": 5} and "the first of 2 faults" in err
    assert verify(folder) == 1 and capsys.readouterr().out.count("  WRONG ") == 2


def test_consolidated_weights_have_a_passport(run, tmp_path, capsys):
    assert cli.main(["ckpt", "consolidate", str(run), str(tmp_path / "out")]) == 0
    assert verify(tmp_path / "out", "--run", run) == 0
    assert ": weights of step 18 of stage language, run " in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.safetensors", "passport.json", "plait.json", "weights.json"}


def resealed(folder, **claims):
    """Change claims of a passport and seal it anew, with the files as they are."""
    told = json.loads((folder / "passport.json").read_text())["claims"] | claims
    told["files"] = {name: entry.model_dump() for name, entry in listing.files_of(folder).items()}
    files.write_json(folder / "passport.json", seal.sealed(told))


def test_other_weights_in_a_passport_made_anew_are_found_by_making_them_again(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["ckpt", "consolidate", str(run), str(out)]) == 0
    assert verify(out, "--run", run, "--weights") == 0
    line = "  not compared with the run: "
    assert f"{line}other files of its layout\n" in capsys.readouterr().out and not list(run.glob(".verify-*"))
    body = bytearray((out / "model.safetensors").read_bytes())
    body[-1] ^= 1
    (out / "model.safetensors").write_bytes(body)
    resealed(out)
    assert verify(out, "--run", run) == 0
    assert f"{line}the tensors in model.safetensors (--weights does so); other files of its layout\n" in capsys.readouterr().out
    assert verify(out, "--run", run, "--weights") == 1
    assert re.search(
        r": tensor \S+ is not that of \S+: float32 \[.*\] sha256 \w{12}, was to be float32 \[.*\] sha256 \w{12}$", told(capsys)
    )
    assert verify(out, "--weights") == 2 and told(capsys).endswith("the run is to make it again: add --run RUN")


def test_kind_layout_and_weights_are_those_that_the_run_can_give(folder, run, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["ckpt", "consolidate", str(run), str(out), "--last"]) == 0
    (folder / "README.md").unlink()
    for place, claims, line in (
        (out, {"weights": "best weights"}, "claim weights is best weights, and those of "),
        (out, {"weights": "last weights", "layout": "hf"}, f"claim layout is hf, and those of weights folders of {run} are: none"),
        (out, {"layout": None, "kind": "export"}, "claim kind is export, and its files are those of: weights"),
        (folder, {"weights": "averaged weights"}, "claim weights is averaged weights, and those of "),
    ):
        resealed(place, **claims)
        assert verify(place, "--run", run) == 1 and line in told(capsys)


def test_a_run_that_began_from_another_and_was_stopped_says_so(made, run, tmp_path, capsys):
    new = toy.train(made[0], tmp_path / "new", f"from={run}@12", "stages=[]", "trainable=[language]", "train.steps=6")
    shutil.rmtree(toy.at(new, 6).folder)
    toy.train(new, new)
    assert verify(new) == 0
    shown = capsys.readouterr().out
    manifest = toy.at(run, 12).manifest["xxh3"]
    identity = (run / "identity").read_text().strip()
    assert f"  began       from run@12 (step 12, run {identity}, manifest xxh3 {manifest})\n" in shown
    assert "  survived    1 stop or kill, going on from step 4\n" in shown


def test_the_verdict_of_a_proof_is_kept_in_the_run_of_the_same_settings(made, run, capsys, caplog):
    same, slower = (open_config(run / "config.yaml", [f"run={run}", *more]) for more in ([], ["train.global_batch=8"]))
    assert proofs.run_of(run, same) == proofs.run_of(made[0], same) == run
    with caplog.at_level("INFO"):
        assert proofs.run_of(run, slower) is None
    assert f"the verdict is not kept in {run}, whose settings are others: train.global_batch" in caplog.text
    proofs.keep(run, "the runs part after going on from step 2", 1, ["worker"], seed=0, ranks=1, steps=8)
    proofs.keep(run, proofs.BIT_EXACT, 6, ["SIGKILL"] * 4 + ["worker"] * 2, seed=0, ranks=2, steps=8)
    assert verify(run) == 0
    line = "  proof       bit-exact: 6 kills (4 SIGKILL, 2 worker), 2 ranks, up to 8 steps a stage, seed 0\n"
    assert line in capsys.readouterr().out
    rows = (run / "proofs.jsonl").read_text()
    (run / "proofs.jsonl").write_text(rows.replace('"kills": 6', '"kills": 600'))
    assert verify(run) == 1
    shown = capsys.readouterr()
    assert f"{run / 'proofs.jsonl'}: the verdict 'bit-exact' is changed: it is not what its xxh3 is of" in shown.err.splitlines()[-1]
    assert "  proof       the runs part after going on from step 2: 1 kill (1 worker), 1 rank, up to 8 steps" in shown.out


def test_data_that_was_changed_since_is_told_where_that_is_asked_for(made, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    shutil.copy(made[0].parent / "train.jsonl", tmp_path)
    recipe.write_text(made[0].read_text().replace(f"{made[0].parent}/train", f"{tmp_path}/train"))
    run = toy.train(recipe, tmp_path / "run", "stages=[]", "trainable=[language]", "train.steps=2")
    assert verify(run, "--data") == 0
    assert cli.main(["ckpt", "consolidate", str(run), str(tmp_path / "out")]) == 0
    was = toy.at(run, 2).manifest["data"]["jsonl:train.jsonl"]
    (tmp_path / "train.jsonl").write_text((tmp_path / "train.jsonl").read_text().partition("\n")[2])
    assert verify(run) == 0 and verify(tmp_path / "out", "--run", run) == 0
    capsys.readouterr()
    for words in ((run, "--data"), (tmp_path / "out", "--run", run, "--data")):
        assert verify(*words) == 1
        line = f": data of stage train: jsonl:train.jsonl was {was}, is "
        assert line in told(capsys)
    (tmp_path / "train.jsonl").unlink()
    assert verify(run, "--data") == 1 and ": the data of stage train cannot be opened: " in told(capsys)
    assert verify(tmp_path / "out", "--data") == 2 and told(capsys) == "--data: where the data is, the run knows: add --run RUN"


def test_a_run_is_held_against_its_manifests(run, capsys):
    assert verify(run) == verify(f"{run}@12") == verify(run / "vision") == 0
    capsys.readouterr()
    folder = toy.at(run, 18).folder
    (folder / "more.safetensors").write_bytes(b"x")
    assert verify(run) == 1
    assert told(capsys) == f"{run} is not what its manifests say: {folder / 'more.safetensors'} is not in the manifest: it was added"
    (folder / "more.safetensors").unlink()
    for name, line in (
        ("run-config.yaml", "run-config.yaml is changed: its xxh3 was "),
        ("manifest.json", "does not match its own xxh3"),
    ):
        body = (folder / name).read_text()
        (folder / name).write_text(body.replace("18", "19") if name == "manifest.json" else f"# {body}")
        assert verify(run) == 1 and line in told(capsys)
        (folder / name).write_text(body)
    (run / "config.yaml").write_text("# " + (run / "config.yaml").read_text())
    assert verify(run) == 1
    assert f"{run / 'config.yaml'} is changed: it is not what the hash in its last line is of" in capsys.readouterr().err


def rewritten(folder, **changes):
    """Change the manifest of a checkpoint and make its hash anew, as somebody would who knows how."""
    body = {**json.loads((folder / "manifest.json").read_text()), **changes}
    body["xxh3"] = checkpoint.manifest_hash(body)
    files.write_json(folder / "manifest.json", body)


def test_a_manifest_that_is_written_anew_no_longer_fits_those_after_it(run, capsys):
    folder, was = toy.at(run, 6).folder, toy.at(run, 6).manifest["xxh3"]
    rewritten(folder, data={"jsonl:train.jsonl": "better"})
    assert verify(run) == 1
    shown = capsys.readouterr().out
    place, now = "stage-1-projection/step-00000006", checkpoint.read(folder).manifest["xxh3"]
    after = toy.at(run, 8).folder
    assert f"  WRONG {after}: the manifest of the one before it, {place}, had xxh3 {was}, has {now}\n" in shown
    assert f"  WRONG {toy.at(run, 18).folder}: the manifest of that of stage 1, {place}, had xxh3 {was}, has {now}\n" in shown
    shutil.rmtree(folder)
    assert verify(run) == 0, "one that was pruned is no fault"


def test_the_records_of_a_run_are_held_to_the_hashes_in_its_manifests(made, run, tmp_path, capsys):
    new = toy.train(made[0], tmp_path / "new", f"from={run}@12", "stages=[]", "trainable=[language]", "train.steps=6")
    shutil.rmtree(toy.at(new, 6).folder)
    toy.train(new, new)
    assert toy.at(new, 6).manifest["chain"]["continued_at"] == [4] and verify(new) == 0
    (new / "migrations.jsonl").unlink()
    assert verify(new) == 0 and capsys.readouterr().out.count("  survived    1 stop or kill, going on from step 4\n") == 2
    settings = toy.at(new, 4).folder / signed.COPY
    settings.write_text(signed.sign(settings.read_text().partition("# xxh3-64")[0].replace("seed: 0", "seed: 1")))
    assert verify(new) == 1 and f"{settings} is changed: its xxh3 was " in told(capsys)
    lineage = json.loads((new / "lineage.json").read_text())
    files.write_json(new / "lineage.json", lineage | {"step": 18})
    assert verify(f"{new}@6") == 1 and f"{new / 'lineage.json'} is changed: its xxh3 was " in told(capsys)
    (new / "lineage.json").unlink()
    assert verify(f"{new}@6") == 1 and f"{new / 'lineage.json'} is missing: the manifest of step 6 lists it" in told(capsys)


def test_the_tokenizer_and_the_identity_of_a_run_are_held_to_its_manifests(run, capsys):
    words, own = run / "assets/tokenizer/words", run / "identity"
    for path in (words, own):
        body = path.read_bytes()
        path.write_bytes(bytes([body[0] ^ 1]) + body[1:])
        assert verify(run) == 1
        assert (line := told(capsys)).startswith(f"{run} is not what its manifests say: {path} is changed: its xxh3 was ")
        assert "faults" not in line  # not one for each manifest
        path.unlink()
        assert verify(run) == 1 and f"{path} is missing: the manifest of step " in told(capsys)
        path.write_bytes(body)
    (words.parent / "added_tokens.json").write_text("{}")
    assert verify(run) == 1 and told(capsys).endswith("added_tokens.json is not in the newest manifest: it was added")
    (words.parent / "added_tokens.json").unlink()
    assert verify(run) == 0
    assert "; not covered: heartbeat/, learning/, ledger/, metrics.jsonl\n" in capsys.readouterr().out
    (run / "config.yaml").unlink()
    assert verify(f"{run}@18") == 1 and "config.yaml is missing: every run has its settings there" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["export", "RUN", "out", "--to", "hf"], ["eval", "RUN", "--bench", "loss"], ["train", "RUN"]])
def test_weights_are_not_used_with_a_tokenizer_that_was_changed_since(words, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = run / "assets/tokenizer/words"
    path.write_text("the run's owm")
    assert cli.main([str(run) if word == "RUN" else word for word in words]) == 2
    assert f"{path} is changed: its xxh3 was " in (line := told(capsys)) and line.endswith("put that back, as from a copy of the run")
    assert not (tmp_path / "out").exists() and len(checkpoint.published(run)) == 9


def test_manifests_of_an_older_plait_do_not_cover_the_tokenizer_and_that_is_told(run, capsys):
    for folder in checkpoint.published(run):
        rewritten(folder, chain={**checkpoint.read(folder).manifest["chain"], "before": None, "stages": {}, "records": {}})
    (run / "assets/tokenizer/words").write_text("another")
    assert verify(run) == 0
    assert "; not covered: assets/, heartbeat/, identity, learning/" in capsys.readouterr().out


def test_a_line_of_the_verdicts_that_is_none_is_told(run, capsys):
    for junk in ("junk", "[1]\n", "{}\n"):
        (run / "proofs.jsonl").write_text(junk)
        assert verify(run) == 1 and f"its manifests say: {run}/proofs.jsonl: line 1 is no verdict\n" in capsys.readouterr().err


def test_a_fork_goes_on_with_the_chain_of_its_parent(run, tmp_path, capsys):
    assert cli.main(["fork", f"{run}@14", str(tmp_path / "fork"), "--optim.lr=1e-3"]) == 0
    toy.train(tmp_path / "fork", tmp_path / "fork")
    assert verify(tmp_path / "fork") == 0
    shown = capsys.readouterr().out
    assert f"  began       as a fork of {run.name}@14 (step 14, run " in shown and "  survived    no stop: it ran through\n" in shown
    first = toy.at(tmp_path / "fork", 16).manifest["chain"]["before"]
    assert first == {"folder": "stage-3-language/step-00000014", "xxh3": toy.at(run, 14).manifest["xxh3"]}


def test_a_run_of_an_older_version_tells_its_stops_by_its_records(made, tmp_path, capsys):
    run = toy.train(made[0], tmp_path / "old", "checkpoint.reference=false", "stages=[]", "trainable=[language]")
    shutil.rmtree(toy.at(run, 6).folder)
    toy.train(run, run)
    assert "chain" not in toy.at(run, 6).manifest
    assert verify(run) == 0 and "  survived    1 stop or kill, going on from step 4\n" in capsys.readouterr().out
    toy.train(run, run, "checkpoint.reference=true", "train.steps=8")
    assert toy.at(run, 8).manifest["chain"]["continued_at"] is None
    assert verify(run) == 0 and "  survived    2 stops or kills, going on from step 4, 6\n" in capsys.readouterr().out


def test_a_checkpoint_under_another_name_is_told(run, capsys):
    folder = toy.at(run, 18).folder
    folder.rename(folder.with_name("step-00000020"))
    assert verify(run) == 1 and "step-00000020 has the manifest of step 18" in told(capsys)


def test_names_that_lead_out_of_the_folder_are_no_passport(folder, capsys):
    claims = json.loads((folder / "passport.json").read_text())["claims"]
    claims["files"]["../aside"] = {"size": 1, "sha256": "0"}
    files.write_json(folder / "passport.json", seal.sealed(claims))
    assert verify(folder) == 1 and "claim files is none of this version of plait: Value error, '../aside' is not inside the folder" in told(
        capsys
    )


def test_a_run_that_cannot_be_read_is_told_in_a_line_and_nothing_is_made_in_it(run, capsys):
    folder = toy.at(run, 18).folder
    body = json.loads((folder / "manifest.json").read_text())
    body["state"].pop("best")
    rewritten(folder, state=body["state"])
    assert verify(f"{run}@18") == 1 and f"{folder / 'manifest.json'} lacks state.best" in told(capsys)
    (run / "identity").unlink()
    for path in (run / "config.yaml", *run.glob("stage-*/step-*/run-config.yaml")):
        path.unlink()
    assert verify(f"{run}@16") == 1
    shown = capsys.readouterr().out
    assert f"  WRONG {toy.at(run, 16).folder / 'run-config.yaml'} is missing: the manifest of step 16 lists it\n" in shown
    assert f"  WRONG {run} is no run directory: it has no config.yaml\n" in shown and not (run / "identity").exists()


def test_what_is_not_there_is_told(run, tmp_path, capsys):
    (run / "stage-4-more").mkdir()
    for path in (run / "stage-4-more", run / "config.yaml"):
        assert verify(path) == 2
        assert told(capsys) == f"{path} has no passport.json, and is no run, stage or checkpoint of one"
    for path in (tmp_path / "begun", tmp_path / "empty"):
        path.mkdir()
    (tmp_path / "begun/config.yaml").touch()
    assert verify(tmp_path / "begun") == 2 and "has no checkpoint yet: there is nothing to verify" in told(capsys)
    assert verify(tmp_path / "none") == 2
    assert "give a run, a checkpoint of one, an export, or a repository of the Hub as owner/name" in told(capsys)
    assert verify(tmp_path / "empty") == 2 and "has no passport.json, and is no run: " in told(capsys)
