import numpy as np
import pytest
import torch

from vjepa_hub.data import random_streams as draws
from vjepa_hub.data.random_streams import Stream, draw_uniform, generator_at


def draw(seed=0, positions=range(50), *, stream=Stream.CLIP, num_draws=4, first_draw=0):
    return draw_uniform(seed, positions, stream=stream, num_draws=num_draws, first_draw=first_draw)


def correlation(first, second):
    return np.corrcoef(first.flatten().numpy(), second.flatten().numpy())[0, 1]


def test_numbers_never_change_from_one_version_to_the_next():
    """A run that is resumed with a newer version has to go on with the same clips and masks."""
    drawn = draw_uniform(7, [0, 1, 2**40], stream=Stream.MASKS + 1, num_draws=2)
    expected = [
        [0.2237382545231419, 0.5278702209252779],
        [0.3356286855331677, 0.8108847155703982],
        [0.2388779859316913, 0.9753227820743536],
    ]
    assert torch.equal(drawn, torch.tensor(expected, dtype=torch.float64))
    assert generator_at(7, 5, stream=Stream.CROP).initial_seed() == 8689098494922583680


def test_streams_never_change_from_one_version_to_the_next():
    numbers = {"ORDER": 0, "SOURCE": 1, "REPLACEMENT": 2, "CLIP": 3, "CROP": 4, "FLIP": 5, "AUGMENT": 6, "MASKS": 1000}
    assert {stream.name: stream.value for stream in Stream} == numbers
    assert max(Stream) is Stream.MASKS  # so that MASKS + mask_index is nobody else's


def test_splitmix64_is_written_out_rightly():
    """The published sequence: outputs of the generator that starts in state 1234567."""
    state = np.array([1234567], dtype=np.uint64) + np.arange(1, 4, dtype=np.uint64) * draws._INCREMENT
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert draws._finalise(state).tolist() == expected


def test_numbers_of_a_position_do_not_depend_on_the_others_drawn_with_it():
    together = draw(positions=range(20))
    assert torch.equal(together, torch.cat([draw(positions=[position]) for position in range(20)]))
    assert torch.equal(together.flip(0), draw(positions=list(range(19, -1, -1))))


def test_draws_go_on_where_earlier_ones_ended():
    assert torch.equal(draw(num_draws=7), torch.cat([draw(num_draws=3), draw(num_draws=4, first_draw=3)], dim=1))


@pytest.mark.parametrize("positions", [[3, 5], (3, 5), np.array([3, 5], dtype=np.int32), torch.tensor([3, 5])])
def test_positions_come_in_any_form(positions):
    assert torch.equal(draw(positions=positions), draw(positions=[3, 5]))


def test_numbers_fill_the_unit_interval_evenly():
    for numbers in (draw(positions=range(40_000), num_draws=1), draw(positions=[0], num_draws=40_000)):
        assert numbers.min() >= 0
        assert numbers.max() < 1
        counts = torch.histc(numbers, bins=100, min=0, max=1)
        # chi square with 99 degrees of freedom: mean 99, standard deviation 14
        assert 50 < ((counts - 400).square() / 400).sum() < 150


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"seed": -1},
        {"seed": 2**32},
        {"stream": Stream.CROP},
        {"positions": range(1, 10_001)},
        {"positions": range(2**32, 2**32 + 10_000)},
        {"first_draw": 1},
        {"first_draw": 2**32},
    ],
)
def test_another_seed_stream_position_or_draw_gives_unrelated_numbers(other):
    first, second = draw(positions=range(10_000)), draw(**({"positions": range(10_000)} | other))
    assert not (first == second).any()
    assert abs(correlation(first, second)) < 4 / first.numel() ** 0.5


def test_a_swap_of_seed_and_position_gives_other_numbers():
    assert draw(seed=3, positions=[8])[0, 0] != draw(seed=8, positions=[3])[0, 0]


def test_a_generator_of_a_position_is_its_own():
    def numbers(seed=0, position=5, stream=Stream.CLIP):
        return torch.rand(3, generator=generator_at(seed, position, stream=stream)).tolist()

    assert numbers() == numbers()
    others = [numbers(seed=1), numbers(position=6), numbers(stream=Stream.CROP)]
    assert all(other != numbers() for other in others)


def test_draws_leave_the_global_generators_alone():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    draw()
    generator_at(0, 0, stream=Stream.CLIP)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.random.get_state()[1].tolist() == numpy_state


def test_no_positions_give_no_numbers():
    assert draw(positions=[]).shape == (0, 4)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"positions": [0.5]}, TypeError, "positions have type float64.*integers"),
        ({"positions": [True]}, TypeError, "positions have type bool"),
        ({"positions": [-1]}, ValueError, "positions hold -1"),
        ({"positions": [[1]]}, ValueError, "shape \\(1, 1\\).*vector"),
        ({"positions": 3}, ValueError, "shape \\(\\)"),
        ({"stream": -1}, ValueError, "stream is -1"),
        ({"num_draws": -1}, ValueError, "num_draws is -1"),
        ({"first_draw": -1}, ValueError, "first_draw is -1"),
    ],
)
def test_impossible_draws_are_named_in_the_error(changes, error, message):
    with pytest.raises(error, match=message):
        draw(**changes)
