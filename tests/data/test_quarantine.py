import json
import multiprocessing
import pickle

import pytest
import torch

from vjepa_hub.data.quarantine import FailureShare, Quarantine, QuarantinedVideo, TooManyBadVideosError

CAUSE = 'the file is "truncated":\nit says 2 bytes'


def test_video_is_listed_once_with_its_cause_and_known_to_the_next_run(tmp_path):
    path = tmp_path / "run" / "bad.jsonl"
    quarantine = Quarantine(path)
    assert not path.exists()
    for position in (7, 9):
        quarantine.add("a clip ä.mp4", cause=CAUSE, position=position)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"video": "a clip ä.mp4", "cause": CAUSE, "position": 7}
    ]
    later = Quarantine(path)
    assert "a clip ä.mp4" in later
    assert "b.mp4" not in later
    assert later.cause("a clip ä.mp4") == CAUSE
    assert later.read() == [QuarantinedVideo("a clip ä.mp4", CAUSE, 7)]


def test_quarantine_without_a_file_keeps_to_its_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quarantine = Quarantine()
    quarantine.add("a", cause="c", position=0)
    assert quarantine.read() == [("a", "c", 0)]
    assert "a" in quarantine
    assert len(quarantine) == 1
    assert list(tmp_path.iterdir()) == []
    assert quarantine.reminder == ""


def write_many(quarantine, name):
    for number in range(200):
        quarantine.add(f"shared {number}", cause="x" * 3000, position=number)
        quarantine.add(f"{name} {number}", cause="x" * 3000, position=number)


def test_lines_of_several_processes_do_not_mix(tmp_path, caplog):
    quarantine = Quarantine(tmp_path / "bad.jsonl")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=write_many, args=(quarantine, name)) for name in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 3 * 400
    assert len(quarantine.read()) == 200 + 3 * 200
    assert caplog.text.count("is no entry") == 0


def test_line_that_was_cut_off_is_passed_over_and_its_video_found_again(tmp_path, caplog):
    path = tmp_path / "bad.jsonl"
    quarantine = Quarantine(path)
    for name in "ab":
        quarantine.add(name, cause="c", position=0)
    path.write_text(path.read_text()[:-10])
    later = Quarantine(path)
    assert "line 2 of" in caplog.text
    assert "b" not in later
    later.add("b", cause="c", position=0)  # stands in the broken line
    later.add("d", cause="c", position=0)
    assert [entry.video for entry in Quarantine(path).read()] == ["a", "d"]


@pytest.mark.parametrize("line", ["[1]", "3", '{"video": "a"}', '{"video": "a", "cause": "c", "position": 0, "x": 1}'])
def test_line_that_is_no_entry_is_passed_over(tmp_path, line, caplog):
    (tmp_path / "bad.jsonl").write_text(f'{line}\n{{"video": "b", "cause": "c", "position": 1}}\n')
    assert Quarantine(tmp_path / "bad.jsonl").read() == [("b", "c", 1)]
    assert "line 1 of" in caplog.text


def test_quarantine_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(OSError, match="taken"):
        Quarantine(tmp_path / "taken" / "bad.jsonl").add("a", cause="c", position=0)


def test_quarantine_travels_to_a_worker_with_what_it_knows(tmp_path):
    quarantine = Quarantine(tmp_path / "bad.jsonl")
    quarantine.add("a", cause="c", position=0)
    copy = pickle.loads(pickle.dumps(quarantine))
    assert "a" in copy
    assert copy.path == quarantine.path


# --- the share of failures ---


def test_run_stops_above_the_share_and_says_what_to_do(tmp_path):
    share = FailureShare(0.1, quarantine=Quarantine(tmp_path / "bad.jsonl"))
    share.add(torch.tensor([0] * 16 + [1, 1]))  # 2 of 20, and that is allowed
    assert share.share == 0.1
    with pytest.raises(TooManyBadVideosError) as error:
        share.add(torch.tensor([0, 2]))
    for part in ("4 of the 24 videos", "16.7%", "10.0%", str(tmp_path / "bad.jsonl"), "vjepa-hub check-data"):
        assert part in str(error.value)


def test_share_does_not_count_before_enough_videos_were_tried():
    share = FailureShare(0.0, min_tries=6)
    share.add([1, 1])
    share.add([0])
    with pytest.raises(TooManyBadVideosError, match="2 of the 6"):
        share.add([0])


@pytest.mark.parametrize(("max_share", "num_failures"), [(1.0, [9] * 30), (0.0, [0] * 30), (0.5, [1] * 30)])
def test_share_that_is_allowed_does_not_stop_the_run(max_share, num_failures):
    FailureShare(max_share).add(num_failures)


def test_counts_go_on_from_a_checkpoint():
    share = FailureShare(0.5)
    share.add([1, 0, 2])
    later = FailureShare(0.5)
    later.load_state_dict(json.loads(json.dumps(share.state_dict())))
    assert (later.num_clips, later.num_failures, later.num_tries, later.share) == (3, 3, 6, 0.5)


@pytest.mark.parametrize(
    ("options", "message"), [({"max_share": 10}, "max_share is 10"), ({"min_tries": 0}, "min_tries")]
)
def test_impossible_limits_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        FailureShare(**{"max_share": 0.1, **options})
