"""Arguments that transformers takes as they are: wrong ones are told in a line before anything is opened, not by it, later."""

import pytest
from transformers import PrinterCallback

import plait
from tests.hf import recipes

REFUSED = [
    ({"per_device_eval_batch_size": 0}, "args: per_device_eval_batch_size is to be above 0, and is 0"),
    ({"per_device_eval_batch_size": "8"}, "args: `per_device_eval_batch_size` is to be a whole number, and is the str '8'"),
    (
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": "2"},
        "args: `gradient_accumulation_steps` is to be a whole number, and is the str '2'",
    ),
    ({"resume_from_checkpoint": "x"}, "args: resume_from_checkpoint is not taken: give it to train(resume_from_checkpoint=...)"),
    ({"save_steps": 0}, 'args: save_steps is to be above 0, and is 0: save_strategy="no" saves none'),
    ({"logging_steps": -1}, 'args: logging_steps is to be above 0, and is -1: logging_strategy="no" logs none'),
    ({"save_total_limit": "x"}, "args: `save_total_limit` is to be a whole number, or None, and is the str 'x'"),
    ({"disable_tqdm": "no"}, "args: `disable_tqdm` is to be True or False, or None, and is the str 'no'"),
    ({"log_level": "loud"}, "args: log_level 'loud' is unknown: known: detail, debug, info, warning, error, critical, passive"),
    ({"report_to": "tensorbord"}, "args: report_to 'tensorbord' is unknown: did you mean tensorboard?"),
    ({"report_to": ["tensorboard", "nonsense"]}, "args: report_to 'nonsense' is unknown: known: azure_ml, comet_ml, mlflow"),
    ({"report_to": "comet_ml"}, "args: report_to: CometCallback requires comet-ml"),
    ({"report_to": 3}, 'args: report_to is to be a name, a list of names, "all" or "none", and is the int 3'),
    ({"output_dir": 3}, "args: `output_dir` is to be a text or a path, or None, and is the int 3"),
    ({"output_dir": "{folder}/run.yaml"}, "args: output_dir {folder}/run.yaml cannot be made a folder (File exists): give another one"),
    ({"output_dir": "{folder}/run.yaml/x"}, "args: output_dir {folder}/run.yaml/x cannot be made a folder (Not a directory): give"),
    ({"output_dir": "/proc/no/folder"}, "args: output_dir /proc/no/folder cannot be made a folder (No such file or directory): give"),
    ({"output_dir": "s3://bucket/x"}, "args: output_dir: s3://bucket/x is an address, and files are written on disks only: name a folder"),
]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return recipes.written("nanodit", tmp_path_factory.mktemp("passed"))


@pytest.mark.parametrize(("args", "message"), REFUSED)
def test_a_wrong_argument_is_told_in_a_line(file, tmp_path, args, message):
    given = {name: value.replace("{folder}", str(file.parent)) if isinstance(value, str) else value for name, value in args.items()}
    with pytest.raises(plait.PlaitError) as told:
        recipes.trainer_of(file, tmp_path / "out", args=given)
    assert str(told.value).startswith(message.replace("{folder}", str(file.parent))) and "\n" not in str(told.value)


@pytest.mark.parametrize("callback", ["x", print, dict])
def test_what_is_no_callback_is_told(file, tmp_path, callback):
    with pytest.raises(
        plait.PlaitError, match=r"^plait.hf.trainer: `callbacks` are to be TrainerCallbacks of transformers, and one of them"
    ):
        recipes.trainer_of(file, tmp_path / "out", callbacks=[callback])


def test_a_metric_that_is_not_measured_is_told_and_a_class_of_callbacks_taken(file, tmp_path):
    held_out = {**plait.load_config(file).config.data.model_dump(mode="json")["train"][0], "split": "train"}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "nope", "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    trainer = recipes.trainer_of(file, tmp_path / "out", args=best, data={"validation": [held_out]}, callbacks=[PrinterCallback])
    with pytest.raises(plait.PlaitError, match=r"^args: metric_for_best_model 'nope' is not measured: known: eval_loss, eval_loss/"):
        trainer.train()
