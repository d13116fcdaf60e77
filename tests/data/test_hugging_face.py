import sys

import pytest

from vjepa_hub.data.hugging_face import HuggingFaceShards, HuggingFaceSource
from vjepa_hub.data.records import LocalVideo, RemoteVideo, Unreadable, VideoBytes
from vjepa_hub.data.sources import MixedSource, open_source
from vjepa_hub.data.streaming import open_shards
from vjepa_hub.data.video import VideoDecodingError

datasets = pytest.importorskip("datasets", reason="Hugging Face data sets are an extra (pip install datasets)")


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def rows(**columns):
    return datasets.Dataset.from_dict(columns)


def records_of(dataset, **options):
    """The records by number, and as a stream of two shards."""
    source = HuggingFaceSource(dataset, **options)
    shards = HuggingFaceShards(dataset.to_iterable_dataset(num_shards=min(2, len(dataset))), **options)
    streamed = [record for shard in range(shards.num_shards) for record in shards.records(shard, pass_number=0)]
    return [source.record(index) for index in range(len(source))], streamed


def test_path_address_and_bytes_are_each_kept_as_what_they_are():
    values = [{"path": "/a b.mp4"}, {"path": "s3://x/b.mp4"}, {"path": "c.mp4", "bytes": b"c"}, {"bytes": b"d"}]
    values = [{"path": None, "bytes": None, **value} for value in values]
    numbered, streamed = records_of(rows(video=values))
    for records in (numbered, streamed):
        assert [type(record.content) for record in records] == [LocalVideo, RemoteVideo, VideoBytes, VideoBytes]
        assert [record.content.data for record in records[2:]] == [b"c", b"d"]
        assert [record.name for record in records[:2]] == ["/a b.mp4", "s3://x/b.mp4"]
        assert "c.mp4" in records[2].name
        assert len({record.name for record in records}) == 4


def test_video_feature_is_read_undecoded_and_other_columns_are_left_alone():
    """Decoded, the picture would be an error: it is none."""
    features = datasets.Features(
        {"clip": datasets.Video(), "image": datasets.Image(), "label": datasets.Value("int8")}
    )
    table = {"clip": [{"bytes": b"x", "path": None}], "image": [{"bytes": b"none", "path": None}], "label": [4]}
    dataset = datasets.Dataset.from_dict(table, features=features)
    for records in records_of(dataset):
        assert [(record.content, record.label) for record in records] == [(VideoBytes(b"x"), 4)]


def test_names_in_a_stream_do_not_move_when_it_is_shuffled():
    dataset = rows(bytes=[bytes([number]) for number in range(20)])
    shards = HuggingFaceShards(dataset.to_iterable_dataset().shuffle(seed=1, buffer_size=20))
    passes = [[*shards.records(0, pass_number=number)] for number in range(2)]
    first, second = ({record.name: record.content.data for record in records} for records in passes)
    assert [record.name for record in passes[0]] != [record.name for record in passes[1]]
    assert first == second


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"text": ["a"]}, {}, r"no column of videos: the data set has text, and known names are video, path"),
        ({"video": ["a"]}, {"video_column": "clip"}, "no column 'clip'; it has video"),
        ({"video": ["a"]}, {"label_column": "class"}, "no column 'class'; it has video"),
        ({"video": ["a"], "label": ["dog"]}, {}, "the column 'label' holds string, but a label is the number"),
        ({"video": ["a"], "label": [0.5]}, {}, "the column 'label' holds float64"),
    ],
)
def test_columns_that_do_not_fit_are_errors_that_name_those_there_are(columns, options, message):
    with pytest.raises(ValueError, match=message):
        HuggingFaceSource(rows(**columns), **options)
    with pytest.raises(ValueError, match=message):
        HuggingFaceShards(rows(**columns).to_iterable_dataset(), **options)


@pytest.mark.parametrize("label", [-1, None])
def test_label_of_a_row_that_is_no_class_number_is_an_error(label):
    dataset = rows(video=["a", "b"], label=[0, label])
    with pytest.raises(ValueError, match=r"row 1 of .* but a label is the number of a class"):
        HuggingFaceSource(dataset).record(1)
    assert HuggingFaceSource(dataset, with_labels=False).record(1).label is None


def test_two_video_columns_have_to_be_told_apart():
    features = datasets.Features({"left": datasets.Video(), "right": datasets.Video()})
    dataset = datasets.Dataset.from_dict({"left": [{"path": "/l"}], "right": [{"path": "/r"}]}, features=features)
    with pytest.raises(ValueError, match="videos in left, right; name one"):
        open_source(dataset)
    assert open_source(dataset, video_column="right").record(0).name == "/r"


def test_empty_row_counts_as_a_video_that_cannot_be_read():
    numbered, streamed = records_of(rows(video=["/a", None]))
    assert isinstance(numbered[1].content, Unreadable)
    assert isinstance(streamed[1].content, Unreadable)


def test_column_of_something_else_is_an_error():
    with pytest.raises(ValueError, match=r"row 0 of .* holds a int, but a video is a path"):
        HuggingFaceSource(rows(video=[3])).record(0)


def test_stream_that_does_not_know_its_columns_takes_the_one_that_is_named(cache):
    def generate():
        yield {"clip": "/a.mp4", "number": 3}

    stream = datasets.IterableDataset.from_generator(generate)
    with pytest.raises(ValueError, match="columns that are not known yet"):
        HuggingFaceShards(stream)
    (record,) = HuggingFaceShards(stream, video_column="clip", label_column="number").records(0, pass_number=0)
    assert (record.name, record.label) == ("/a.mp4", 3)
    with pytest.raises(ValueError, match="no column 'video'; it has clip, number"):
        next(HuggingFaceShards(stream, video_column="video").records(0, pass_number=0))


def test_wrong_kinds_are_sent_where_they_belong():
    dataset = rows(video=["/a"])
    with pytest.raises(TypeError, match="give it to a ClipStream"):
        open_source(dataset.to_iterable_dataset())
    with pytest.raises(TypeError, match="give it to open_source"):
        open_shards(dataset)
    for opener in (open_source, open_shards):
        with pytest.raises(TypeError, match=r"splits train, test; give one of them"):
            opener(datasets.DatasetDict(train=dataset, test=dataset))
    with pytest.raises(TypeError, match="found a int"):
        open_shards(3)


def test_stream_that_is_split_among_processes_already_is_refused():
    from datasets.distributed import split_dataset_by_node

    stream = split_dataset_by_node(rows(video=["/a", "/b"]).to_iterable_dataset(), rank=0, world_size=2)
    with pytest.raises(ValueError, match="split among processes already"):
        open_shards(stream)


def test_parquet_paths_count_from_its_folder(cache, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    rows(path=["a b.mp4", "/c.mp4"], label=[2, 0]).to_parquet(tmp_path / "data" / "list.parquet")
    monkeypatch.chdir(tmp_path)
    source = open_source("data/list.parquet")
    assert [source.record(index).name for index in range(2)] == [str(tmp_path / "data/a b.mp4"), "/c.mp4"]
    assert source.record(0).label == 2
    assert not open_source("data/list.parquet", with_labels=False).has_labels


def test_rows_of_two_data_sets_are_not_taken_for_each_other():
    one, other = HuggingFaceSource(rows(bytes=[b"a"])), HuggingFaceSource(rows(bytes=[b"b"]))
    with pytest.raises(ValueError, match="two data sets are called 'the data set'; give each a name"):
        MixedSource([(one, None), (other, None)])
    named = HuggingFaceSource(rows(bytes=[b"b"]), name="other")
    mixed = MixedSource([(one, None), (named, None)])
    assert mixed.record(0).name != mixed.record(1).name


def test_number_outside_the_rows_is_an_error():
    for index in (-1, 1):
        with pytest.raises(IndexError, match=f"index {index} is outside 0 to 0"):
            HuggingFaceSource(rows(video=["/a"])).record(index)


def test_missing_library_is_an_error_that_says_how_to_install_it(monkeypatch, tmp_path):
    (tmp_path / "a.parquet").touch()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="pip install 'datasets"):
        open_source(tmp_path / "a.parquet")
    (tmp_path / "a.mp4").touch()
    assert len(open_source(tmp_path / "a.mp4")) == 1


def test_row_that_cannot_be_read_is_its_own_failure(monkeypatch):
    source = HuggingFaceSource(datasets.Dataset.from_dict({"path": ["/a.mp4", "/b.mp4"]}))
    read = datasets.Dataset.__getitem__

    def fail_at_1(self, key):
        if key == 1:
            raise OSError(5, "Input/output error")
        return read(self, key)

    monkeypatch.setattr(datasets.Dataset, "__getitem__", fail_at_1)
    assert source.record(0).name == "/a.mp4"
    with pytest.raises(VideoDecodingError, match=r"row 1 of .*Input/output error"), source.record(1).open():
        pass
