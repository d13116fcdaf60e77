import json

import pytest

from tests.damage import change_bytes, change_fields, fuzz
from vjepa_hub.core.run_files import DataFacts, Result, RunFile, RunRecord, read_run

RESULT = Result(task="video-classification", dataset="val", metric="top-1", value=3.0, protocol="a protocol")


@pytest.mark.parametrize("changes", ["bytes", "values"])
def test_changed_record_of_a_run(tmp_path, seeds, changes):
    data = (DataFacts(role="videos", source="videos", num_videos=3),)
    RunFile(tmp_path, RunRecord(kind="probe", command=("probe", "a"), data=data, results=(RESULT,))).update()
    file = tmp_path / "run.json"
    good, fields = file.read_bytes(), json.loads(file.read_bytes())

    def change(rng) -> None:
        as_bytes = changes == "bytes"
        file.write_bytes(change_bytes(rng, good, len(good)) if as_bytes else change_fields(rng, fields).encode())

    assert fuzz(tmp_path, seeds(60), change, lambda: read_run(tmp_path), names=str(file), errors=(ValueError,)) > 30
