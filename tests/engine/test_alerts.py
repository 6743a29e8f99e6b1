"""Alerts: which events of a run are told, by the command hook and by apprise, and that nothing waits for them."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from plait import cli, files
from plait.config.sections.alert import Alert
from plait.engine.monitoring import alerts
from plait.engine.monitoring.beside import alert_process, process
from plait.engine.monitoring.tracking import Tracker
from plait.errors import PlaitError
from tests import loopback, processes, toy_family

TINY = ["--stages=[]", "--checkpoint.best=null"]


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    return toy_family.install(monkeypatch, tmp_path)


def hook(tmp_path):
    """A setting of the command line: each event is appended to the file `told`."""
    return f"--alert.command=cat >> {tmp_path / 'told'}"


def told(tmp_path):
    """The events that the hook was given, as (event, step, text), without the run's path."""
    path = tmp_path / "told"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [(row["event"], row["step"], row["text"].replace(str(tmp_path), "")) for row in rows]


def train(recipe, folder, *settings):
    return cli.main(["train", str(recipe), f"--run={folder}", *TINY, *settings])


def test_the_end_of_a_run_is_told_with_its_figures(recipe, tmp_path):
    assert train(recipe, tmp_path / "run", hook(tmp_path)) == 0
    ((event, step, text),) = told(tmp_path)
    rows = files.read_rows(tmp_path / "run" / "metrics.jsonl")
    loss, held_out = ([row[name] for row in rows if name in row][-1] for name in ("loss", "eval/loss"))
    figures = sorted([f"loss {loss:.4g}", f"eval/loss {held_out:.4g}"])
    assert (event, step) == ("finish", 6) and text.startswith("step 6: done; loss ")
    assert figures == sorted(part for part in text.removeprefix("step 6: done; ").split(", ") if "/error" not in part)


def test_a_failure_is_told_with_its_line(recipe, tmp_path, capsys):
    settings = ["--guard.non_finite=stop", "--optim.lr=1e30", "--train.grad_clip=null", hook(tmp_path)]
    assert train(recipe, tmp_path / "run", *settings) > 0
    line = capsys.readouterr().err.splitlines()[-1].removeprefix("plait: ").replace(str(tmp_path), "")
    ((event, _, text),) = told(tmp_path)
    assert (event, text) == ("failure", line) and "is not finite" in text


def test_a_run_that_is_killed_is_told_by_the_process_it_leaves(recipe, tmp_path):
    def body():
        record = Tracker.row
        Tracker.row = lambda tracker, row: os.kill(os.getpid(), signal.SIGKILL) if row["step"] == 3 else record(tracker, row)
        os._exit(train(recipe, tmp_path / "run", hook(tmp_path)))

    running = processes.FORK.Process(target=body)
    running.start()
    assert processes.codes([running]) == [-signal.SIGKILL]
    deadline = time.monotonic() + 30
    while not told(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [event for event, *_ in told(tmp_path)] == ["failure"] and "ended without a word" in told(tmp_path)[0][2]


def test_a_stage_that_ends_early_and_a_signal_are_told_where_that_is_asked_for(recipe, tmp_path):
    plateau = "--train.plateau={min_steps: 0, patience_steps: 1, window_steps: 2, min_gain: 0.9}"
    assert train(recipe, tmp_path / "run", plateau, "--train.steps=30", hook(tmp_path), "--alert.on=[plateau]") == 0
    ((event, _, text),) = told(tmp_path)
    assert event == "plateau" and text.startswith("stage 1 train is done after step ")


def test_an_update_that_is_passed_over_is_a_spike(recipe, tmp_path):
    first, *rest = (tmp_path / "train.jsonl").read_text().splitlines()
    (tmp_path / "train.jsonl").write_text("\n".join([json.dumps(json.loads(first) | {"y": 1e39}), *rest]) + "\n")
    settings = ["--guard.non_finite=skip", "--guard.non_finite_steps=99", "--train.steps=16", "--track.every_steps=16"]
    assert train(recipe, tmp_path / "run", *settings, hook(tmp_path), "--alert.on=[spike, finish]") == 0
    events = told(tmp_path)
    assert [event for event, *_ in events] == ["spike", "finish"]
    assert events[0][2] == f"step {events[0][1]}: no update was made, as its loss or gradient was not finite"
    assert "(2 more of spike since the last alert)" in events[1][2]


def test_a_list_is_short_for_urls_and_is_merged_with_the_rest(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOOK", "json://127.0.0.1:1/x")
    recipe.write_text(recipe.read_text() + "alert: [$HOOK]\n")
    assert cli.main(["config", str(recipe), "--alert.command=true"]) == 0
    listing = capsys.readouterr().out
    assert "$HOOK" in listing and "127.0.0.1:1" not in listing
    assert cli.main(["config", str(recipe), "--alert=[$OTHER]"]) == 0
    assert "$OTHER" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("--alert=[slack://TokenA/TokenB/TokenC]", "alert.0 (alert.urls.0)|no file or command line may hold it: put it into a variable"),
        ("--alert.urls=[mailto://me:word@host.com]", "alert.urls is an address in which a part looks like a secret"),
        ("--alert.urls=[chat.example.com]", "an address of an alert is $NAME, a variable of the environment that holds it"),
        ("--alert.on=[finnish]", "did you mean 'finish'?"),
        ("--alert=[$NOT_THERE]", "alert.urls names $NOT_THERE, a variable of the environment that is not set: set it"),
        ("--alert=[$NO_SERVICE]", "alert.urls: $NO_SERVICE holds no address that apprise knows"),
    ],
)
def test_a_wrong_address_is_told_before_anything_begins_and_never_repeated(recipe, tmp_path, capsys, monkeypatch, setting, message):
    monkeypatch.setenv("NO_SERVICE", "gopher://sesame/TokenC")
    assert train(recipe, tmp_path / "run", setting) == 2
    line = capsys.readouterr().err
    assert any(part in line for part in message.split("|")) and len(line.splitlines()) == 1
    assert "TokenC" not in line and "word" not in line
    assert not (tmp_path / "run").exists()


def test_addresses_get_the_event_and_one_that_fails_is_told_by_its_variable(recipe, tmp_path, monkeypatch, capsys):
    with loopback.keeping() as (port, kept), loopback.keeping(status=403) as (angry, _):
        monkeypatch.setenv("GOOD", f"json://127.0.0.1:{port}/hook")
        monkeypatch.setenv("DEAD", f"json://127.0.0.1:{loopback.refusing()}/sesame")
        monkeypatch.setenv("ANGRY", f"json://127.0.0.1:{angry}/sesame")
        assert train(recipe, tmp_path / "run", "--alert=[$GOOD, $DEAD, $ANGRY]") == 0
    ((path, body),) = kept
    assert path == "/hook" and body["type"] == "success" and body["title"] == f"plait {tmp_path / 'run'}: finish"
    assert body["message"].startswith("step 6: done; ")
    lines = [line for line in capsys.readouterr().err.splitlines() if "alert" in line]
    failed = [f"alert of finish not sent to ${name}" for name in ("DEAD", "ANGRY")]
    assert [line.partition(": ")[2].partition(":")[0] for line in lines] == failed
    assert not any("sesame" in line or "127.0.0.1" in line for line in lines)
    for path in (tmp_path / "run").rglob("*"):
        assert not path.is_file() or b"sesame" not in path.read_bytes()


def test_alerts_without_apprise_are_refused_with_the_cure(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PlaitError, match=r"needs apprise, which is not installed: pip install 'plait\[alert\]', or use alert.command"):
        alerts.check(Alert(urls=["json://127.0.0.1:1/x"]))
    alerts.check(Alert(command="true"))


def test_a_hook_that_fails_or_hangs_is_told(tmp_path, monkeypatch):
    said = []
    inbox = SimpleNamespace(say=lambda text, warning: said.append(text))
    sender = alert_process.Sender({"command": "echo no such thing >&2; exit 3", "urls": [], "run": "r", "name": "r"}, inbox)
    sender.deliver("finish", "done", 1)
    monkeypatch.setattr(alert_process, "_COMMAND_S", 0.2)
    alert_process.Sender({"command": "sleep 1000", "urls": [], "run": "r", "name": "r"}, inbox).deliver("finish", "done", 1)
    assert said == [
        "alert of finish: alert.command ended with exit code 3: no such thing",
        "alert of finish: alert.command did not end within 0.2 s and was killed",
    ]


def test_a_burst_is_told_once_in_ten_minutes_and_counted(tmp_path, monkeypatch):
    now_s = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    sender = alert_process.Sender({"command": f"cat >> {tmp_path / 'told'}", "urls": [], "run": "r", "name": "r"}, None)
    for moment_s, event in ((0, "spike"), (1, "spike"), (2, "failure"), (3, "spike"), (601, "spike")):
        now_s[0] = moment_s
        sender.deliver(event, f"at {moment_s}", 1)
    assert [text for *_, text in told(tmp_path)] == [
        "at 0",
        "at 2 (1 more of spike since the last alert)",
        "at 601 (1 more of spike since the last alert)",
    ]


def test_a_disk_that_fills_up_is_told_once_until_there_is_room_again(tmp_path, monkeypatch):
    free = iter([12e9, 9e9, 8e9, 14e9, 9e9, 16e9, 9e9])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=next(free)))
    watch = alert_process.DiskWatch(tmp_path, 10.0)
    texts = [watch.look() for _ in range(7)]
    assert [bool(text) for text in texts] == [False, True, False, False, False, False, True]
    assert texts[1] == f"9.0 GB are free on the disk of {tmp_path}, less than 10.0 GB: free space, or lower checkpoint.keep"


def test_without_a_limit_a_disk_is_low_without_room_for_two_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2e9))
    watch = alert_process.DiskWatch(tmp_path, None)
    assert watch.look() is None
    folder = tmp_path / "stage-1-train" / "step-00000001"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    with (folder / "weights.safetensors").open("wb") as file:
        file.truncate(1_100_000_000)
    assert "less than 2.2 GB" in watch.look()


def test_a_disk_that_is_low_is_told_by_the_process_beside_the_run(recipe, tmp_path):
    assert train(recipe, tmp_path / "run", hook(tmp_path), "--alert.on=[disk_low]", "--alert.disk_low_gb=1e9") == 0
    assert [event for event, *_ in told(tmp_path)] == ["disk_low"]


LATE = "not all alerts could be sent within 1 s; the others are given up, and alert.command has a minute from its start"


def test_a_hook_that_hangs_is_ended_in_time_when_the_run_is_over_and_holds_none_of_its_outputs(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM.format(command=f"echo $$ > {tmp_path}/pid; sleep 1000", run=str(tmp_path)))
    done = subprocess.run([sys.executable, tmp_path / "program.py"], capture_output=True, text=True, timeout=120, check=True)
    assert LATE in done.stderr  # and all of its pipes are closed, for which `run` has waited
    pid = (tmp_path / "pid").read_text().strip()
    deadline = time.monotonic() + 60
    while processes.is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not processes.is_alive(pid)


PROGRAM = """
import logging, sys
from plait.config.sections.alert import Alert
from plait.engine.monitoring import alerts
from plait.engine.monitoring.beside import alert_process, process
logging.basicConfig()
process.CLOSE_TIMEOUT_S = 1.0
start = process.SideProcess._start
process.SideProcess._start = lambda side: (side._command.__setitem__(slice(1, None), ["-c", SHORT]), start(side))[1]
SHORT = "from plait.engine.monitoring.beside import alert_process; alert_process._COMMAND_S = 4.0; alert_process.main()"
with alerts.Alerts(__import__("pathlib").Path({run!r}), Alert(command={command!r})):
    pass
"""


def test_what_is_left_beside_a_run_lets_go_of_its_standard_error(tmp_path):
    script = "import time; from plait.engine.monitoring.beside.process import Inbox; Inbox(None); time.sleep(600)"
    starter = f"""
from plait.engine.monitoring.beside import process
side = process.SideProcess("plait", {{}}, process.Words("", "", "", ""), {{}})
side.kill()
side._command[1:] = ["-c", {script!r}]
side.process = side._start()
print(side.leave().pid, flush=True)
"""
    done = subprocess.run([sys.executable, "-c", starter], capture_output=True, text=True, timeout=120, check=True)
    assert processes.is_alive(done.stdout.strip())
    os.kill(int(done.stdout), signal.SIGKILL)


def test_alerts_that_cannot_be_sent_hold_the_run_up_for_seconds_at_its_end_alone(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(process, "CLOSE_TIMEOUT_S", 1.0)
    with (
        loopback.swallowing() as port,
        caplog.at_level(logging.WARNING),
        alerts.Alerts(tmp_path, Alert(urls=[f"json://127.0.0.1:{port}/x"])),
    ):
        pass
    assert caplog.messages == [LATE]


def test_a_process_that_takes_no_lines_costs_a_warning_each_and_no_wait(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(process, "CLOSE_TIMEOUT_S", 0.1)
    with caplog.at_level(logging.WARNING), alerts.Alerts(tmp_path, Alert(command="true", on=["warning"])) as told_of:
        os.kill(told_of.process.process.pid, signal.SIGSTOP)
        for number in range(200):
            told_of.row({"step": number, "warnings": ["x" * 2000]})
    lost = [line for line in caplog.messages if line == "alert of warning not sent: the process that sends alerts is not there"]
    assert 50 < len(lost) < 200
