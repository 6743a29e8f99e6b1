"""Secrets: refused wherever they can stand, without being repeated; what only looks like one at first sight is not."""

import json
import logging

import pytest

from plait import cli
from plait.config import mixture, reading, secrets
from plait.config.nodes import Node, from_plain
from plait.data import paths
from plait.data.loading.micro_batch import MicroBatchBuilder
from plait.data.order import SampleId
from plait.data.sources.contract import Source
from plait.engine.guards import Quarantine
from plait.engine.monitoring import reporter
from plait.errors import PlaitError

TOKEN = "hf_" + 4 * "sesame"
"""A token by its form, in parts here: scanners of repositories look for whole ones."""

BASE = "family: theworld\nmodel: {base: tiny}\ndata: {train: [{source: scenes}]}\ntrain: {steps: 1}\n"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJzZXNhbWUifQ.sesame"
PLACES = {
    "data: {train: [{source: shards, path: 'https://h/a.tar?X-Amz-Date=x&X-Amz-Signature=sesame'}]}": "data.train.0.path is an address",
    "data: {train: [{source: shards, path: 'https://h/a.tar?GoogleAccessId=x&Signature=sesame'}]}": "data.train.0.path is an address",
    "data: {train: [{source: shards, path: 'https://h/a.tar?sv=2020&sp=r&sig=sesame'}]}": "data.train.0.path is an address",
    "data: {train: [{source: shards, path: 'https://h/a.tar?access_token=sesame'}]}": "data.train.0.path is an address",
    "data: {train: [{source: shards, path: 'https://h/a.tar?id=3&api%5Fkey=sesame'}]}": "data.train.0.path is an address",
    "data: {train: [{source: shards, path: 'https://sesame@h/a.tar'}]}": "data.train.0.path is an address",
    "data: {train: [{source: shards, path: 's3://key:sesame@bucket/a.tar'}]}": "data.train.0.path is an address",
    "data: {train: [{source: dataset, name: 'm:C', options: {cdn_token: sesame}}]}": "data.train.0.options.cdn_token looks like a secret",
    "data: {train: [{source: dataset, name: 'm:C', options: {headers: {Authorization: sesame}}}]}": "Authorization looks like a secret",
    "data: {train: [{source: dataset, name: 'm:C', options: {headers: ['Bearer sesamesesamesesame']}}]}": "headers.0 looks like a secret",
    "data: {train: [{source: dataset, name: 'm:C', options: {apiKey: sesame}}]}": "options.apiKey looks like a secret",
    f"data: {{train: [{{source: dataset, name: 'm:C', options: {{{TOKEN}: 1}}}}]}}": "a key looks like a secret",
    "data: {train: [{source: shards, path: 'https://h/a.tar#token=sesame'}]}": "data.train.0.path is an address",
    "data: {train: [{source: shards, path: 's3://b/a.tar#x=1;api_key=sesame'}]}": "data.train.0.path is an address",
    "data: {train: [{source: shards, path: '//key:sesame@host/a.tar'}]}": "data.train.0.path is an address",
    "data: {train: [{source: dataset, name: 'm:C', options: {headers: {Cookie: sesame}}}]}": "headers.Cookie looks like a secret",
    "data: {train: [{source: dataset, name: 'm:C', options: {headers: {Set-Cookie: sesame}}}]}": "Set-Cookie looks like a secret",
    "data: {train: [{source: dataset, name: 'm:C', options: {connection_string: sesame}}]}": "connection_string looks like a secret",
    f"run: runs/{TOKEN}": "run looks like a secret",
    f"track: {{wandb: {{project: p, name: {JWT}}}}}": "track.wandb.name looks like a secret",
    "stages: [{name: ghp_sesamesesamesesamesesamesesamesesame}]": "stages.0.name looks like a secret",
    "from: https://user:sesame@h/model": "from is an address",
}
HARMLESS = [
    "pad_token: '<pad>'",
    "image_token: '<image>'",
    "end_of_text: x",
    "max_tokens: 100",
    "image_token: 151655",
    "revision: 0123456789abcdef0123456789abcdef01234567",
    "path: https://h/get?id=3&download=true",
    "path: s3://bucket/a-?.tar",
    "path: sftp://user@host/a.tar",
    "path: https://h/a.html#part=2",
    "path: /data//of:me/a@b.tar",
    "template: {user: 'and/or // either: {a}'}",
    "cookie: null",
    "path: $ADDRESS",
    "path: https://h/a-{0..3}.tar?$SIGNATURE",
    "path: https://h/a.tar?sv=2020&sig=${SAS}",
    "template: {user: 'Write to me@example.com, or see https://h/a?b=c'}",
    "hf_token: null",
    "base: hf-internal-testing/tiny-random-gemma",
]


@pytest.fixture(autouse=True)
def no_paths_of_other_tests(monkeypatch):
    monkeypatch.setattr(secrets, "_filled_in", {})


@pytest.mark.parametrize("line", PLACES)
def test_a_secret_is_refused_where_it_stands_and_not_repeated(line, tmp_path, capsys):
    (tmp_path / "x.yaml").write_text(BASE.replace("data: {train: [{source: scenes}]}\n", "") + line + "\n")
    assert cli.main(["config", str(tmp_path / "x.yaml")]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"plait: {tmp_path}/x.yaml:4: ")
    assert PLACES[line] in said.err
    assert len(said.err.splitlines()) == 1
    assert "sesame" not in said.err + said.out


def test_the_cure_of_a_signed_address_is_a_variable_and_that_of_a_token_its_own():
    with pytest.raises(
        PlaitError, match=r"an environment variable and name that here, as in path: \$ADDRESS or https://host/a\.tar\?\$SIGNATURE"
    ):
        secrets.refuse(Node("https://h/a?sig=x", "f", 1, "path"))
    with pytest.raises(PlaitError, match="remove it and set the environment variable WANDB_API_KEY"):
        secrets.refuse(from_plain({"wandb_api_key": "x"}, Node(None, "f")))


@pytest.mark.parametrize("line", HARMLESS)
def test_what_is_no_secret_is_not_refused(line, tmp_path):
    (tmp_path / "x.yaml").write_text(line)
    reading.read(tmp_path / "x.yaml")


@pytest.mark.parametrize(
    "arguments",
    [
        ("config", "x.yaml", f"--run=runs/{TOKEN}"),
        ("config", "x.yaml", "--data.train.0.options.cdn_token=sesame"),
        ("config", "x.yaml", "--data.train=[{source: dataset, name: 'm:C', options: {password: sesame}}]"),
        ("config", "x.yaml", "--data.train.0.path=https://h/a.tar?X-Amz-Signature=sesame"),
        ("config", "x.yaml", "--data.train.0.path=https://h/a.tar#token=sesame"),
        ("config", "x.yaml", "--data.train.0.path=//u:sesame@h/a.tar"),
        ("config", "x.yaml", "--data.train.0.options.headers={Cookie: 'session=sesame'}"),
        ("config", "https://user:sesame@h/x.yaml"),
        ("data", "index", "https://h/a.tar?sig=sesame"),
        ("eval", "runs/demo", "--data", "https://h/a.tar?sig=sesame"),
        ("generate", TOKEN),
        ("sesame", "ghp_sesamesesamesesamesesamesesamesesame"),
    ],
)
def test_no_argument_of_any_command_may_hold_a_secret(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text(BASE)
    assert cli.main(list(arguments)) == 2
    said = capsys.readouterr()
    assert "looks like a secret, which no file or command line may hold" in said.err
    assert "sesame" not in said.err + said.out


def test_a_mixture_and_a_preset_are_files_as_well(tmp_path):
    file = tmp_path / "mix.yaml"
    file.write_text("- {name: a, path: 'https://h/a?sig=sesame'}\n")
    with pytest.raises(PlaitError, match=r"mix\.yaml:1: 0\.path is an address in which a part looks like a secret") as caught:
        mixture.read(file, (), {})
    assert "sesame" not in str(caught.value)


def test_the_value_of_a_secret_variable_is_nowhere_in_what_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "sesame-sesame")
    monkeypatch.setenv("SOME_PASSWORD", "short")
    (tmp_path / "x.yaml").write_text(BASE.replace("scenes", "folder, path: $HF_TOKEN") + f"run: {tmp_path}/run\n")
    assert cli.main(["train", str(tmp_path / "x.yaml")]) == 2
    reporter.install()
    logging.getLogger("plait.test").info("it is sesame-sesame, in short")
    said = capsys.readouterr()
    assert "$HF_TOKEN is not a folder" in said.err
    assert said.out.endswith("it is $HF_TOKEN, in short\n")
    assert "sesame" not in said.err + said.out


def test_the_reason_of_a_bad_sample_holds_no_value_of_a_secret_variable(monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "sesame-sesame")
    sample = type("Sample", (), {"id": type("Id", (), {"source": 0, "index": 1}), "replaced_by": type("Id", (), {"index": 2})})
    sample.name, sample.reason, sample.attempt = "a", "cannot read sesame-sesame", 0
    assert Quarantine._row(3, sample)["reason"] == "cannot read $MY_API_KEY"


def test_the_reason_of_a_bad_sample_holds_no_signature_of_an_address():
    sample = type("Sample", (), {"id": type("Id", (), {"source": 0, "index": 1}), "replaced_by": type("Id", (), {"index": 2})})
    sample.name, sample.attempt = "a", 0
    sample.reason = "cannot read https://me:pw1234@store.example/a.png?X-Amz-Signature=abc"
    assert Quarantine._row(3, sample)["reason"] == "cannot read https://store.example/a.png"


def test_what_is_said_holds_no_user_part_of_an_address_without_a_scheme():
    assert secrets.without_secrets("cannot open //me:sesame@host/a.tar") == "cannot open //host/a.tar"
    assert secrets.without_secrets("/data//of:me/a@b.tar") == "/data//of:me/a@b.tar"


@pytest.mark.parametrize("source", ["jsonl, path: a.jsonl", "datasets, path: a.csv"])
def test_a_variable_in_an_option_is_named_and_its_value_is_not_shown(tmp_path, monkeypatch, capsys, source):
    monkeypatch.setenv("MYSEC", "sesame-sesame")
    (tmp_path / "a.jsonl").write_text('{"image": "a.png", "caption": "x"}\n')
    (tmp_path / "a.csv").write_text("image,caption\na.png,x\n")
    (tmp_path / "x.yaml").write_text(BASE.replace("scenes", f"{source}, options: {{images: $MYSEC}}") + f"run: {tmp_path}/run\n")
    assert cli.main(["train", str(tmp_path / "x.yaml")]) == 2
    said = capsys.readouterr()
    assert "options.images '$MYSEC' is not a folder" in said.err and "sesame" not in said.err + said.out


@pytest.mark.parametrize(
    ("path", "shown"), [("$MYSEC/a.jsonl", "$MYSEC"), ("$MYFILE", "$MYFILE/.."), ("${MYSEC}/$PART/a.jsonl", "${MYSEC}/$PART")]
)
def test_a_variable_in_the_path_of_data_is_shown_and_its_value_neither_printed_nor_recorded(tmp_path, monkeypatch, capsys, path, shown):
    folder = tmp_path / "sesame" / "part"
    folder.mkdir(parents=True)
    monkeypatch.setenv("PART", "part")
    monkeypatch.setenv("MYSEC", str(folder if "$PART" not in path else folder.parent))
    monkeypatch.setenv("MYFILE", str(folder / "sesame.jsonl"))
    rows = [{"image": "missing.png", "caption": "x"}, {"image": "../x.png", "caption": "x"}, *({"caption": f"{i}"} for i in range(10))]
    for name in ("a.jsonl", "sesame.jsonl"):
        (folder / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    text = BASE.replace("source: scenes", f"source: jsonl, path: {path.join([chr(39)] * 2)}").replace(
        "steps: 1", "steps: 3, global_batch: 4"
    )
    (tmp_path / "x.yaml").write_text(f"{text}guard: {{max_bad_fraction: 1, no_input: continue}}\nrun: {tmp_path}/run\n")
    assert cli.main(["train", str(tmp_path / "x.yaml")]) == 0
    said = capsys.readouterr()
    assert f"cannot read '{shown}/missing.png'" in said.out and f"where images are not relative to {shown}, set" in said.out
    assert f"leaves the folder {shown};" in said.out
    assert f"cannot read '{shown}/missing.png'" in (tmp_path / "run" / "quarantine.jsonl").read_text()
    assert "sesame" not in said.out + said.err
    assert [file for file in (tmp_path / "run").rglob("*") if file.is_file() and b"sesame" in file.read_bytes()] == []


def test_inspecting_data_shows_no_value_of_a_variable_on_the_screen_and_on_its_page(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "sesame"
    folder.mkdir()
    monkeypatch.setenv("MYSEC", str(folder))
    monkeypatch.setenv("MYFILE", str(folder / "sesame.jsonl"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    rows = [{"image": "missing.png", "caption": "x"}, {"id": f"{folder}/7 {TOKEN}", "caption": "good"}, {"caption": None}]
    (folder / "sesame.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    sources = ", ".join(f"{{source: jsonl, path: '{path}'}}" for path in ("$MYFILE", "$MYSEC/sesame.jsonl"))
    (tmp_path / "x.yaml").write_text(BASE.replace("{source: scenes}", sources) + "guard: {no_input: continue}\n")
    assert cli.main(["data", "inspect", str(tmp_path / "x.yaml"), f"--out={tmp_path / 'out'}"]) == 0
    said, page = capsys.readouterr(), (tmp_path / "out" / "page.html").read_text()
    assert "$MYSEC/missing.png" in page and "good" in page and "$HF_TOKEN" in page
    for text in (said.out, said.err, page):
        assert str(folder) not in text and TOKEN not in text


def test_indexing_data_shows_no_value_of_a_variable(tmp_path, monkeypatch, capsys):
    (tmp_path / "sesame").mkdir()
    monkeypatch.setenv("MYSEC", str(tmp_path / "sesame"))
    (tmp_path / "sesame" / "a.jsonl").write_text('{"caption": "x"}\n')
    for beside in ([], ["--beside"]):
        assert cli.main(["data", "index", "$MYSEC/a.jsonl", *beside]) == 0
    assert cli.main(["data", "index", "$MYSEC/b.jsonl"]) == 2
    said = capsys.readouterr()
    assert "sesame" not in said.out + said.err and "$MYSEC" in said.out + said.err


def test_the_reason_of_a_bad_sample_is_masked_where_it_is_read_since_other_processes_do_not_know_the_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("MYSEC", str(tmp_path / "sesame"))

    class Missing(Source):
        name = fingerprint = "missing"

        def __len__(self):
            return 4

        def __getitem__(self, index):
            return paths.read_regular(paths.local(f"$MYSEC/{index}.png"))

    builder = MicroBatchBuilder([Missing()], None, None, seed=0, rank=0, world_size=1, micro_batch=None)
    with pytest.raises(PlaitError, match=r"the first: cannot read '\$MYSEC/3.png': No such file or directory$"):
        builder.encode(SampleId(0, 3, 0))
