import time
from collections import Counter

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from torch.utils.data import DataLoader, Dataset

from vjepa_hub.data.clip_order import ClipOrder, ClipRequest

CLIPS_PER_STEP = 12
BATCH_SIZE = 2


class Requests(Dataset):
    """Gives back what it is asked for."""

    def __len__(self):
        return 40

    def __getitem__(self, request):
        return tuple(request)


def as_is(samples):
    return samples


def epochs(order, num_epochs):
    """The requests of the first epochs, one after the other."""
    requests = []
    for epoch in range(num_epochs):
        order.set_epoch(epoch)
        requests += list(order)
    return requests


def loader_of(order, *, num_processes=1, process_index=0, num_workers=0):
    loader = DataLoader(
        Requests(), batch_size=BATCH_SIZE, sampler=order, num_workers=num_workers, collate_fn=as_is, drop_last=True
    )
    return prepare_data_loader(loader, num_processes=num_processes, process_index=process_index, put_on_device=False)


@pytest.mark.parametrize("num_items", [1, 2, 7, 100])
def test_each_stretch_of_the_order_holds_every_item_once(num_items):
    order = ClipOrder(num_items, clips_per_step=3)
    for number in range(4):
        stretch = [order.index_at(number * num_items + place) for place in range(num_items)]
        assert sorted(stretch) == list(range(num_items))


def test_permutations_differ_from_each_other_and_between_seeds():
    first, second = ([ClipOrder(50, clips_per_step=5, seed=seed).index_at(p) for p in range(100)] for seed in (0, 1))
    assert first[:50] != first[50:]
    assert first != second
    assert first[:50] != list(range(50))


def test_every_place_of_a_permutation_is_as_likely_for_each_item():
    counts = np.zeros((6, 6))
    for seed in range(3000):
        order = ClipOrder(6, clips_per_step=6, seed=seed)
        for request in order:
            counts[request.position, request.index] += 1
    assert (abs(counts - 500) < 4.5 * np.sqrt(3000 * (1 / 6) * (5 / 6))).all()


@pytest.mark.parametrize(("num_items", "clips_per_step", "steps_per_epoch"), [(10, 3, 2), (7, 4, 5), (5, 12, 1)])
def test_epochs_are_sections_of_one_endless_order(num_items, clips_per_step, steps_per_epoch):
    order = ClipOrder(num_items, clips_per_step=clips_per_step, steps_per_epoch=steps_per_epoch, seed=3)
    requests = epochs(order, 4)
    assert [request.position for request in requests] == list(range(4 * steps_per_epoch * clips_per_step))
    assert [request.index for request in requests] == [order.index_at(p) for p in range(len(requests))]
    counts = Counter(request.index for request in requests)
    assert max(counts.values()) - min(counts[item] for item in range(num_items)) <= 1


@pytest.mark.parametrize(("num_items", "clips_per_step", "steps"), [(10, 3, 3), (12, 3, 4), (5, 12, 1), (1, 1, 1)])
def test_an_epoch_is_one_pass_over_the_items_by_default(num_items, clips_per_step, steps):
    order = ClipOrder(num_items, clips_per_step=clips_per_step)
    assert order.steps_per_epoch == steps
    assert len(order) == len(list(order)) == steps * clips_per_step


def test_requests_are_pairs_of_position_and_index():
    order = ClipOrder(9, clips_per_step=3)
    order.set_epoch(2)
    request = next(iter(order))
    assert request == ClipRequest(position=18, index=order.index_at(18))
    assert [type(value) for value in request] == [int, int]


def test_the_order_starts_anywhere_without_what_came_before():
    order = ClipOrder(11, clips_per_step=4, steps_per_epoch=5, seed=9)
    uninterrupted = epochs(order, 6)
    resumed = ClipOrder(11, clips_per_step=4, steps_per_epoch=5, seed=9)
    resumed.set_epoch(5)
    assert list(resumed) == uninterrupted[5 * len(order) :]
    assert list(resumed) == list(resumed)


def test_millions_of_items_are_shuffled_once_and_not_for_each_step():
    order = ClipOrder(1_000_000, clips_per_step=1, steps_per_epoch=1000)
    start = time.perf_counter()
    assert len({request.index for request in order}) == 1000
    # Shuffling takes a tenth of a second or more: for each step anew, that would be 100.
    assert time.perf_counter() - start < 20


def test_unshuffled_items_come_in_their_own_order():
    order = ClipOrder(3, clips_per_step=4, steps_per_epoch=2, is_shuffled=False)
    assert [request.index for request in order] == [0, 1, 2, 0, 1, 2, 0, 1]


def test_the_global_generators_have_no_say():
    def indices(seed):
        torch.manual_seed(seed)
        np.random.seed(seed)
        return list(ClipOrder(50, clips_per_step=10))

    assert indices(0) == indices(1)


# Weights


def test_items_are_drawn_as_often_as_their_weights_say():
    weights = [1.0, 0.0, 3.0, 0.5, 0.0]
    order = ClipOrder(5, clips_per_step=9000, steps_per_epoch=1, weights=weights)
    counts = np.bincount([request.index for request in order], minlength=5)
    shares = np.array(weights) / sum(weights)
    assert (abs(counts - 9000 * shares) <= 4 * np.sqrt(9000 * shares * (1 - shares))).all()
    assert counts[[1, 4]].tolist() == [0, 0]


def test_weighted_draws_depend_on_seed_and_position_alone():
    weights = torch.rand(30, generator=torch.Generator().manual_seed(0))
    order = ClipOrder(30, clips_per_step=7, steps_per_epoch=3, weights=weights, seed=4)
    requests = epochs(order, 3)
    other_split = ClipOrder(30, clips_per_step=3, steps_per_epoch=21, weights=weights.tolist(), seed=4)
    assert requests == list(other_split)
    assert requests == [ClipRequest(p, order.index_at(p)) for p in range(63)]
    assert requests != epochs(ClipOrder(30, clips_per_step=7, steps_per_epoch=3, weights=weights, seed=5), 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_items": 0}, "num_items is 0"),
        ({"clips_per_step": -2}, "clips_per_step is -2"),
        ({"steps_per_epoch": 0}, "steps_per_epoch is 0"),
        ({"weights": [1.0]}, "weights have shape \\(1,\\).*3 items"),
        ({"weights": [1.0, -0.5, 1.0]}, "weight of item 1 is -0.5"),
        ({"weights": [1.0, 1.0, float("nan")]}, "weight of item 2 is nan"),
        ({"weights": [1.0, 1.0, float("inf")]}, "weight of item 2 is inf"),
        ({"weights": [0, 0, 0]}, "weights are all 0"),
        ({"weights": [1, 1, 1], "is_shuffled": False}, "leave one out"),
    ],
)
def test_impossible_orders_are_named_in_the_error(changes, message):
    with pytest.raises(ValueError, match=message):
        ClipOrder(**({"num_items": 3, "clips_per_step": 2} | changes))


def test_negative_epochs_and_positions_raise():
    order = ClipOrder(3, clips_per_step=1)
    with pytest.raises(ValueError, match="epoch is -1"):
        order.set_epoch(-1)
    with pytest.raises(ValueError, match="position is -1"):
        order.index_at(-1)


# With accelerate, as the Trainer loads data


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("num_processes", [1, 2])
def test_all_processes_together_take_the_same_clips_in_each_step(num_processes, num_workers):
    order = ClipOrder(40, clips_per_step=CLIPS_PER_STEP, steps_per_epoch=4, seed=2)
    expected, batches_per_step = list(order), CLIPS_PER_STEP // (BATCH_SIZE * num_processes)
    taken = [[] for _ in range(4)]
    for process in range(num_processes):
        loader = loader_of(order, num_processes=num_processes, process_index=process, num_workers=num_workers)
        assert len(loader) == 4 * batches_per_step
        for number, batch in enumerate(loader):
            taken[number // batches_per_step] += batch
    for step, clips in enumerate(taken):
        assert sorted(clips) == expected[step * CLIPS_PER_STEP : (step + 1) * CLIPS_PER_STEP]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_run_resumed_within_an_epoch_goes_on_exactly(num_processes, num_workers):
    def order_of_epoch(loader, order):
        # As the Trainer's callback does: accelerate alone does not reach the order behind skipped and shared batches.
        loader.set_epoch(2)
        order.set_epoch(2)

    def build():
        order = ClipOrder(40, clips_per_step=CLIPS_PER_STEP, steps_per_epoch=3, seed=2)
        settings = {"num_processes": num_processes, "process_index": num_processes - 1, "num_workers": num_workers}
        return order, loader_of(order, **settings)

    order, loader = build()
    order_of_epoch(loader, order)
    uninterrupted = list(loader)
    order, loader = build()
    loader = skip_first_batches(loader, 4)
    order_of_epoch(loader, order)
    assert list(loader) == uninterrupted[4:]
    assert min(position for position, _ in uninterrupted[0]) >= 2 * len(order)
