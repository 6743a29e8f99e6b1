"""`plait push`: one commit of weights, settings and a card, that a run can begin with; sent again it changes nothing."""

import json
import random
import shutil
import time
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors.torch import save_file

from plait import cli, files
from plait.assembly import hub_start, saved
from plait.commands.actions import export
from plait.commands.actions.checkpoints import consolidate
from plait.commands.actions.publishing import hub as sent_to
from plait.commands.actions.publishing import outbox, retries, sending
from plait.commands.actions.publishing import push as command
from plait.config.sections.hub import repository
from plait.engine.checkpoints import checkpoint, integrity
from plait.engine.checkpoints.sharded_files import OFFSETS
from tests import hub_store
from tests import toy_family as toy

ONE = ("stages=[]", "trainable=[language]", "train.steps=1")
FILES = [
    "README.md",
    "assets/tokenizer/words",
    "ema.safetensors",
    "manifest.json",
    "passport.json",
    "plait-run.json",
    "run-config.yaml",
    "weights.safetensors",
]


def push(*words):
    return cli.main(["push", *map(str, words)])


def pushed(repo, revision="main"):
    """The files of a revision without the one that every repository has."""
    return {name: body for name, body in repo.files(revision).items() if name != ".gitattributes"}


def body(run, step, name):
    return (toy.at(run, step).folder / name).read_bytes()


def test_a_push_is_one_commit_and_a_run_begins_with_it(made, run, hub, tmp_path, capsys):
    assert push(run, "someone/toy") == 0
    repo = hub.repos["someone/toy"]
    assert repo.private and repo.of("main") == ["plait: step 18 of stage language"]
    assert sorted(pushed(repo)) == FILES and pushed(repo, "stage-3-language") == pushed(repo)
    new = toy.train(made[0], tmp_path / "new", "from=someone/toy", *ONE)
    vision = [toy.at(folder, step).tensors("weights") for folder, step in ((run, 18), (new, 1))]
    assert toy.same(*({name: value for name, value in of.items() if name.startswith("vision")} for of in vision))
    assert (new / "assets/tokenizer/words").read_text() == "the run's own" and "warning" not in capsys.readouterr().err
    assert not outbox.waiting(run) and outbox.sent(run)[0]["commit"] == repo.branches["main"]


def test_a_stage_is_in_a_branch_of_its_own_that_from_names(made, run, hub, tmp_path):
    assert push(run / "vision", "someone/toy") == 0 and push(run, "someone/toy") == 0
    repo = hub.repos["someone/toy"]
    assert repo.of("main") == ["plait: step 12 of stage vision", "plait: step 18 of stage language"]
    assert pushed(repo, "stage-2-vision")["weights.safetensors"] == body(run, 12, "weights.safetensors")
    new = toy.train(made[0], tmp_path / "new", "from=someone/toy@stage-2-vision", *ONE)
    assert json.loads((new / "lineage.json").read_text())["step"] == 12


def test_the_same_push_again_makes_no_commit_and_sends_no_weights(run, hub):
    assert push(run, "someone/toy") == 0
    large, log = [path for _, path, _ in hub.asked if path.startswith("/lfs/")], list(hub.repos["someone/toy"].log)
    assert large and push(run, "someone/toy") == 0
    assert hub.repos["someone/toy"].log == log and [path for _, path, _ in hub.asked if path.startswith("/lfs/")] == large


def test_pushes_survive_outages_and_lost_answers_whole_in_order_and_once(run, hub, monkeypatch):
    chance, steps = random.Random(0), [2, 8, 10]
    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(hub_store, "PART", 200)
    hub.fault = lambda method, path: chance.choice([500, 503, 429, "cut", "lost"]) if chance.random() < 0.2 else None
    for step in steps:
        assert push(f"{run}@{step}", "someone/toy") == 0
    repo = hub.repos["someone/toy"]
    assert [int(message.split()[2]) for message in repo.of("main")] == steps
    for step, (_, commit, _) in zip(steps, [row for row in repo.log if row[0] == "main"][1:], strict=True):
        whole = pushed(repo, commit)
        assert sorted(whole) == FILES and whole["weights.safetensors"] == body(run, step, "weights.safetensors")
        assert json.loads(whole["plait-run.json"])["step"] == json.loads(whole["manifest.json"])["state"]["step"] == step
    assert [row["step"] for row in outbox.sent(run)] == steps and not outbox.waiting(run)


REFUSALS = {
    "no token": "there is no token: set HF_TOKEN to one that may write, or run `hf auth login`",
    "wrong token": "the Hub refuses the token (401): set HF_TOKEN to one that is valid and may write, or run `hf auth login` again",
    "no right": "the token may not write to someone/toy (403): give it that right at",
    "offline": "HF_HUB_OFFLINE is set: unset it",
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_is_one_line_with_its_cure_and_the_next_push_sends_what_waits(run, hub, monkeypatch, capsys, case):
    with monkeypatch.context() as patch:
        if case == "no token":
            patch.delenv("HF_TOKEN")
        elif case == "wrong token":
            hub.token = "hf_" + "another" * 3
        elif case == "no right":
            hub.forbidden = True
        else:
            patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert push(run, "someone/toy") == 2
    said = capsys.readouterr().err
    assert f"plait: step 18 of stage language is not pushed to someone/toy: {REFUSALS[case]}" in said and said.count("\n") == 1
    assert said.endswith(f"; then `plait push {run}` sends what waits\n") and len(outbox.waiting(run)) == 1
    assert not hub.repos or not hub.repos["someone/toy"].of("main")
    hub.token, hub.forbidden = hub_store.TOKEN, False
    assert push(run) == 0 and sorted(pushed(hub.repos["someone/toy"])) == FILES


NO_HUB, CONTENT = "see that HF_ENDPOINT is a Hub that takes pushes", "mend what that names, or name another repository"
FOR_GOOD = {400: CONTENT, 404: NO_HUB, 405: NO_HUB, 410: NO_HUB, 413: CONTENT, 415: CONTENT, 422: CONTENT, 501: NO_HUB, 505: NO_HUB}


def test_an_answer_that_will_not_get_better_is_told_at_once_and_what_is_refused_stays_in_the_queue(run, hub, monkeypatch, capsys):
    monkeypatch.setattr(outbox, "PATIENCE_S", 0.0)
    for status, cure in FOR_GOOD.items():
        hub.fault = lambda method, path, status=status: status if "/commit/" in path else None
        assert push(run, "someone/toy") == 2
        said = capsys.readouterr().err
        assert said.startswith(f"plait: step 18 of stage language is not pushed to someone/toy: {hub.url} answers {status}: ")
        assert said.endswith(f": {cure}; then `plait push {run}` sends what waits\n") and said.count("\n") == 1
    hub.fault = lambda method, path: None
    assert push(run) == 0 and not outbox.waiting(run)


def test_a_pause_that_the_hub_asks_for_is_made(run, hub, monkeypatch):
    slept, asked = [], [(429, {"Retry-After": "7"}), (503, {"Retry-After": "1e9"}), (429, {"Retry-After": "99999"})]
    monkeypatch.setattr(command, "time", SimpleNamespace(monotonic=time.monotonic, sleep=slept.append))
    monkeypatch.setattr(outbox, "PATIENCE_S", 1e6)
    hub.fault = lambda method, path: asked.pop(0) if asked and "/commit/" in path else None
    assert push(run, "someone/toy") == 0 and slept == [7.0, 2.0, sending.LONGEST_ASKED_S]


@pytest.fixture
def three(run, hub):
    """The queue of a run has three pushes to someone/toy, of steps 2 (stage projection), 8 and 10 (vision)."""
    hub.forbidden = True
    hub.repos["someone/toy"] = hub_store.Repo(private=True)
    assert [push(f"{run}@{step}", "someone/toy") for step in (2, 8, 10)] == [2, 2, 2]
    hub.forbidden = False
    return hub.repos["someone/toy"]


def too_large(hub, step):
    hub.fault = lambda method, path: 413 if "/commit/" in path and b"plait: step %d of" % step in hub.bodies[-1] else None


def steps(repo, branch="main"):
    return [int(message.split()[2]) for message in repo.of(branch)]


def test_what_is_refused_alone_keeps_nothing_waiting_and_does_not_take_a_branch_back(run, hub, three, capsys):
    too_large(hub, 2)
    capsys.readouterr()
    assert push(run) == 2 and steps(three) == [8, 10] and [item.job.step for item in outbox.waiting(run)] == [2]
    said = capsys.readouterr()
    assert "step 2 of stage projection is not pushed to someone/toy: " in said.err and said.err.count("\n") == 1
    hub.fault = lambda method, path: None
    assert push(run) == 0 and steps(three) == [8, 10] and pushed(three)["plait-run.json"] != b""
    first = next(name for name in three.branches if name.startswith("stage-1-"))
    assert json.loads(three.files(first)["plait-run.json"])["step"] == 2 and not outbox.waiting(run)
    assert f", branch {first}: main has a newer push" in capsys.readouterr().out


def test_a_push_that_was_overtaken_on_all_its_branches_gets_one_of_its_own(made, run, hub, three, tmp_path):
    too_large(hub, 8)
    assert push(run) == 2 and steps(three) == [2, 10]
    hub.fault = lambda method, path: None
    assert push(run) == 0 and steps(three) == [2, 10]
    own = "stage-2-vision-step-00000008"
    assert json.loads(three.files("stage-2-vision")["plait-run.json"])["step"] == 10
    assert three.files(own)["weights.safetensors"] == body(run, 8, "weights.safetensors") and sorted(pushed(three, own)) == FILES
    new = toy.train(made[0], tmp_path / "new", f"from=someone/toy@{own}", *ONE)
    assert json.loads((new / "lineage.json").read_text())["step"] == 8


def test_a_repository_that_takes_nothing_is_told_once_and_others_get_theirs(run, hub, three, capsys):
    hub.repos["someone/toy"].private = False
    capsys.readouterr()
    assert push(f"{run}@18", "someone/else") == 0, "what was asked for is there"
    said = capsys.readouterr().err
    assert "someone/toy is public, and is to be private" in said and said.count("\n") == 2
    wait = (
        f"warning: 3 other pushes still wait in {run / 'outbox'}: `plait push {run}` tries again, and `plait push {run} --drop` takes them"
    )
    assert f"{wait} out\n" in said
    assert steps(three) == [] and steps(hub.repos["someone/else"]) == [18]
    assert [item.job.step for item in outbox.waiting(run)] == [2, 8, 10]


def test_an_item_that_cannot_be_read_is_told_and_keeps_nothing_waiting(run, hub, three, capsys):
    path = outbox.waiting(run)[0].folder / "job.json"
    path.write_text("{")
    capsys.readouterr()
    assert push(run) == 2 and steps(three) == [8, 10]
    line = f"plait: {path} is damaged (JSONDecodeError): delete {path.parent}, and push that checkpoint again\n"
    assert capsys.readouterr().err == line and push(run) == 2 and capsys.readouterr().err == line


def test_a_dead_hub_is_given_up_after_a_time_and_what_waits_is_kept(run, hub, monkeypatch, capsys):
    monkeypatch.setattr(outbox, "PATIENCE_S", 0.0)
    hub.fault = lambda method, path: "cut"
    assert push(run, "someone/toy") == 2
    said = capsys.readouterr().err
    assert f"the Hub has taken nothing for 0 minutes: {hub.url} cannot be reached" in said and said.count("\n") == 2
    assert f"what waits is in {run / 'outbox'}, and `plait push {run}` sends it later" in said
    assert [item.job.step for item in outbox.waiting(run)] == [18]


def test_a_checkpoint_that_waits_is_sent_although_it_was_pruned(run, hub):
    hub.forbidden = True
    hub.repos["someone/toy"] = hub_store.Repo(private=True)
    weights = body(run, 18, "weights.safetensors")
    assert push(run, "someone/toy") == 2
    shutil.rmtree(toy.at(run, 18).folder)
    hub.forbidden = False
    assert push(run) == 0 and hub.repos["someone/toy"].files()["weights.safetensors"] == weights


def test_a_repository_of_another_model_is_left_alone_unless_it_is_to_be_replaced(run, hub, capsys):
    repo = hub.repos["someone/toy"] = hub_store.Repo(private=True)
    repo.commit("main", {"model.safetensors": b"x", "pytorch_model.bin": b"x", "LICENSE": b"x"}, "theirs")
    assert push(run, "someone/toy") == 2
    said = capsys.readouterr().err
    assert "someone/toy holds weights that no run of plait has pushed, and this is run" in said and "or push with --replace" in said
    shutil.rmtree(run / "outbox")
    assert push(run, "someone/toy", "--replace") == 0 and sorted(pushed(repo)) == sorted([*FILES, "LICENSE"])
    (run / "identity").write_text("0" * 12 + "\n")
    assert push(run, "someone/toy") == 2 and "someone/toy holds weights of run " in capsys.readouterr().err


def test_what_a_push_no_longer_has_goes_and_what_others_put_there_stays(run, hub):
    assert push(run, "someone/toy") == 0
    repo = hub.repos["someone/toy"]
    card = repo.files()["README.md"].decode().replace("# toy", "# My toy").encode()
    repo.commit("main", repo.files() | {"LICENSE": b"mine", "README.md": card}, "mine")
    shutil.rmtree(run / "assets")
    assert push(f"{run}@16", "someone/toy") == 0
    assert sorted(pushed(repo)) == sorted({*FILES, "LICENSE"} - {"assets/tokenizer/words"})
    assert repo.files()["README.md"] == card and "README.md" in repo.files("stage-3-language")


def test_a_public_repository_gets_nothing_unless_that_is_asked_for(run, hub, capsys):
    hub.repos["someone/toy"] = hub_store.Repo(private=False)
    assert push(run, "someone/toy") == 2
    assert "someone/toy is public, and is to be private: make it private there, or push with hub.private=false" in capsys.readouterr().err
    shutil.rmtree(run / "outbox")
    assert push(run, "someone/toy", "--public") == 0 and push(run, "fresh", "--public") == 0
    assert not hub.repos["someone/fresh"].private
    assert f"pushed to {hub.url}/someone/fresh/tree/{hub.repos['someone/fresh'].branches['main']}\n" in capsys.readouterr().out


def test_a_file_that_was_damaged_while_it_waited_is_not_sent_and_nothing_waits_for_it(run, hub, capsys):
    hub.forbidden = True
    hub.repos["someone/toy"] = hub_store.Repo(private=True)
    assert push(f"{run}@8", "someone/toy") == 2
    (item,) = outbox.waiting(run)
    weights = item.files / "weights.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.unlink()
    weights.write_bytes(bytes(damaged))
    hub.forbidden = False
    capsys.readouterr()
    assert push(run, "someone/toy") == 2
    line = f"step 8 of stage vision is not pushed to someone/toy: {weights} is damaged; push another checkpoint"
    assert capsys.readouterr().err == f"warning: {line}\nplait: {line}\n"
    assert hub.repos["someone/toy"].of("main") == ["plait: step 18 of stage language"] and not outbox.waiting(run)
    assert [(row["step"], row["commit"] is None) for row in outbox.sent(run)] == [(8, True), (18, False)]


@pytest.mark.parametrize("name", ["manifest.json", "passport.json", "model.safetensors"])
def test_an_export_or_a_manifest_that_was_damaged_while_it_waited_is_given_up(run, hub, monkeypatch, capsys, name):
    def exported(spec, out, to, kept):
        consolidate(str(spec), out, averaged=True)

    monkeypatch.setattr(export, "export", exported)
    hub.forbidden = True
    hub.repos["someone/toy"] = hub_store.Repo(private=True)
    assert push(run, "someone/toy", *([] if name == "manifest.json" else ["--to", "hf"])) == 2
    (item,) = outbox.waiting(run)
    body = (item.files / name).read_bytes()
    (item.files / name).unlink()
    (item.files / name).write_bytes(body.replace(b"18", b"19") + b" ")
    hub.forbidden = False
    capsys.readouterr()
    assert push(f"{run}@12", "someone/toy") == 2
    assert f"is not pushed to someone/toy: {item.files / name} is damaged; push another checkpoint\n" in capsys.readouterr().err
    assert hub.repos["someone/toy"].of("main") == ["plait: step 12 of stage vision"] and not outbox.waiting(run)


def test_without_a_repository_the_line_says_how_to_name_one(run, hub, capsys):
    assert push(run) == 2
    assert f"no repository is named: `plait push {run} OWNER/NAME`, or set hub.repo in the configuration" in capsys.readouterr().err
    assert push(run, "one/two/three") == 2
    assert "REPO is 'one/two/three', which is no repository of the Hub: write owner/name" in capsys.readouterr().err
    assert push(run, "one/.two") == 2 and "is no repository of the Hub" in capsys.readouterr().err
    assert not (run / "outbox").exists() and not hub.asked


def test_the_token_is_in_the_header_and_nowhere_else(run, hub, tmp_path, capsys):
    hub.forbidden = True
    hub.repos["someone/toy"] = hub_store.Repo(private=True)
    assert push(run, "someone/toy") == 2
    hub.forbidden = False
    assert push(run) == 0
    said = capsys.readouterr()
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert any(token == hub_store.TOKEN for _, _, token in hub.asked) and len(written) > 20
    assert not any(token for _, path, token in hub.asked if path.startswith("/lfs/") and not path.endswith("/verify"))
    assert hub_store.TOKEN.encode() not in b"".join([*hub.bodies, *written]) + (said.out + said.err).encode()


def test_the_card_has_figures_with_intervals_stages_data_and_no_folder_of_this_machine(run, hub, tmp_path):
    measured = {"bench": "accuracy", "step": 18, "data": "held out", "figures": {"accuracy": 0.5, "samples": 8}}
    measured |= {"intervals": {"accuracy": [0.25, 0.75]}, "verdict": "accuracy: on beats off"}
    (run / "eval/accuracy-step-18").mkdir(parents=True)
    (run / "eval/accuracy-step-18/metrics.json").write_text(json.dumps(measured))
    assert push(run, "someone/toy") == 0
    text = hub.repos["someone/toy"].files()["README.md"].decode()
    data = ModelCard(text).data
    found = {(one.task_name, one.metric_name): (one.metric_value, one.metric_args) for one in data.eval_results}
    assert found["accuracy", "accuracy"] == (0.5, {"interval_95": [0.25, 0.75]}) and ("loss", "loss") in found
    assert data.library_name == "plait" and data.tags == ["plait", "theworld"] and data.model_name == "toy"
    fingerprint = next(iter(toy.at(run, 18).manifest["data"].values()))
    for part in (fingerprint, "accuracy: on beats off", "| vision | 6 of 6 |", "--from=someone/toy@stage-3-language", "torch 2."):
        assert part in text
    assert str(tmp_path) not in text and "/tmp/" not in text


def test_the_card_of_an_older_checkpoint_tells_nothing_of_what_came_later(run, hub):
    assert push(f"{run}@4", "someone/toy") == 0
    results = ModelCard(hub.repos["someone/toy"].files()["README.md"].decode()).data.eval_results
    row = next(row for row in toy.figures(run) if row["step"] == 4 and "eval/loss" in row)
    assert [one.metric_value for one in results if one.metric_name == "loss"] == [row["eval/loss"]]


def test_an_export_is_pushed_in_place_of_the_checkpoint(run, hub, monkeypatch):
    def exported(spec, out, to, kept):
        out.mkdir()
        (out / "config.json").write_text(f'{{"of": "{to}"}}')
        shutil.copy(toy.at(run, 18).folder / "weights.safetensors", out / "model.safetensors")

    assert push(run, "someone/toy") == 0
    monkeypatch.setattr(export, "export", exported)
    assert push(run, "someone/toy", "--to", "hf") == 0
    repo = hub.repos["someone/toy"]
    assert sorted(pushed(repo)) == ["README.md", "config.json", "model.safetensors", "passport.json", "plait-run.json"]
    assert cli.main(["verify", "someone/toy", "--run", str(run)]) == 0
    assert repo.of("main")[1] == "plait: step 18 of stage language, as hf"
    assert "plait export RUN DIR --to hf" in repo.files()["README.md"].decode()
    assert not list(run.glob(".export-*"))


def test_a_request_without_an_answer_is_given_up(run, hub, monkeypatch):
    monkeypatch.setattr(sent_to, "ANSWER_S", 0.2)
    monkeypatch.setattr(outbox, "PATIENCE_S", 0.0)
    hub.fault = lambda method, path: hub.silent.wait(30) and None
    try:
        assert push(run, "someone/toy") == 2
    finally:
        hub.silent.set()


def test_a_pushed_manifest_lists_what_is_there_and_verifies(run, hub, tmp_path):
    assert push(f"{run}@8", "someone/toy") == 0
    folder = tmp_path / "pulled"
    for name, content in pushed(hub.repos["someone/toy"]).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    assert integrity.verify(folder) == [] and sorted(checkpoint.read(folder).manifest["files"]) == [
        "ema.safetensors",
        "weights.safetensors",
    ]


def test_a_pushed_checkpoint_of_several_ranks_is_opened_and_a_start(made, run, hub, tmp_path):
    found = toy.at(run, 18)
    for group in ("weights", "ema"):  # as ranks would write it
        (found.folder / group).mkdir()
        (found.folder / f"{group}.safetensors").unlink()
    body = {"format": checkpoint.FORMAT} | found.manifest
    groups, entries = {group: toy.at(made[1], 18).tensors(group) for group in ("weights", "ema")}, {}
    for group, tensors in groups.items():
        path = found.folder / group / "00000-of-00001.safetensors"
        save_file(
            tensors, path, metadata={OFFSETS: json.dumps({name: {"saved_offsets": [0] * value.ndim} for name, value in tensors.items()})}
        )
        entries[str(path.relative_to(found.folder))] = {"size": path.stat().st_size, "xxh3": files.xxh3(path)}
    body["files"] = entries | {name: entry for name, entry in body["files"].items() if name == "moments.safetensors"}
    body.pop("xxh3")
    files.write_json(found.folder / "manifest.json", body | {"xxh3": checkpoint.manifest_hash(body)})
    assert push(run, "someone/toy") == 0
    opened = saved.locate(hub_start.local_checkpoint("someone/toy")).checkpoint
    assert toy.same(opened.tensors("weights"), groups["weights"])
    new = toy.train(made[0], tmp_path / "new", "from=someone/toy", *ONE)
    assert json.loads((new / "lineage.json").read_text())["step"] == 18


def test_a_name_that_the_client_of_the_hub_would_not_take_is_refused_before_it_is_in_a_queue():
    names = [
        "a",
        "a/b",
        "A-1/b_2.c",
        "a/b/c",
        "a.b/c",
        "../x",
        "x/",
        "/x",
        "x/y@main",
        "http://x/y",
        "-a/b",
        "a-/b",
        "a/.b",
        "a/b.",
        "a--b",
        "a/b..c",
        "a/b.git",
        "someone/ü",
    ]
    for name in [*names, "a b", "", "a" * 96, "a" * 97, f"a/{'b' * 96}", f"a/{'b' * 97}", "a/b\n"]:
        try:
            validate_repo_id(name)
        except HFValidationError:
            with pytest.raises(ValueError, match="which is no repository of the Hub: "):
                repository(name)
        else:
            assert repository(name) == name


def test_what_waits_is_taken_out_of_the_queue_by_repository_or_all(run, hub, three, capsys):
    path = outbox.waiting(run)[2].folder / "job.json"
    path.write_text(path.read_text().replace("someone/toy", "someone--toy"))  # as one of an older plait
    assert push(run, "someone--toy", "--drop") == 0
    assert [item.job.step for item in outbox.waiting(run)] == [2, 8] and outbox.sent(run)[-1]["commit"] is None
    assert push(run, "someone/else", "--drop") == 0
    (outbox.waiting(run)[1].folder / "job.json").write_text("{")
    assert push(run, "--drop") == 0 and not outbox.waiting(run) and not outbox.damaged(run)
    assert push(run, "--drop") == push(run, "someone/toy") == 0 and steps(three) == [18]
    said = capsys.readouterr().out
    assert "step 10 of stage vision for someone--toy: taken out of the queue" in said and "nothing waits in" in said
    assert f"nothing waits in {run / 'outbox'} for someone/else" in said and "which is damaged: taken out of the queue" in said


def test_taking_pushes_out_of_the_queue_is_one_line_where_it_cannot_be(run, hub, three, capsys):
    capsys.readouterr()
    with outbox.locked(run) as mine:
        assert mine and push(run, "--drop") == 2
    for words in ([f"{run}@18", "--drop"], [run / "nope", "--drop"], [run, "--drop", "--public"]):
        assert push(*words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 4 and "another process sends the queue of" in said and "is no run, whose queue it would be" in said
    assert "--drop pushes nothing: leave --to, --public and --replace out" in said and len(outbox.waiting(run)) == 3
