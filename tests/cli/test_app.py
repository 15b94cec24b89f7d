import subprocess
import sys
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from unittest.mock import patch

import pytest

import rcnn
from rcnn import errors
from rcnn.cli import app, arguments, data, demo, predict, propose, train, val
from rcnn.config import keys
from rcnn.config.aliases import ALIASES, SUGGESTIONS
from rcnn.errors import DataError, SettingsError

from .conftest import Outcome, Run


def test_version(run: Run) -> None:
    assert run("--version") == Outcome(0, f"rcnn {rcnn.__version__}\n", "")


@pytest.mark.parametrize(
    "words", [["trian"], ["train", "--epocs", "3"], ["val"], ["why", "x"], ["data", "convert", "x", "--to", "csv"]]
)
def test_a_wrong_command_line_is_2(run: Run, words: list[str]) -> None:
    run.fails(2, "", *words)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("train", "d", "--weights", "x"), "there is no option `--weights` here; did you mean `train.init`?"),
        (("train", "--data", "d", "--epochs", "3"), "there is no option `--data` here; give `d` without it"),
        (("train", "d", "--lr0=0.1"), "did you mean `train.lr=0.1`?"),
        (("train", "d", "--optimizer", "--json"), "did you mean `train.optimizer=...`?"),
        (("predict", "--model", "blood-cells", "a.jpg"), "give `blood-cells` without it, in the place of MODEL"),
        (("predict", "m", "a.jpg", "--save-txt"), "did you mean `--format yolo`?"),
        (("predict", "m", "a.jpg", "--iou", "0.4"), "did you mean `roi.nms`?"),
        (("data", "show", "--source", "d"), "give `d` without it"),
        (("detect", "a.jpg"), "there is no command `detect`; did you mean `rcnn predict`?"),
        (("check", "d"), "did you mean `rcnn data check`?"),
        (("train", "d", "model=tiny-fpn"), "to train a model give `--model tiny-fpn`"),
    ],
)
def test_names_from_other_programs_get_a_suggestion(run: Run, words: tuple[str, ...], answer: str) -> None:
    run.fails(2, answer, *words)


def test_suggested_commands_exist() -> None:
    commands = {command.name or command.callback.__name__ for command in app.app.registered_commands}  # type: ignore[union-attr]
    inner = {f"data {command.name}" for command in data.app.registered_commands}
    assert set(arguments.COMMANDS.values()) <= commands | inner
    assert not arguments.COMMANDS.keys() & commands
    assert not {*arguments.OPTIONS, *arguments.POSITIONAL} & {*SUGGESTIONS, *ALIASES}


def test_a_model_and_a_source_may_be_given_by_name(run: Run, data: Path, weights: Path) -> None:
    run.ok("predict", f"model={weights}", f"source={data / 'JPEGImages'}")


def test_help_does_not_import_torch() -> None:
    code = "import sys, rcnn.cli.app; sys.exit(bool({'torch', 'matplotlib', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_importing_the_library_and_predicting_do_not_load_optional_packages() -> None:
    code = (
        "import sys, rcnn; assert 'torch' not in sys.modules; import numpy; "
        "rcnn.load('blood-cells', device='cpu').predict(numpy.zeros((64, 64, 3), numpy.uint8)); "
        "print(*{'torchvision', 'torch._dynamo'} & set(sys.modules)); [getattr(rcnn, name) for name in rcnn.__all__]; "
        "print(*{'matplotlib', 'timm', 'faster_coco_eval', 'cv2', 'scipy'} & set(sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert loaded.stdout.split() == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SettingsError("wrong [setting]"), 2),
        (DataError("a.xml:3: wrong"), 3),
        (OSError(28, "No space left on device"), 1),
        (ZeroDivisionError("a bug"), 1),
        (MemoryError("too much"), 1),
        (RecursionError("too deep"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_give_a_sentence_and_an_exit_code(run: Run, error: BaseException, code: int) -> None:
    with patch.object(app, "app", side_effect=error):
        message = str(error.strerror) if isinstance(error, OSError) else str(error)
        plain, debugged = run.fails(code, message, "val"), run("val", "--debug")
    assert debugged.code == code
    assert plain.err.startswith("error: ")
    assert ("unexpected" in plain.err) is isinstance(error, ZeroDivisionError)
    assert "Traceback" in debugged.err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            OSError(28, "No space left on device", "from.jpg", None, "to.jpg"),
            1,
            "to.jpg: No space left on device. Free space, then run the command again",
        ),
    ],
)
@pytest.mark.parametrize("json", [(), ("--json",)])
def test_ctrl_c_and_a_full_disk_in_a_command_are_reported(
    run: Run, tmp_path: Path, error: BaseException, code: int, message: str, json: tuple[str, ...]
) -> None:
    with patch("rcnn.data.check.check", side_effect=error):
        assert run("data", "check", tmp_path, *json) == Outcome(code, "", f"error: {message}\n")
        assert type(error).__name__ in run("data", "check", tmp_path, "--debug").err


def test_every_error_has_its_code_and_is_public() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert {kind.__name__: kind.exit_code for kind in kinds} == {
        **dict.fromkeys(("TrainingError", "PredictionError", "ExportError", "NonFiniteError", "StorageError"), 1),
        "SettingsError": 2,
        **dict.fromkeys(("DataError", "ImageError"), 3),
        **dict.fromkeys(("WeightsError", "UnavailableError"), 4),
        "Interrupted": 130,
    }
    assert all(getattr(rcnn, kind.__name__) is kind for kind in kinds)


@pytest.mark.parametrize("command", [train.train, val.val, demo.demo])
def test_commands_that_draw_random_numbers_have_a_seed(command: Callable[..., None]) -> None:
    assert {"seed", "device", "json"} <= set(signature(command).parameters)


@pytest.mark.parametrize("command", [predict.predict, propose.propose])
def test_commands_that_run_a_network_have_a_device(command: Callable[..., None]) -> None:
    assert {"device", "json", "on_fault"} <= set(signature(command).parameters)


def test_every_short_option_of_train_is_a_setting() -> None:
    assert set(train.OPTIONS.values()) <= set(keys())
    assert set(train.OPTIONS) <= set(signature(train.train).parameters)


def test_names_from_files_do_not_control_the_terminal(run: Run) -> None:
    error = DataError("\x1b]0;title\x07\x1b[2J\u202e.xml:\udce9\n second line \u00fc")
    with patch.object(app, "app", side_effect=error):
        assert run("val").err == "error: \\x1b]0;title\\x07\\x1b[2J\\u202e.xml:\\udce9\n second line \u00fc\n"


def test_the_module_can_be_run_like_the_command() -> None:
    help_text = subprocess.run([sys.executable, "-m", "rcnn", "-h"], capture_output=True, text=True, timeout=60).stdout
    assert "Usage: rcnn " in help_text
