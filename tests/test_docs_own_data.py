"""The page about own data in docs/data.md: its configurations load and train, in each of its forms."""

import json
import re
from pathlib import Path

import pytest
import yaml

from plait import cli
from tests.families.molmo.published_sets import picture

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
PAGE = TEXT[TEXT.index("## Your own data") : TEXT.index("## The index")]
WHOLE, OTHERS = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL))


def write(folder, number=12):
    """The same questions in the forms, and captions, where the page has them."""
    rows = [{"image": f"{i}.png", "question": f"What is {i}?", "answer": f"thing {i}"} for i in range(number)]
    (folder / "mydata").mkdir()
    (folder / "imagefolder" / "train").mkdir(parents=True)
    for i in range(number):
        picture(folder / "mydata" / f"{i}.png", i % 3)
        picture(folder / "imagefolder" / "train" / f"{i}.png", i % 3)
    table = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    (folder / "mydata" / "data.csv").write_text("\n".join(table) + "\n")
    captions = "".join(f"{row['image']},A thing: {row['answer']}\n" for row in rows)
    (folder / "mydata" / "captions.csv").write_text(f"image,caption\n{captions}")
    turns = [
        {"image": row["image"], "conversations": [{"from": "human", "value": row["question"]}, {"from": "gpt", "value": row["answer"]}]}
        for row in rows
    ]
    (folder / "mydata" / "llava.json").write_text(json.dumps(turns))
    metadata = ({"file_name": row["image"], "question": row["question"], "answer": row["answer"]} for row in rows)
    (folder / "imagefolder" / "train" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metadata))
    datasets = pytest.importorskip("datasets")
    held = [{**row, "image": {"bytes": (folder / "mydata" / row["image"]).read_bytes(), "path": None}} for row in rows]
    datasets.Dataset.from_list(held).to_parquet(folder / "mydata" / "data.parquet")


@pytest.mark.parametrize("source", [*WHOLE["data"]["train"], *OTHERS], ids=["csv", "llava", "imagefolder", "parquet", "captions"])
def test_each_form_of_the_page_trains_at_the_first_try(source, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    recipe = {**WHOLE, "data": {**WHOLE["data"], "train": [source]}, "evaluate": [{"bench": "loss", "every_steps": 1}]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    assert cli.main(["train", "mine.yaml", "--run=run", "--train.steps=1", "--train.global_batch=2"]) == 0
    assert (
        " samples, all looked at: 3 with a held-out picture (11 of 11 compared with 1 of 1 held out); pictures of 64x48 px\n"
        in capsys.readouterr().out
    )
    (row, *_) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines() if "eval/loss" in line]
    assert row["eval/loss"] > 0


def test_the_commands_of_the_page_compare_measure_and_export(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    (tmp_path / "mydata" / "more.csv").write_text((tmp_path / "mydata" / "data.csv").read_text())
    recipe = {**WHOLE, "train": {"steps": 1, "global_batch": 2}, "evaluate": [{"bench": "loss", "every_steps": 1}]}
    (tmp_path / "csv.yaml").write_text(yaml.safe_dump(recipe))
    commands = re.search(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)[1]
    lines = [line.partition("#")[0].strip() for line in commands.replace("; ", "\n").splitlines()]
    said = []
    for line in lines:
        program, *words = line.split()
        assert (program, cli.main(words)) == ("plait", 0), line
        said.append(capsys.readouterr().out)
    shown = "\n".join(said)
    assert [line.split()[1] for line in lines].count("train") == 2
    assert "--data is read with the template and columns of data.train.0" in shown
    assert re.search(r"^optim.lr +0.001 +0.003$", shown, re.MULTILINE) and re.search(r"^train best loss +\d", shown, re.MULTILINE)
    assert {"model.safetensors", "processor_config.json"} <= {path.name for path in (tmp_path / "export").iterdir()}
    rows = [row for path in tmp_path.glob("runs/high/**/predictions.jsonl") for row in map(json.loads, path.read_text().splitlines())]
    assert {row["gold"] for row in rows if "gold" in row} == {f"thing {i}" for i in range(12)}
