import json
import math

import pytest

from vjepa_hub.core.invocation import command_words, invoked_by
from vjepa_hub.core.run_files import (
    DataFacts,
    ModelFacts,
    RunFile,
    RunRecord,
    changed_settings,
    read_run,
    require_own_folder,
    without_credentials,
)


@pytest.fixture
def record() -> RunRecord:
    return RunRecord(kind="probe", command=("probe", "model"), seeds=(0,), settings={"num_epochs": 2})


class StopError(RuntimeError):
    pass


# ------------------------------------------------------------------------------------------------ the file


def test_record_is_written_at_the_start_and_whole_at_the_end(record, tmp_path):
    with RunFile(tmp_path / "new", record).recording() as run:
        assert read_run(tmp_path / "new").state == "running"
        run.update(steps=3)
    found = read_run(tmp_path / "new")
    assert (found.state, found.steps, found.num_starts) == ("complete", 3, 1)
    assert found.ended >= found.started
    assert {"python", "torch", "transformers"} <= found.libraries.keys()


@pytest.mark.parametrize(
    ("error", "state"),
    [(ValueError("bad"), "failed"), (KeyboardInterrupt(), "stopped"), (StopError("signal"), "stopped")],
)
def test_run_that_ends_otherwise_says_why_and_its_error_comes_through(record, tmp_path, error, state):
    with pytest.raises(type(error)), RunFile(tmp_path, record).recording(stopped_by=(StopError,)):
        raise error
    found = read_run(tmp_path)
    assert found.state == state
    assert type(error).__name__ in found.cause


def test_resumed_run_updates_the_record_of_its_first_start(record, tmp_path):
    with pytest.raises(KeyboardInterrupt), RunFile(tmp_path, record).recording():
        raise KeyboardInterrupt
    first = read_run(tmp_path)
    with RunFile(tmp_path, record).recording():
        pass
    found = read_run(tmp_path)
    assert (found.started, found.num_starts, found.state, found.cause) == (first.started, 2, "complete", None)


def test_processes_that_are_no_writers_write_nothing(record, tmp_path):
    with RunFile(tmp_path / "new", record, is_writer=False).recording():
        pass
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 2}', '{"mine": 1}'])
def test_file_of_somebody_else_is_refused_and_kept(record, tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json .*another folder"), RunFile(tmp_path, record).recording():
        pass
    assert (tmp_path / "run.json").read_text() == text


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"run\.json"):
        read_run(tmp_path)


def test_record_with_numbers_that_are_not_finite_is_json_and_comes_back(tmp_path):
    record = RunRecord(kind="probe", command=(), settings={"norm": math.inf}, measures={"loss": math.nan})
    RunFile(tmp_path, record).update()
    json.loads((tmp_path / "run.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    found = read_run(tmp_path)
    assert found.settings == {"norm": "inf"}
    assert found.measures == {"loss": None}
    assert found.differences(record) == []


# ------------------------------------------------------------------------------------------------ secrets


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("https://me:pass@host/a.csv?X-Amz-Signature=1#part", "https://host/a.csv"),
        ("s3://key:secret@bucket/shard-{000..010}.tar", "s3://bucket/shard-{000..010}.tar"),
        ("--set=data=https://user:p@ss@host/x?y=1", "--set=data=https://host/x"),
        ("from https://a:b@c.org/d?e and http://f/g", "from https://c.org/d and http://f/g"),
        ("https://host/a?token=hf_" + "a" * 30, "https://host/a"),
        ("hf_" + "A1" * 17, ""),
        ("/home/me/a.csv and/or 12:30", "/home/me/a.csv and/or 12:30"),
    ],
)
def test_addresses_lose_user_password_and_query(text, clean):
    assert without_credentials(text) == clean


def test_no_text_of_a_record_has_credentials(tmp_path):
    secret = "https://me:secret@host/a.tar?signature=secret"
    record = RunRecord(
        kind="pretrain",
        command=("pretrain", "tiny", "--data", secret, f"--set=x={secret}"),
        settings={"data": [{"path": secret}]},
        changed={"data.0.path": secret},
        model=ModelFacts.of(secret),
        data=(DataFacts.of("videos", secret),),
    )
    run = RunFile(tmp_path, record)
    run.update(cause=f"ValueError: {secret}", warnings=(secret,))
    assert "secret" not in (tmp_path / "run.json").read_text()


# ------------------------------------------------------------------------------------------------ commands, settings


def test_command_is_the_command_line_s_and_from_python_the_one_that_does_the_same():
    given = {"num_epochs": 2, "label_fraction": [0.1, 0.5], "crop_size": None, "eval_only": False, "resume": True}
    assigned = {"scale": [0.5, 1.0], "augmentation": None, "name": "no"}
    assert command_words("probe", "model", assignments=assigned, **given) == [
        *("probe", "model", "--num-epochs", "2", "--label-fraction", "0.1", "--label-fraction", "0.5", "--resume"),
        *("--set", "scale=[0.5, 1.0]", "--set", "augmentation=null", "--set", "name=no"),
    ]
    with invoked_by(["probe", "other", "--val", "v.csv"]):
        assert command_words("probe", "model") == ["probe", "other", "--val", "v.csv"]
        assert command_words("pretrain", "tiny") == ["pretrain", "tiny"]  # a run within another one
    assert command_words("probe", "model") == ["probe", "model"]


def test_changed_settings_are_told_by_their_dotted_keys():
    tree, default = {"a": 1, "b": {"c": 2, "d": [1]}, "e": None}, {"a": 1, "b": {"c": 3, "d": [1]}, "e": {"f": 1}}
    assert changed_settings(tree, default) == {"b.c": 2, "e": None}


def test_differences_name_settings_data_weights_and_seeds(record):
    data = (DataFacts(role="train", source="a.csv", num_videos=3, sha256="1"),)
    one = record.model_copy(update={"data": data, "model": ModelFacts(name="m", sha256="1")})
    assert one.differences(one) == []
    moved = one.model_copy(update={"data": (data[0].model_copy(update={"source": "b.csv"}),)})
    assert one.differences(moved) == []
    other = RunRecord(
        kind="probe",
        command=(),
        seeds=(1,),
        settings={"num_epochs": 3},
        data=(data[0].model_copy(update={"sha256": "2"}),),
        model=ModelFacts(name="m", sha256="2"),
    )
    assert one.differences(other) == ["model", "num_epochs", "seeds", "train"]


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        ({"role": "videos", "source": "/a/b.csv", "is_local": True}, "VIDEOS"),
        ({"role": "videos 2", "source": "/a/b", "is_local": True}, "VIDEOS_2"),
        ({"role": "train", "source": "/a/b.csv", "is_local": True, "num_classes": 3}, "TRAIN_LABELS.csv"),
        ({"role": "videos", "source": "s3://bucket/a.tar"}, "s3://bucket/a.tar"),
    ],
)
def test_placeholder_stands_for_a_local_path_alone(facts, name):
    assert DataFacts(**facts).placeholder == name


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors", "results.json", "classifier"])
def test_folder_with_files_that_no_run_of_the_kind_has_written_is_refused(record, tmp_path, name):
    require_own_folder(tmp_path / "absent", "probe")
    (tmp_path / "notes.txt").write_text("mine")
    require_own_folder(tmp_path, "probe")
    (tmp_path / name).write_text("mine")
    for kind in ("probe", "pretrain"):
        with pytest.raises(FileExistsError, match=rf"{name}' would be replaced, but vjepa_hub did not write it"):
            require_own_folder(tmp_path, kind)
    RunFile(tmp_path, record).update()
    require_own_folder(tmp_path, "probe")
    with pytest.raises(FileExistsError, match=name):
        require_own_folder(tmp_path, "pretrain")
