"""The files under launch/: the command in each is one that torchrun and plait understand, and what is around it does what its page says."""

import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import parse_args

from plait.assembly.configuration import open_config
from plait.commands import command_line, train

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path for path in (ROOT / "launch").iterdir() if path.suffix)
RUN = {"slurm.sbatch", "two-node.sh"}
"""The files that benchmarks/cluster.py runs as they are."""
GIVEN = {
    "@": "configs/theworld/stages.yaml --run=runs/x",
    "CONFIG": "configs/theworld/stages.yaml",
    "NAME": "x",
    "CACHE": "/tmp/cache",
    "RESTARTS": "3",
}
STAND_INS = {
    "srun": 'while [[ $1 == --* ]]; do echo "$1" >> options; shift; done; exec "$@"',
    "scontrol": """
        case "$1 $2 $3" in
            "show hostnames two") printf "first\\nsecond\\n" ;;
            "show node first") echo "   NodeAddr=10.0.0.1 NodeHostName=first Version=22.05.8" ;;
            *) echo "$*" >> scontrol.log ;;
        esac""",
    "python": """
        echo "$*" > torchrun.log
        [ "$ENDS" = asked ] || exit "$ENDS"
        trap 'kill $!; sleep 0.2; echo USR1 > saved; exit 75' USR1
        trap 'kill $!; sleep 0.2; echo TERM > saved; exit 75' TERM
        sleep 60 & touch ready; wait""",
    "plait": 'exit "$DOCTOR"',
}
"""The commands of a cluster, as far as the files use them.

This python, started as plait's torchrun, ends with ENDS, or trains until it is asked to save.
"""


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
    assert "python -m plait.training.torchrun" in text(path).replace("\\\n", "")
    given = command_line.parse([item for item in asked.training_script_args if item != "--"])
    assert given.command in train.COMMANDS
    assert open_config(given.config, given.overrides).config.family == "theworld"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_shell_understands_it(path):
    subprocess.run(["bash", "-n"], input=text(path), text=True, check=True)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_each_file_has_a_page_that_says_whether_it_was_run(path):
    page = (ROOT / "docs" / f"launch-{path.stem}.md").read_text()
    assert f"launch/{path.name}" in page
    assert bool(re.search(r"was not (run|applied)", page)) == (path.name not in RUN)
    assert ("benchmarks/cluster.py" in page) == (path.name in RUN)


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


def start(script, folder, ends):
    """`script` in bash on a machine whose cluster commands are the stand-ins."""
    for name, lines in STAND_INS.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{lines}\n")
        (folder / name).chmod(0o755)
    slurm = {"JOB_NODELIST": "two", "CPUS_PER_TASK": "64", "JOB_NUM_NODES": "2", "JOB_ID": "7", "GPUS_ON_NODE": "8"}
    sky = {"NODE_IPS": "10.0.0.1\n10.0.0.2", "NUM_NODES": "2", "NUM_GPUS_PER_NODE": "8", "TASK_ID": "7"}
    told = {f"SLURM_{name}": value for name, value in slurm.items()} | {f"SKYPILOT_{name}": value for name, value in sky.items()}
    environment = {**os.environ, **told, "PATH": f"{folder}:{os.environ['PATH']}", "ENDS": ends, "CONFIG": "c.yaml", "NAME": "x"}
    return subprocess.Popen(["bash", "-c", script, "job", "c.yaml"], cwd=folder, env=environment)


@pytest.mark.parametrize(("asked", "requeued"), [(signal.SIGUSR1, ["requeue 7"]), (signal.SIGTERM, [])])
def test_a_slurm_job_waits_for_the_save_and_requeues_itself_only_at_its_time_limit(tmp_path, asked, requeued):
    job = start(text(ROOT / "launch" / "slurm.sbatch"), tmp_path, ends="asked")
    while not (tmp_path / "ready").exists():
        time.sleep(0.02)
    job.send_signal(asked)
    assert job.wait(30) == 75
    assert f"SIG{(tmp_path / 'saved').read_text().strip()}" == asked.name
    log = tmp_path / "scontrol.log"
    assert (log.read_text().splitlines() if log.exists() else []) == requeued


@pytest.mark.parametrize("code", ["0", "2"])
def test_a_slurm_job_ends_with_the_exit_code_of_its_run_and_gives_it_all_processors(tmp_path, code):
    assert start(text(ROOT / "launch" / "slurm.sbatch"), tmp_path, ends=code).wait(30) == int(code)
    assert not (tmp_path / "scontrol.log").exists()
    assert "--cpus-per-task=64" in (tmp_path / "options").read_text().split()
    assert "--rdzv-endpoint=10.0.0.1:20007" in (tmp_path / "torchrun.log").read_text()


def test_runs_by_hand_with_other_arguments_never_join_each_other(tmp_path, monkeypatch):
    monkeypatch.setenv("HEAD", "10.0.0.1")
    script, ids = text(ROOT / "launch" / "two-node.sh"), []
    for given in ("--run=runs/a", "--run=runs/a", "--run=runs/b"):
        assert start(f"set -- c.yaml {given}\n{script}", tmp_path, ends="0").wait(30) == 0
        ids.append(parse_args((tmp_path / "torchrun.log").read_text().split()[2:]).rdzv_id)
    assert ids[0] == ids[1] != ids[2] and ids[0].startswith("plait-")


@pytest.mark.parametrize("code", [0, 1])
def test_what_doctor_finds_ends_a_skypilot_job_before_it_trains(tmp_path, monkeypatch, code):
    monkeypatch.setenv("DOCTOR", str(code))
    assert start(text(ROOT / "launch" / "skypilot.yaml"), tmp_path, ends="0").wait(30) == code
    assert (tmp_path / "torchrun.log").exists() == (code == 0)


@pytest.mark.parametrize(("index", "meets"), [("0", "1"), ("1", "0")])
def test_pod_0_is_told_that_ranks_meet_there_and_the_others_that_they_do_not(tmp_path, index, meets):
    script = text(ROOT / "launch" / "kubernetes.yaml")
    assert start(f"JOB_COMPLETION_INDEX={index}; {script}", tmp_path, ends="0").wait(30) == 0
    given = parse_args((tmp_path / "torchrun.log").read_text().split()[2:]).rdzv_conf
    assert given == f"is_host={meets}"
