import numpy as np
import pytest
import torch

from tests.heads.fake_tokens import FakeTokens
from vjepa_hub.heads.neighbours import (
    Neighbours,
    compute_descriptors,
    describe_token_source,
    precision_at_k,
    predict_by_neighbours,
    search,
    vote,
)


def found(places) -> Neighbours:
    places = np.array(places)
    return Neighbours(places=places, similarities=np.zeros(places.shape, np.float32))


# --- descriptors ---


def test_mean_and_deviation_are_those_over_tokens():
    tokens = torch.tensor([[[1.0, 2.0], [3.0, 2.0]]])
    assert compute_descriptors(tokens, "mean").tolist() == [[2.0, 2.0]]
    assert compute_descriptors(tokens, "mean-std").tolist() == [[2.0, 2.0, 1.0, 0.0]]


def test_temporal_descriptor_has_the_mean_of_each_time_and_its_changes():
    tokens = torch.tensor([[[1.0], [3.0], [4.0], [8.0], [0.0], [0.0]]])
    assert compute_descriptors(tokens, "temporal", num_times=3).tolist() == [[2.0, 6.0, 0.0, 4.0, -6.0]]


def test_only_the_temporal_descriptor_tells_a_clip_from_its_reverse():
    tokens = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0))
    for descriptor, is_alike in (("mean", True), ("mean-std", True), ("temporal", False)):
        pair = [compute_descriptors(t, descriptor, num_times=4) for t in (tokens, tokens.flip(1))]
        assert torch.allclose(*pair, atol=1e-6) == is_alike


def test_half_precision_is_averaged_in_single_precision():
    assert compute_descriptors(torch.full((1, 4096, 1), 100.0, dtype=torch.float16), "mean").item() == 100.0


@pytest.mark.parametrize(
    ("shape", "descriptor", "num_times", "error", "message"),
    [
        ((2, 4, 3), "max", 1, KeyError, "unknown descriptor 'max'; available: mean, mean-std, temporal"),
        ((2, 1, 4, 3), "mean", 1, ValueError, r"shape \(2, 1, 4, 3\)"),
        ((2, 0, 3), "mean", 1, ValueError, r"none of them 0"),
        ((2, 4, 3), "temporal", 3, ValueError, "num_times is 3, but 4 tokens"),
    ],
)
def test_tokens_that_cannot_be_described_are_refused(shape, descriptor, num_times, error, message):
    with pytest.raises(error, match=message):
        compute_descriptors(torch.zeros(shape), descriptor, num_times=num_times)


def test_videos_that_cannot_be_read_are_left_out_and_counted():
    source = FakeTokens(20, unreadable=(0, 13))
    described = describe_token_source(source, "mean", batch_size=3)
    kept = [index for index in range(20) if index not in (0, 13)]
    assert described.indices.tolist() == kept
    assert described.num_unreadable == 2
    assert torch.allclose(described.features, source.tokens[kept].half().float().flatten(1, 3).mean(1), atol=1e-6)
    with pytest.raises(ValueError, match="none of 3 videos"):
        describe_token_source(FakeTokens(3, unreadable=(0, 1, 2)))


def test_progress_ends_with_all_videos():
    calls = []
    describe_token_source(FakeTokens(10), batch_size=4, progress=lambda what, done, total: calls.append((done, total)))
    assert calls == [(4, 10), (8, 10), (10, 10)]


# --- search ---


def test_search_is_by_direction_from_the_gallery_mean():
    gallery = torch.tensor([[9.0, 10.0], [11.0, 10.0], [10.0, 14.0], [10.0, 6.0]])  # around (10, 10)
    queries = torch.tensor([[10.1, 10.0], [10.0, 10.5]])
    neighbours = search(queries, gallery, 4)
    assert neighbours.places.tolist() == [[1, 2, 3, 0], [2, 0, 1, 3]]  # of equally near ones the first comes first
    assert np.allclose(neighbours.similarities, [[1, 0, 0, -1]] * 2, atol=1e-6)


def test_search_weighs_each_number_by_its_deviation_and_leaves_out_what_is_the_same_everywhere():
    gallery = torch.tensor([[0.0, 1.0, 5.0], [0.0, -1.0, 5.0], [100.0, 0.0, 5.0], [-100.0, 0.0, 5.0]])
    neighbours = search(torch.tensor([[50.0, 1.0, 9.0]]), gallery, 2)
    assert neighbours.places.tolist() == [[0, 2]]
    assert np.allclose(neighbours.similarities, [[0.8**0.5, 0.2**0.5]], atol=1e-6)


def test_search_in_parts_is_the_search_at_once(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    queries, gallery = torch.randn(7, 5, generator=generator), torch.randn(11, 5, generator=generator)
    at_once = search(queries, gallery, 3)
    monkeypatch.setattr("vjepa_hub.heads.neighbours.QUERIES_AT_ONCE", 2)
    assert np.array_equal(search(queries, gallery, 3).places, at_once.places)


@pytest.mark.parametrize(
    ("queries", "gallery", "k", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(4, 5), 1, r"queries have the shape \(2, 3\) and the gallery \(4, 5\)"),
        (torch.zeros(2, 3), torch.zeros(4, 3), 5, "k is 5, but must be from 1 to the 4 clips"),
        (torch.zeros(2, 3), torch.zeros(4, 3), 0, "k is 0"),
        (torch.full((2, 3), torch.nan), torch.zeros(4, 3), 1, "queries hold values that are not finite"),
    ],
)
def test_what_cannot_be_searched_is_refused(queries, gallery, k, message):
    with pytest.raises(ValueError, match=message):
        search(queries, gallery, k)


# --- precision ---


def test_descriptors_that_are_the_class_have_a_precision_of_1():
    labels = np.arange(30) % 3
    descriptors = torch.eye(3)[labels]
    precision = precision_at_k(search(descriptors, descriptors, 10), labels, labels)
    assert precision.value == 1
    assert precision.interval == (1, 1)
    assert precision.chance == pytest.approx(1 / 3)


def test_precision_is_the_mean_share_of_the_nearest_that_are_of_the_class():
    neighbours = found([[0, 1], [2, 3], [1, 0]])
    gallery_labels = np.array([0, 1, 1, 1])
    both = precision_at_k(neighbours, np.array([0, 1, 0]), gallery_labels)
    assert both.per_query.tolist() == [0.5, 1, 0.5]
    assert both.value == pytest.approx(2 / 3)
    assert both.chance == pytest.approx((0.25 + 0.75 + 0.25) / 3)
    assert precision_at_k(neighbours, np.array([0, 1, 0]), gallery_labels, k=1).per_query.tolist() == [1, 1, 0]


def test_random_descriptors_are_at_chance():
    generator = torch.Generator().manual_seed(1)
    labels = np.arange(400) % 4
    neighbours = search(torch.randn(400, 8, generator=generator), torch.randn(400, 8, generator=generator), 5)
    precision = precision_at_k(neighbours, labels, labels)
    assert precision.interval[0] < precision.chance < precision.interval[1]
    # The deviation of a mean of 400 queries with five draws of probability 1/4 is 0.0097
    assert 0.03 < precision.interval[1] - precision.interval[0] < 0.05


def test_interval_is_wider_with_fewer_queries():
    widths = []
    for num_queries in (16, 256):
        precision = precision_at_k(found([[0], [1]] * (num_queries // 2)), np.zeros(num_queries, int), np.arange(2))
        widths.append(precision.interval[1] - precision.interval[0])
    assert widths[0] > 3 * widths[1]


@pytest.mark.parametrize(
    ("query_labels", "gallery_labels", "k", "message"),
    [
        ([0], [0, 1, 1], None, "labels are those of 1 queries and 3 clips"),
        ([0, 1], [0, 1], None, "a gallery of at least 3"),
        ([0, 1], [0, 1, 1], 3, "k is 3, but 2 neighbours were searched"),
    ],
)
def test_labels_that_do_not_fit_the_search_are_refused(query_labels, gallery_labels, k, message):
    with pytest.raises(ValueError, match=message):
        precision_at_k(found([[0, 1], [2, 1]]), np.array(query_labels), np.array(gallery_labels), k=k)


# --- the vote ---


def test_nearer_neighbours_outvote_more_of_them():
    neighbours = Neighbours(places=np.array([[2, 0, 1]]), similarities=np.array([[0.9, 0.2, 0.1]], np.float32))
    labels = np.array([1, 1, 0])
    sharp, even = (vote(neighbours, labels, num_classes=2, temperature=t) for t in (0.07, 1e6))
    assert sharp.argmax() == 0
    assert even.argmax() == 1
    np.testing.assert_allclose([sharp.sum(), even.sum()], 1)
    assert even[0].tolist() == pytest.approx([1 / 3, 2 / 3], rel=1e-5)


def test_neighbours_predict_classes_and_leave_out_what_cannot_be_read():
    train, validation = FakeTokens(24, unreadable=(1, 2)), FakeTokens(24, unreadable=(4,))
    found = predict_by_neighbours(train, validation, num_neighbours=5)
    assert found.is_readable.tolist() == [place != 4 for place in range(24)]
    assert not found.probabilities[0][4].any()
    is_right = found.probabilities[0].argmax(1) == validation.labels
    assert is_right[found.is_readable].mean() > 0.9


def test_more_neighbours_than_readable_clips_are_refused():
    with pytest.raises(ValueError, match="k is 6, but must be from 1 to the 5 clips"):
        predict_by_neighbours(FakeTokens(6, unreadable=(0,)), FakeTokens(3), num_neighbours=6)
