import pickle

import numpy as np
import pytest

from vjepa_hub.evaluation.ava.boxes import (
    EVALUATED_CLASS_IDS,
    AvaFormatError,
    KeyFrameBoxes,
    KeyFrameId,
    overlaps,
    read_annotations,
    read_detections,
    read_excluded_key_frames,
    read_label_map,
    read_proposals,
    write_detections,
)


@pytest.fixture
def write(tmp_path):
    def write_text(text: str, name: str = "file.csv"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write_text


def test_annotations_of_a_box_and_of_a_person_and_key_frames_without_boxes_are_read(write):
    table = read_annotations(write("-a_1,0902,0.1,0.2,0.5,0.6,80\nb,0903\n-a_1,0902,0,0,1,1,3,17\n"))
    assert table.key_frames == (KeyFrameId("-a_1", 902), KeyFrameId("b", 903))
    assert table.frame_indices.tolist() == [0, 0]
    assert table.boxes.tolist() == [[0.1, 0.2, 0.5, 0.6], [0, 0, 1, 1]]
    assert table.class_ids.tolist() == [80, 3]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,0902,0.1,0.2,0.5", "5 columns"),
        ("a,0902,0.1,0.2,0.5,0.6,0", "action, in column 7, is '0', but must be from 1 to 80"),
        ("a,0902,0.1,0.2,0.5,0.6,81", "'81'"),
        ("a,0902,0.1,0.2,0.5,0.6,walk", "'walk'"),
        ("a,902.5,0.1,0.2,0.5,0.6,1", "'902.5', but must be at a whole second"),
        (",0902,0.1,0.2,0.5,0.6,1", "must be the video's id"),
        ("a,0902,0.1,two,0.5,0.6,1", "y1, in column 4, is 'two'"),
        ("a,0902,0.1,nan,0.5,0.6,1", "must be finite"),
        ("a,0902,12,20,300,200,1", "divide pixels"),
    ],
)
def test_a_bad_line_is_named_with_its_number_value_and_rule(write, row, message):
    path = write(f"b,0902,0,0,1,1,1\n\n{row}\n")
    with pytest.raises(AvaFormatError, match="line 3 of ") as error:
        read_annotations(path)
    assert message in str(error.value)
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)


def test_detections_need_a_score(write):
    assert read_detections(write("a,0902,0,0,1,1,1,0.25\n")).scores.tolist() == [0.25]
    with pytest.raises(AvaFormatError, match="7 columns"):
        read_detections(write("a,0902,0,0,1,1,1\n"))


def test_proposals_are_read_once_each_and_above_the_least_score(write):
    rows = ["a,0902,0,0,1,1,,0.9", "a,0902,0,0,1,1,12,0.9", "a,0902,0,0,0.5,1,0.85", "a,0902,0,0,0.4,1,,0.79"]
    table = read_proposals(write("\n".join([*rows, "b,0902,0,0,1,1,0.1"])), min_score=0.8)
    assert table.boxes[:, 2].tolist() == [1, 0.5]
    assert table.scores.tolist() == [0.9, 0.85]


def test_excluded_key_frames_are_left_out_with_their_rows(write):
    excluded = read_excluded_key_frames(write("a,0903\n"))
    table = read_annotations(write("a,0902,0,0,1,1,1\na,0903,0,0,1,1,2\nb,0903,0,0,1,1,3\n", "truth.csv"))
    left = table.without(excluded)
    assert left.key_frames == (KeyFrameId("a", 902), KeyFrameId("b", 903))
    assert left.class_ids.tolist() == [1, 3]
    assert [left.key_frames[index].video_id for index in left.frame_indices] == ["a", "b"]


def test_label_map_is_read_in_both_spellings(write):
    first = 'item {\n  name: "bend/bow (at the waist)"\n  id: 1\n}\n'
    second = 'label {\n  name: "sit"\n  label_id: 11\n  label_type: X\n}\n'
    labels = read_label_map(write(first + second, "map.pbtxt"))
    assert list(labels.items()) == [(1, "bend/bow (at the waist)"), (11, "sit")]


def test_label_map_with_a_number_twice_or_with_nothing_is_refused(write):
    with pytest.raises(AvaFormatError, match=r"line 4 .*twice"):
        read_label_map(write('name: "a"\nid: 1\nname: "b"\nid: 1\n'))
    with pytest.raises(AvaFormatError, match="no action"):
        read_label_map(write("a,b\n"))


def test_names_of_actions_keep_their_characters(write):
    names = read_label_map(write('name: "a\u2028b\x85c"\r\nid: 1\n', "map.pbtxt"))
    assert names == {1: "a\u2028b\x85c"}


@pytest.mark.parametrize("video_id", ["a,b", 'a"b', "a\nb", "a\u2028b", " a ", "a\x85"])
def test_detections_of_any_file_name_are_read_back(tmp_path, video_id):
    zero, box = np.zeros(1, np.int64), np.array([[0, 0, 1, 1.0]])
    table = KeyFrameBoxes((KeyFrameId(video_id, 902),), zero, box, np.array([3]), np.array([0.5]))
    write_detections(tmp_path / "written.csv", table)
    assert read_detections(tmp_path / "written.csv").key_frames == table.key_frames


def test_written_detections_are_read_back(write, tmp_path):
    table = read_detections(write("a,0902,0.1,0.2,0.5,0.6,80,0.123456\nb,1798,0,0,1,1,3,1e-06\n"))
    write_detections(tmp_path / "written.csv", table)
    again = read_detections(tmp_path / "written.csv")
    assert again.key_frames == table.key_frames
    np.testing.assert_array_equal(again.boxes, table.boxes)
    np.testing.assert_array_equal(again.scores, table.scores)
    assert (tmp_path / "written.csv").read_text().startswith("a,0902,")


def test_overlap_of_empty_boxes_is_zero_and_of_halves_a_half():
    boxes = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [0.5, 0, 0.2, 1], [0, 0, 0, 0]], dtype=float)
    others = np.array([[0, 0, 0.5, 1], [0.5, 0, 1.5, 1], [0, 0, 1, 1], [0, 0, 0, 0]], dtype=float)
    np.testing.assert_allclose(overlaps(boxes, others), [1 / 2, 1 / 3, 0, 0])


def test_sixty_classes_are_evaluated():
    assert len(EVALUATED_CLASS_IDS) == len(set(EVALUATED_CLASS_IDS)) == 60


@pytest.mark.parametrize("read", [read_annotations, read_label_map])
def test_file_that_is_no_text_is_refused_with_its_path(tmp_path, read):
    file = tmp_path / "ava.csv"
    file.write_bytes(b"item {\xff\xfe\n")
    with pytest.raises(ValueError, match="UTF-8") as caught:
        read(file)
    assert str(file) in str(caught.value)
