"""`plait eval` on published sets: nothing dropped, gone on with after a stop, and every wrong name in one line."""

import json
from pathlib import Path

import pytest

from plait import cli, files
from plait.assembly import saved
from plait.commands.actions.evaluation import evaluate, named_data
from plait.config.schema import SourceEntry
from plait.engine import evaluation
from tests.families.molmo import published_sets

SCENES = "{source: scenes, limit: 8, options: {size: [48, 48], objects: [1, 2], tasks: [count], supersample: 2}}"
CONFIG = f"""
family: molmo
preset: debug
model: {{max_crops: 1}}
data: {{train: [{SCENES}], validation: [{SCENES}], root: ROOT}}
train: {{steps: 1, global_batch: 4}}
optim: {{schedule: {{warmup_steps: 0}}}}
track: {{tensorboard: false}}
evaluate: [{{bench: "vqa2:validation", every_steps: 1, batch: 2}}]
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return published_sets.write_all(tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, root) -> Path:
    """A run of one step that measures itself on VQA2."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "run.yaml").write_text(CONFIG.replace("ROOT", str(root)))
    assert cli.main(["train", str(folder / "run.yaml"), f"--run={folder / 'run'}"]) == 0
    return folder / "run"


def measured(run, bench, out, *more):
    assert cli.main(["eval", str(run), "--bench", bench, "--out", str(out), *more]) == 0
    rows = json.loads((out / "predictions.json").read_text())
    return rows, json.loads((out / "metrics.json").read_text())


def test_a_run_measures_itself_on_a_dataset_with_its_own_rule(run):
    (row,) = [row for row in files.read_rows(run / "metrics.jsonl") if "eval/vqa2:validation/score" in row]
    assert row["eval/vqa2:validation/samples"] == 3.0
    low, high = row["intervals"]["vqa2:validation/score"]
    assert 0.0 <= low <= row["eval/vqa2:validation/score"] <= high <= 1.0 and low < high


def test_generate_without_a_question_says_so(run, capsys):
    said = "given neither --prompt nor --image: this is what the model makes of nothing"
    assert cli.main(["generate", str(run), "--max-new-tokens=1"]) == 0
    assert said in "".join(capsys.readouterr())
    assert cli.main(["generate", str(run), "--max-new-tokens=1", "--prompt="]) == 0
    assert said not in "".join(capsys.readouterr())


EXAMS = {
    "vqa2": 3,
    "text_vqa:validation": 3,
    "chart_qa:test": 4,
    "doc_qa": 2,
    "ai2d": 1,
    "countbench_qa": 1,
    "pixmo_count_counting:test": 1,
    "pointing_eval": 1,
    "pixmo_cap:validation": 4,
    "pixmo_cap_with_transcripts:validation": 4,
    "science_qa:test": 1,
    "android_control_ll": 3,
    "android_control": 3,
    "mmmu": 32,
    "mmmu_multi_image:dev": 32,
    "math_vista_v2:validation": 2,
    "real_world_qa_no_instruction": 2,
    "clock_bench:movies": 1,
}


@pytest.mark.parametrize(("bench", "count"), EXAMS.items())
def test_every_exam_answers_all_its_questions(run, tmp_path, bench, count):
    rows, figures = measured(run, bench, tmp_path / "out", "--batch", "2")
    assert len({row["id"] for row in rows}) == len(rows) == figures["count"] == count
    assert all(0.0 <= row["score"] <= 1.0 and row["gold"] != "" for row in rows)
    page = (tmp_path / "out/page.html").read_text()
    assert all(text in page for text in ("score", "gold", rows[0]["id"]))


def test_the_loss_of_a_dataset_that_no_rule_scores_is_measured_as_its_refusal_says(run, tmp_path):
    more = ["--data=dataset:pixmo_cap_qa", "--split=validation", "--out", str(tmp_path)]
    assert cli.main(["eval", str(run), "--bench", "loss", *more]) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["loss"] > 0


@pytest.mark.parametrize(("bench", "count"), [("mmmu:test", 32), ("math_vista:test", 2)])
def test_answers_without_published_gold_are_written_and_not_scored(run, tmp_path, capsys, bench, count):
    assert cli.main(["eval", str(run), "--bench", bench, "--out", str(tmp_path)]) == 2
    said = "its answer is not published; the model's is in predictions.jsonl, to be handed in where they are scored"
    assert f"none of {count} held-out samples can be used: {said}" in capsys.readouterr().err
    rows = files.read_rows(tmp_path / evaluate.ROWS)[1:]
    assert [row["bad"] for row in rows] == [said] * count
    assert all(row["answer"] and row["gold"] == "" for row in rows)


def test_what_was_answered_is_kept_and_the_rest_answered(run, tmp_path, capsys):
    rows, figures = measured(run, "vqa2", tmp_path, "--batch", "1")
    kept = (tmp_path / evaluate.ROWS).read_text().splitlines(keepends=True)
    assert len(kept) == 4  # a line that says of what, and a row for each question
    (tmp_path / evaluate.ROWS).write_text("".join(kept[:2]) + kept[2][:9])  # ended while it wrote the second row
    again = measured(run, "vqa2", tmp_path, "--batch", "1")
    assert "has 1 of 3 answers: going on from there" in capsys.readouterr().out
    assert again == (rows, figures)
    assert (tmp_path / evaluate.ROWS).read_text() == "".join(kept)


@pytest.mark.parametrize("bench", ["vqa2", "loss"])
def test_a_measurement_that_is_done_says_so_and_builds_no_model(run, tmp_path, monkeypatch, capsys, bench):
    assert cli.main(["eval", str(run), "--bench", bench, "--out", str(tmp_path)]) == 0
    before = json.loads((tmp_path / "metrics.json").read_text())
    monkeypatch.setattr(saved, "open_checkpoint", None)
    assert cli.main(["eval", str(run), "--bench", bench, "--out", str(tmp_path)]) == 0
    assert "nothing left to do" in capsys.readouterr().out
    assert json.loads((tmp_path / "metrics.json").read_text()) == before


def test_answers_to_something_else_are_not_taken_up(run, tmp_path, capsys):
    measured(run, "vqa2", tmp_path)
    rows, _ = measured(run, "okvqa", tmp_path)
    assert "is of another model, other data or settings: begun again" in capsys.readouterr().out
    assert all(row["id"].startswith("okvqa/") for row in rows)


def test_a_missing_picture_has_a_row_and_is_counted(run, tmp_path):
    published_sets.text_vqa(tmp_path)
    (tmp_path / "text_vqa/train_images/img1.jpg").unlink()
    rows, figures = measured(run, "text_vqa", tmp_path / "out", "--data", str(tmp_path / "text_vqa"))
    assert len(rows) == 3
    assert [row["bad"][:8] for row in rows if "bad" in row] == ["no image"]
    assert (figures["samples"], figures["bad_samples"]) == (2.0, 1.0)


def test_high_resolution_looks_at_36_crops(run, tmp_path, monkeypatch):
    seen = []
    before = evaluation.run_bench
    monkeypatch.setattr(
        evaluation, "run_bench", lambda *a, **k: seen.append((k["inputs"].config.max_crops, k["inputs"].max_tokens)) or before(*a, **k)
    )
    measured(run, "vqa2", tmp_path / "out", "--high-res")
    assert seen == [(36, 4096)]


def test_other_data_may_be_named_by_kind_or_as_a_list(run, tmp_path):
    record = {"image": str(tmp_path / "a.png"), "messages": [{"role": "user", "content": "what?"}], "answers": ["a frog"]}
    published_sets.picture(tmp_path / "a.png")
    (tmp_path / "mine.jsonl").write_text(json.dumps(record) + "\n")
    for data in (str(tmp_path / "mine.jsonl"), f"jsonl:{tmp_path / 'mine.jsonl'}", f"[{{source: jsonl, path: {tmp_path / 'mine.jsonl'}}}]"):
        rows, _ = measured(run, "vqa", tmp_path / "out", "--data", data)
        assert [row["gold"] for row in rows] == ["a frog"]


def test_a_table_of_other_data_is_read_with_the_template_of_the_runs_own(run, tmp_path, monkeypatch, capsys):
    published_sets.picture(tmp_path / "a.png")
    table = tmp_path / "mine.csv"
    table.write_text("image,ask,say\na.png,what?,a frog\n")
    template = {"user": "{ask}", "assistant": "{say}"}
    trained = [SourceEntry.model_validate({"source": "datasets", "path": "else.csv", "template": template, "columns": {"say": "say"}})]
    for data in (str(table), f"datasets:{table}"):
        (source,) = named_data._sources(data, None, trained)
        assert (source.source, source.path, source.name, source.columns) == ("datasets", str(table), None, {"say": "say"})
        assert source.template == trained[0].template
    assert named_data._sources("datasets:owner/set", None, trained)[0].name == "owner/set"
    listed = f"[{{source: datasets, path: {table}, template: {{user: '{{ask}}', assistant: '{{say}}'}}}}]"
    rows, _ = measured(run, "accuracy", tmp_path / "out", "--data", listed)
    assert [(row["question"], row["gold"]) for row in rows] == [("what?", "a frog")]


WRONG = {
    "--bench vq3": "--bench 'vq3' is unknown: did you mean vqa?",
    "--bench textvqa3": "--bench 'textvqa3' is unknown: did you mean text_vqa?",
    "--bench acuracy": "--bench 'acuracy' is unknown: did you mean accuracy?",
    "--bench vqa2:tset": "bench 'vqa2:tset': dataset 'vqa2' has no split 'tset': it has train, validation",
    "--bench vqa2:train --split validation": "--bench vqa2:train and --split validation name two splits: keep one",
    "--bench pixmo_cap_qa": "'pixmo_cap_qa' has free answers that no rule scores; "
    "measure its loss, --bench loss --data=dataset:pixmo_cap_qa --split=validation, or one of vqa2,",
    "--bench vqa --data=nowhere": "--data 'nowhere' is no .jsonl, .csv, .parquet, .tar or folder; give one",
    "--bench vqa --data=[{sorce:x}]": "--data '[{sorce:x}]' is no list of sources",
    "--bench vqa2 --data=nowhere": "dataset vqa2 (validation) is not there: no v2_OpenEnded_mscoco_val2014_questions.json in nowhere",
}


@pytest.mark.parametrize(("command", "line"), WRONG.items())
def test_a_wrong_exam_is_told_in_one_line(run, capsys, command, line):
    assert cli.main(["eval", str(run), *command.split()]) == 2
    told = capsys.readouterr().err
    assert line in told
    assert told.count("\n") == 1


def test_a_picture_that_was_missing_is_asked_for_again(run, tmp_path, capsys, monkeypatch):
    published_sets.text_vqa(tmp_path)
    picture = tmp_path / "text_vqa/train_images/img1.jpg"
    picture.rename(tmp_path / "away.jpg")
    given = ("--data", str(tmp_path / "text_vqa"))
    before, _ = measured(run, "text_vqa", tmp_path / "out", *given)
    (tmp_path / "away.jpg").rename(picture)
    asked, run_bench = [], evaluation.run_bench
    monkeypatch.setattr(evaluation, "run_bench", lambda b, m, samples, **k: asked.append(len(samples)) or run_bench(b, m, samples, **k))
    capsys.readouterr()
    rows, figures = measured(run, "text_vqa", tmp_path / "out", *given)
    said = capsys.readouterr().out
    assert "1 of 3 samples could not be used before: trying them again" in said and "nothing left to do" not in said
    assert asked == [1, 3] and figures["samples"] == 3.0 and "bad_samples" not in figures
    assert [row for row, old in zip(rows, before, strict=True) if "bad" not in old] == [row for row in before if "bad" not in row]
    assert files.read_rows(tmp_path / "out" / evaluate.ROWS)[1:] == rows == measured(run, "text_vqa", tmp_path / "whole", *given)[0]
    measured(run, "text_vqa", tmp_path / "out", *given)
    assert "nothing left to do" in capsys.readouterr().out


def test_a_loss_of_fewer_samples_is_measured_again(run, tmp_path, capsys):
    published_sets.text_vqa(tmp_path)
    picture = tmp_path / "text_vqa/train_images/img1.jpg"
    picture.rename(tmp_path / "away.jpg")
    data = "--data=[{source: dataset, name: text_vqa, path: " + str(tmp_path / "text_vqa") + ", split: validation}]"
    command = ["eval", str(run), "--bench=loss", data, "--out", str(tmp_path / "out")]
    assert cli.main(command) == 0
    (tmp_path / "away.jpg").rename(picture)
    capsys.readouterr()
    assert cli.main(command) == 0
    assert "bad_samples 1: measured again" in capsys.readouterr().out
    assert "bad_samples" not in json.loads((tmp_path / "out/metrics.json").read_text())
