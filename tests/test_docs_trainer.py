"""The examples of docs/trainer.md run as they stand, and what they leave is what the page says."""

import re
import shutil
from pathlib import Path

import plait
from plait.hf import arguments
from plait.theworld import TheWorld

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "trainer.md").read_text(encoding="utf-8")


def test_every_example_runs_and_its_models_load(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs", "configs")
    names: dict = {}
    for example in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(example, "docs/trainer.md", "exec"), names)
    assert "\n4\n" in capsys.readouterr().out and names["again"].state.global_step == 4 and names["second"].state.global_step == 2
    assert TheWorld.from_pretrained("hf-demo-model").generate(None, "Hello?", max_new_tokens=2) is not None
    config = plait.load_config("configs/theworld/demo.yaml", train={"steps": 2}, evaluate=[], **{"from": "hf-all/checkpoint-2"})
    assert plait.train(config, stage="projection").folder.is_dir()


def test_the_page_lists_every_argument_that_sets_a_setting():
    table = PAGE.partition("| argument | setting |")[2].partition("\n\n")[0]
    for names in (arguments.SETTINGS, arguments.TOGETHER):
        assert all(f"`{name}`" in table for name in names)
