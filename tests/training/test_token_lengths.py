"""Token lengths in a stage: batches of similar length, and what is done with samples that are longer than `data.max_tokens`."""

import json
import shutil

import pytest

from plait import cli
from plait.assembly.configuration import open_config
from plait.config.schema import SourceEntry
from plait.data.sources.open import open_source
from plait.errors import BadSample
from plait.families import registry
from tests.data.packing import pack, picture
from tests.test_cli import CONFIG

WORDS = ["red", "blue", "green", "square", "circle", "above", "below", "left", "right", "three"]
MOLMO = "family: molmo\npreset: debug\n"


def data(folder, count=48, **more):
    """Captions of 1 to 40 words, each with a picture, the later ones with a second or none."""
    folder.mkdir(parents=True, exist_ok=True)
    for side in (6, 40, 90):
        (folder / f"{side}.png").write_bytes(picture(side, (side, 30)))
    rows = [
        {"id": str(i), "image": f"{(6, 40, 90)[i % 3]}.png", "caption": " ".join(WORDS[(i + k) % 10] for k in range(1 + i * 7 % 40))}
        for i in range(count)
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps({**row, **more}) + "\n" for row in rows))
    return f"[{{source: jsonl, path: {folder / 'data.jsonl'}}}]"


def configuration(tmp_path, family=None, **more):
    path = tmp_path / "run.yaml"
    head = CONFIG.partition("data:")[0] if family is None else family
    path.write_text(
        f"{head}data: {{train: {data(tmp_path)}, workers: 0, {', '.join(f'{k}: {v}' for k, v in more.items())}}}\n"
        "train: {steps: 6, global_batch: 8, micro_batch: 4}\noptim: {schedule: {warmup_steps: 0}}\ntrack: {tensorboard: false}\n"
        "validation: []\n".replace("validation: []\n", "")
    )
    return path


SAMPLES = {
    "a caption": {"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "a red square"}], "images": [(40, 30)]},
    "text": {"messages": [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "so"}], "images": []},
    "two pictures in the text": {
        "messages": [{"role": "user", "content": "<image> or <image>?"}, {"role": "assistant", "content": "the first"}],
        "images": [(200, 30), (30, 120)],
    },
    "several turns": {
        "messages": [
            {"role": "user", "content": "<image>What is it?"},
            {"role": "assistant", "content": "a square"},
            {"role": "user", "content": "Which colour?"},
            {"role": "assistant", "content": "red"},
        ],
        "images": [(500, 400)],
    },
    "a clip": {
        "messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "it moves"}],
        "images": [(16, 16)],
        "frames": [(16, 16)] * 5,
    },
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """The inputs of each family's small model, with its tokenizer, and of theworld without a world and with world steps."""
    made = {}
    heads = {
        "theworld": CONFIG.partition("data:")[0],
        "theworld without a world": CONFIG.partition("data:")[0].replace("world: {image_size: 16}", "world: off"),
        "theworld with steps": CONFIG.partition("data:")[0].replace("world: {image_size: 16}", "world: {image_size: 16, steps: 1}"),
        "molmo": MOLMO,
        "molmo of many crops": MOLMO + "model: {max_crops: 6}\n",
    }
    for name, head in heads.items():
        folder = tmp_path_factory.mktemp("inputs")
        config = open_config(configuration(folder, head)).config
        family = registry.load(config.family)
        section = family.Config.model_validate(config.model)
        family.prepare(section, folder / "assets", lambda: WORDS * 20)
        made[name] = (family, family.Inputs(section, folder / "assets", max_tokens=None, pad="longest", train=False))
    return made


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("model", ["theworld", "theworld without a world", "theworld with steps", "molmo", "molmo of many crops"])
def test_lengths_are_those_of_the_encoded_rows(inputs, model, sample):
    family, made = inputs[model]
    given = {"id": "a", "fields": {}, **SAMPLES[sample]}
    for name in {"images", "frames"} & given.keys():
        given[name] = [picture(9, size) for size in given[name]]
    length = family.token_lengths(made)
    try:
        right = len(made.encode(given, 1).row.ids)
    except BadSample:
        with pytest.raises(BadSample):
            length.of(given)
        return
    assert length.of(given) == right


def test_a_clip_is_told_of_as_it_is_read(tmp_path):
    (tmp_path / "clip").mkdir()
    for frame in range(5):
        (tmp_path / "clip" / f"{frame}.png").write_bytes(picture(frame, (16, 16)))
    (tmp_path / "a.png").write_bytes(picture(1))
    (tmp_path / "data.jsonl").write_text(json.dumps({"image": "a.png", "frames": "clip", "caption": "it moves"}) + "\n")
    source = open_source(SourceEntry(source="jsonl", path=str(tmp_path / "data.jsonl")), seed=0)
    assert source.peek(0) == source[0] and len(source[0]["frames"]) == 5


def test_several_annotations_are_one_row(inputs):
    family, made = inputs["molmo"]
    turns = [[{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "a" * i}] for i in (1, 5)]
    sample = {
        "id": "a",
        "fields": {},
        "images": [picture(9, (40, 30))],
        "messages": turns[0],
        "annotations": [{"messages": t} for t in turns],
    }
    assert family.token_lengths(made).of(sample) == len(made.encode(sample, 1).row.ids)


@pytest.mark.parametrize("family", [None, MOLMO], ids=["theworld", "molmo"])
def test_a_run_with_batches_of_similar_length_resumes_and_is_listed_step_by_step(tmp_path, capsys, family):
    path = configuration(tmp_path, family, batching="length")
    runs = [tmp_path / name for name in ("straight", "stopped")]
    assert cli.main(["train", str(path), f"--run={runs[0]}"]) == 0
    told = capsys.readouterr().out
    shares = told.partition("batches of similar length: ")[2].partition("\n")[0]
    least, most = (float(part.partition("%")[0].rpartition(" ")[2]) for part in shares.split(","))
    assert least < 0.7 * most
    assert cli.main(["train", str(path), f"--run={runs[1]}", "--checkpoint.every_steps=3"]) == 0
    shutil.rmtree(runs[1] / "stage-1-train" / "step-00000006")
    assert cli.main(["train", str(path), f"--run={runs[1]}", "--checkpoint.every_steps=3"]) == 0
    ends = [sorted((run / "stage-1-train" / "step-00000006").glob("weights*")) for run in runs]
    assert ends[0] and [path.read_bytes() for path in ends[0]] == [path.read_bytes() for path in ends[1]]
    for step in (1, 6):
        capsys.readouterr()
        assert cli.main(["data", "step", str(runs[0]), str(step)]) == 0
    assert cli.main(["data", "inspect", str(path), "--out", str(tmp_path / "seen")]) == 0


def test_dropped_samples_are_left_out_before_the_order_is_made(tmp_path, capsys):
    path = configuration(tmp_path, batching="length", max_tokens=40, truncate="drop")
    assert cli.main(["train", str(path), f"--run={tmp_path / 'run'}"]) == 0
    told = capsys.readouterr().out
    left = told.partition("filtered: ")[2].partition("\n")[0]
    count = int(left.partition(" by max_tokens 40")[0])
    assert 0 < count < 48 and f"jsonl:data.jsonl {48 - count} samples; 6 steps of 8" in told
    assert "cut by data.max_tokens" not in told and not (tmp_path / "run" / "quarantine.jsonl").exists()
    assert cli.main(["data", "step", str(tmp_path / "run"), "2"]) == 0
    assert cli.main(["train", str(path), f"--run={tmp_path / 'none'}", "--data.max_tokens=3"]) == 2
    told = "jsonl:data.jsonl: all of its 48 samples are longer than data.max_tokens 3 (data.truncate: drop)"
    assert capsys.readouterr().err.rstrip().endswith(told)


def test_refused_samples_are_bad_ones(tmp_path, capsys):
    path = configuration(tmp_path, max_tokens=40, truncate="refuse")
    assert cli.main(["train", str(path), f"--run={tmp_path / 'run'}", "--guard.max_bad_fraction=1"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()]
    assert rows and all(row["reason"].endswith("supervised tokens are beyond data.max_tokens 40 (data.truncate: refuse)") for row in rows)
    assert "cut by data.max_tokens" not in capsys.readouterr().out
    assert cli.main(["train", str(path), f"--run={tmp_path / 'strict'}"]) == 2
    assert cli.main(["train", str(path), f"--run={tmp_path / 'cut'}", "--data.truncate=cut"]) == 0
    assert not (tmp_path / "cut" / "quarantine.jsonl").exists()


WRONG = {
    "--data.truncate=drop": "data.truncate is drop, but no length is set: set data.max_tokens as well",
    "--data.truncate=refuse": "data.truncate is refuse, but no length is set: set data.max_tokens as well",
}


@pytest.mark.parametrize("setting", WRONG)
def test_a_policy_without_a_length_is_refused(tmp_path, capsys, setting):
    assert cli.main(["config", str(configuration(tmp_path)), setting]) == 2
    assert capsys.readouterr().err.rstrip().endswith(WRONG[setting])


NANODIT = "family: nanodit\npreset: tiny\n"


def test_a_family_without_lengths_is_told(tmp_path, capsys):
    path = configuration(tmp_path, NANODIT, batching="length")
    assert cli.main(["train", str(path), f"--run={tmp_path / 'run'}"]) == 2
    told = "data.batching is length, and the rows of family nanodit have no lengths in tokens: leave it out"
    assert capsys.readouterr().err.rstrip().endswith(told)


def test_a_stream_is_told(tmp_path, capsys):
    path = configuration(tmp_path, batching="length")
    members = [(f"{i}.{kind}", body) for i in range(8) for kind, body in (("png", picture(i, (30, 30))), ("txt", b"a red square"))]
    tar = pack(tmp_path / "a.tar", members)
    source = f"--data.train=[{{source: shards, path: {tar}, options: {{stream: true}}}}]"
    assert cli.main(["train", str(path), source, f"--run={tmp_path / 'run'}"]) == 2
    told = "is read as a stream, whose order is that of its shards: leave it out, or set its options.stream to false"
    assert capsys.readouterr().err.rstrip().endswith(told)
