"""The files under launch/: they parse, and the command in each is one that torchrun and plait understand."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import parse_args

from plait import cli

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "launch").iterdir())
GIVEN = {
    "@": "configs/theworld/stages.yaml --run=runs/x",
    "CONFIG": "configs/theworld/stages.yaml",
    "NAME": "x",
    "CACHE": "/tmp/cache",
    "RESTARTS": "3",
}


def text(path):
    """What a shell runs: the script, or what the YAML file gives to one."""
    if path.suffix != ".yaml":
        return path.read_text()
    for part in yaml.safe_load_all(path.read_text()):
        if "run" in part:
            return part["run"]
        if part.get("kind") == "Job":
            return part["spec"]["template"]["spec"]["containers"][0]["args"][0]
    raise AssertionError(f"{path} runs nothing")


def words(path):
    """The arguments of torchrun, with values for the variables in them."""
    command = re.search(r"^.*?\btorchrun (.*?(?<!\\))(\n|$)", text(path).replace("\\\n", " "), re.MULTILINE)[1].rstrip(" &")

    def value(found):
        return GIVEN.get(found[1], "2")

    return shlex.split(re.sub(r'"?\$\{?(\w+|@)[^}"\s:]*\}?"?', value, command.replace('"', "")))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_command_is_one_that_torchrun_and_plait_understand(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    asked = parse_args(words(path))
    assert (asked.module, asked.training_script, asked.max_restarts) == (True, "plait", 3)
    assert "SIGUSR1" in asked.signals_to_handle
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE" in path.read_text()
    given, overrides = cli._parse([item for item in asked.training_script_args if item != "--"])
    assert given.verb is cli._train
    assert cli._load(given.config, overrides).config.family == "theworld"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_shell_understands_it(path):
    subprocess.run(["bash", "-n"], input=text(path), text=True, check=True)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_each_file_has_a_page_that_says_it_was_not_run(path):
    page = (ROOT / "docs" / f"launch-{path.stem}.md").read_text()
    assert f"launch/{path.name}" in page
    assert re.search(r"was not (run|applied)", page)


def test_a_pod_outlives_the_save_that_it_is_given_time_for():
    job = next(part for part in yaml.safe_load_all((ROOT / "launch" / "kubernetes.yaml").read_text()) if part["kind"] == "Job")
    asked = parse_args(words(ROOT / "launch" / "kubernetes.yaml"))
    assert asked.shutdown_timeout < job["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == int(asked.nnodes)


def test_slurm_gets_its_signal_long_enough_before_the_limit_to_save():
    script = (ROOT / "launch" / "slurm.sbatch").read_text()
    before_s = int(re.search(r"--signal=B:USR1@(\d+)", script)[1])
    assert parse_args(words(ROOT / "launch" / "slurm.sbatch")).shutdown_timeout < before_s
    assert "#SBATCH --requeue" in script
