"""A new training against the record of earlier ones, one check for each thing that is compared."""

import math
from collections.abc import Iterator, Mapping

import numpy as np

from ..publishing.records import ReproductionRecord, SeedRecord, TrainingMachine
from ..publishing.verification import FAILED, PASSED, REMARK, Check

_NUM_SECTIONS = 10


def compare(
    record: ReproductionRecord,
    *,
    seed: int,
    step: int,
    losses: Mapping[int, float],
    digest: str,
    accuracies: Mapping[str, float],
    machine: TrainingMachine,
) -> list[Check]:
    """All checks of a training.

    Args:
        record: Of the earlier trainings.
        seed: Of the new one.
        step: That it was measured after; one of the record's.
        losses: Training loss by step.
        digest: Of its weights.
        accuracies: Of its frozen encoder, by task, from 0 to 1.
        machine: Where it was trained.
    """
    return [
        compare_weights(record, seed=seed, step=step, digest=digest, machine=machine),
        compare_losses(record, step=step, losses=losses),
        *compare_accuracies(record, step=step, accuracies=accuracies),
    ]


def compare_published(record: ReproductionRecord, digest: str) -> Check:
    """Return whether the weights that lie beside a record are those of its first training.

    Args:
        record: Of the trainings.
        digest: Of the weights.
    """
    recorded = record.seeds[0].digests[record.num_steps]
    is_equal = digest == recorded
    detail = f"sha256 {digest[:12]}, {recorded[:12]} in the record"
    return Check(name="weights of the record", state=PASSED if is_equal else FAILED, detail=detail)


def compare_weights(
    record: ReproductionRecord, *, seed: int, step: int, digest: str, machine: TrainingMachine
) -> Check:
    """Compare weights to the bit: equal, as they have to be on the same machine with the same seed."""
    name = f"weights after step {step:,}"
    earlier = next((one for one in record.seeds if one.seed == seed), None)
    if earlier is None:
        return Check(name=name, state=REMARK, detail=f"the record has no training with seed {seed} to compare with")
    if earlier.digests[step] == digest:
        return Check(name=name, state=PASSED, detail=f"equal to the record's to the bit (sha256 {digest[:12]})")
    if machine != record.machine:
        detail = f"other bits than on the record's machine, as is usual: here {machine}, there {record.machine}"
        return Check(name=name, state=REMARK, detail=detail)
    detail = f"sha256 {digest[:12]} here, {earlier.digests[step][:12]} in the record, though the machine is the same"
    return Check(name=name, state=FAILED, detail=detail)


def compare_losses(record: ReproductionRecord, *, step: int, losses: Mapping[int, float]) -> Check:
    """Return whether the loss curve runs where those of the record run.

    The steps are divided into ten sections. In each the mean loss has to lie within the spread of the record's
    trainings, from their lowest to their highest mean, widened on both sides by as much again.

    Args:
        record: Of the earlier trainings.
        step: The last that is compared.
        losses: Of the new one, by step.
    """
    name = f"loss to step {step:,}"
    steps = sorted(number for number in record.seeds[0].losses if number <= step)
    missing = [number for number in steps if number not in losses]
    if not steps or missing:
        return Check(name=name, state=FAILED, detail=f"the log has no loss of {len(missing)} of {len(steps)} steps")
    distances = list(_distances(record, steps, losses))
    worst, section = max((distance, section) for distance, section, _ in distances)
    num_outside = sum(distance > 1 for distance, _, _ in distances)
    described = next(text for _, number, text in distances if number == section)
    detail = f"{num_outside} of {len(distances)} sections outside; the farthest out: {described} ({worst:.1f} spreads)"
    return Check(name=name, state=FAILED if num_outside else PASSED, detail=detail)


def _distances(
    record: ReproductionRecord, steps: list[int], losses: Mapping[int, float]
) -> Iterator[tuple[float, int, str]]:
    """How far out each section lies in spreads (0: between the record's), its number, and it in words."""
    for section, part in enumerate(np.array_split(steps, min(_NUM_SECTIONS, len(steps)))):
        numbers = part.tolist()
        means = [_mean_loss(one, numbers) for one in record.seeds]
        lowest, highest = min(means), max(means)
        found = float(np.mean([losses[number] for number in numbers]))
        outside = max(lowest - found, found - highest, 0.0)
        spread = highest - lowest
        distance = 0.0 if outside == 0 else (outside / spread if spread > 0 else math.inf)
        words = f"steps {numbers[0]:,} to {numbers[-1]:,} {found:.4f}, the record's {lowest:.4f} to {highest:.4f}"
        yield distance, section, words


def _mean_loss(record: SeedRecord, steps: list[int]) -> float:
    return float(np.mean([record.losses[number] for number in steps]))


def compare_accuracies(record: ReproductionRecord, *, step: int, accuracies: Mapping[str, float]) -> Iterator[Check]:
    """Return whether the frozen encoder is as good as the record's: within two standard deviations of their mean.

    The deviation is that of the record's trainings, but no smaller than what the number of test videos allows: that
    of a share among so many.

    Args:
        record: Of the earlier trainings.
        step: That it was measured after.
        accuracies: By task, from 0 to 1.
    """
    for task, found in accuracies.items():
        earlier = record.accuracies(step, task)
        mean, num_videos = float(np.mean(earlier)), int(record.tasks["num_test"])
        deviation = max(float(np.std(earlier, ddof=1)), math.sqrt(mean * (1 - mean) / num_videos))
        is_near = abs(found - mean) <= 2 * deviation
        yield Check(
            name=f"{task} after step {step:,}",
            state=PASSED if is_near else FAILED,
            detail=f"{100 * found:.1f} %, the record's {100 * mean:.1f} ± {100 * deviation:.1f} %",
        )
