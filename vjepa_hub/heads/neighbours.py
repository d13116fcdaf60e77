"""Nearest neighbours over clips: which videos of a gallery a frozen encoder holds to be the most similar, untrained.

Nothing is learned from labels: a clip becomes one vector, its descriptor, and labels only tell how often the nearest
clips are of the query's class. What a descriptor keeps decides what it can find: the mean over tokens tells what is in
the clip, the deviation over tokens how unevenly, and the means of each time and their changes when.

All descriptors are standardised before they are compared, each number of them by its mean and deviation in the
gallery: without the mean the part that all clips share makes every cosine nearly 1, and without the deviation a few
numbers that vary much outweigh the others.

Shapes: B clips, N tokens of a clip, T times (token layers), D features of a token, F of a descriptor, Q queries,
C classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch

from ..core.progress import Progress, no_progress
from .metrics import INTERVAL_PERCENTILES
from .prediction import Predictions
from .tokens import TokenSource, in_order

# Queries whose similarities to the gallery are held at once
QUERIES_AT_ONCE = 1024
# Of what is the same in all clips of the gallery nothing but rounding varies, by less than this share
_ROUNDING = 1e-6


# --- descriptors ---


def _mean(tokens: torch.Tensor, num_times: int) -> torch.Tensor:
    return tokens.mean(dim=1)


def _mean_std(tokens: torch.Tensor, num_times: int) -> torch.Tensor:
    return torch.cat([tokens.mean(dim=1), tokens.std(dim=1, correction=0)], dim=1)


def _temporal(tokens: torch.Tensor, num_times: int) -> torch.Tensor:
    means = tokens.unflatten(1, (num_times, -1)).mean(dim=2)  # (B, T, D)
    return torch.cat([means, means.diff(dim=1)], dim=1).flatten(1)


DESCRIPTORS: Mapping[str, Callable[[torch.Tensor, int], torch.Tensor]] = MappingProxyType(
    {"mean": _mean, "mean-std": _mean_std, "temporal": _temporal}
)
"""By name: mean over tokens; that and the standard deviation over tokens; means of each time and their changes."""


def compute_descriptors(tokens: torch.Tensor, descriptor: str = "mean-std", *, num_times: int = 1) -> torch.Tensor:
    """One vector for each clip, not yet centred.

    Args:
        tokens: `(batch_size, num_tokens, hidden_size)`, in the order of time.
        descriptor: One of `DESCRIPTORS`.
        num_times: Token layers along time; only "temporal" looks at it.

    Returns:
        float32 `(batch_size, num_features)`: `num_features` is `hidden_size` for "mean", twice that for "mean-std",
        and `(2 * num_times - 1) * hidden_size` for "temporal".

    Raises:
        KeyError: There is no such descriptor.
        ValueError: The tokens have another shape, or do not divide into so many times.
    """
    if descriptor not in DESCRIPTORS:
        raise KeyError(f"unknown descriptor '{descriptor}'; available: {', '.join(DESCRIPTORS)}")
    if tokens.ndim != 3 or 0 in tokens.shape:
        raise ValueError(
            f"tokens have the shape {tuple(tokens.shape)}, but must be (batch_size, num_tokens, hidden_size), none of "
            "them 0; put those of several clips of a video one after the other"
        )
    if num_times < 1 or tokens.shape[1] % num_times:
        raise ValueError(
            f"num_times is {num_times}, but {tokens.shape[1]} tokens have to divide into it evenly; give the token "
            "layers of a clip, as `count_times` counts them"
        )
    return DESCRIPTORS[descriptor](tokens.float(), num_times)


@dataclass(frozen=True, eq=False, kw_only=True)
class ClipDescriptors:
    """The videos of a set that could be read, as vectors.

    Attributes:
        features: float32 `(num_videos, num_features)`, on the CPU, not centred.
        labels: Their classes, int64 `(num_videos,)`.
        indices: Places of the videos in their set, int64 `(num_videos,)`.
        num_unreadable: Videos that could not be decoded; they are in neither.
    """

    features: torch.Tensor
    labels: np.ndarray
    indices: np.ndarray
    num_unreadable: int

    def __len__(self) -> int:
        return len(self.features)


def describe_token_source(
    source: TokenSource,
    descriptor: str = "mean-std",
    *,
    num_times: int = 1,
    batch_size: int = 8,
    progress: Progress = no_progress,
) -> ClipDescriptors:
    """Descriptors of all videos whose tokens a source has, one after the other.

    Args:
        source: Tokens, computed or from a cache.
        descriptor: One of `DESCRIPTORS`.
        num_times: See `compute_descriptors`.
        batch_size: Videos at once.
        progress: Called with the videos that are described, and all videos, after each batch.

    Raises:
        KeyError: There is no such descriptor.
        ValueError: No video can be read, or the tokens do not divide into so many times.
    """
    num_videos = len(source)
    features, labels, is_readable = [], [], []
    for batch in source.batches(in_order(range(num_videos), batch_size)):
        assert batch is not None
        readable = batch.is_readable
        is_readable.append(readable.cpu().numpy())
        labels.append(batch.labels[readable].cpu().numpy())
        if readable.any():
            tokens = batch.tokens[readable].flatten(1, 3)  # (B, V S N, D)
            features.append(compute_descriptors(tokens, descriptor, num_times=num_times).cpu())
        progress("describing", sum(map(len, is_readable)), num_videos)
    if not features:
        raise ValueError(f"none of {num_videos} videos could be read; the log has the causes")
    found = np.concatenate(is_readable)
    return ClipDescriptors(
        features=torch.cat(features),
        labels=np.concatenate(labels),
        indices=np.flatnonzero(found),
        num_unreadable=int((~found).sum()),
    )


# --- search ---


@dataclass(frozen=True, eq=False, kw_only=True)
class Neighbours:
    """The nearest clips of each query, the nearest first.

    Attributes:
        places: In the gallery, int64 `(num_queries, k)`.
        similarities: Cosines, float32 `(num_queries, k)`.
    """

    places: np.ndarray
    similarities: np.ndarray


def search(queries: torch.Tensor, gallery: torch.Tensor, k: int) -> Neighbours:
    """The `k` clips of the gallery that are nearest to each query, by the cosine of standardised descriptors.

    Mean and deviation are those of the gallery; a number that is the same in all of it tells nothing, and is left
    out. Of equally near ones the first in the gallery comes first. A descriptor that is the gallery's mean has no
    direction: its cosines are 0.

    Args:
        queries: `(num_queries, num_features)`.
        gallery: `(num_gallery, num_features)`.
        k: How many.

    Raises:
        ValueError: Shapes that do not fit, values that are not finite, or fewer clips in the gallery than `k`.
    """
    _check_descriptors(queries, gallery, k)
    deviation, mean = torch.std_mean(gallery.double(), dim=0, correction=0)
    weight = torch.where(deviation > _ROUNDING * mean.abs(), 1 / deviation, 0.0)
    queries = (queries.double() - mean) * weight
    towards = _unit((gallery.double() - mean) * weight)
    found = [_nearest(_unit(part) @ towards.T, k) for part in queries.split(QUERIES_AT_ONCE)]
    places, similarities = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Neighbours(places=places.cpu().numpy(), similarities=similarities.float().cpu().numpy())


def _check_descriptors(queries: torch.Tensor, gallery: torch.Tensor, k: int) -> None:
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1] or not queries.numel():
        raise ValueError(
            f"queries have the shape {tuple(queries.shape)} and the gallery {tuple(gallery.shape)}, but both must be "
            "(num_clips, num_features) with the same features; describe both with one encoder and descriptor"
        )
    for name, values in (("queries", queries), ("gallery", gallery)):
        if not values.isfinite().all():
            raise ValueError(f"{name} hold values that are not finite; check the encoder's weights and number format")
    if not 1 <= k <= len(gallery):
        raise ValueError(f"k is {k}, but must be from 1 to the {len(gallery)} clips of the gallery")


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(vectors, dim=1)


def _nearest(similarities: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    # Rounded in the twelfth place: equal clips are equally near, in whatever order their products were summed
    order = similarities.round(decimals=12).argsort(dim=1, descending=True, stable=True)[:, :k]
    return order, similarities.gather(1, order)


def vote(neighbours: Neighbours, labels: np.ndarray, *, num_classes: int, temperature: float) -> np.ndarray:
    """Class probabilities of each query by the weighted votes of its neighbours (DINO, Caron et al. 2021).

    Args:
        neighbours: From `search`.
        labels: Classes of the gallery, integers `(num_gallery,)`.
        num_classes: Number of classes.
        temperature: A vote weighs `exp(cosine / temperature)`.

    Returns:
        Shares of the votes, float64 `(num_queries, num_classes)`.
    """
    cosines = neighbours.similarities.astype(np.float64)
    weights = np.exp((cosines - cosines.max(axis=1, keepdims=True)) / temperature)  # (Q, k)
    votes = weights[..., None] * np.eye(num_classes)[labels[neighbours.places]]  # (Q, k, C)
    return votes.sum(axis=1) / weights.sum(axis=1, keepdims=True)


def predict_by_neighbours(
    train: TokenSource,
    validation: TokenSource,
    *,
    num_neighbours: int = 10,
    temperature: float = 0.07,
    descriptor: str = "mean",
) -> Predictions:
    """Class probabilities of a validation set by the votes of the nearest training clips.

    Args:
        train: Tokens of the training set.
        validation: Tokens of the set to classify.
        num_neighbours: Training clips that vote.
        temperature: See `vote`; the default is DINO's.
        descriptor: One of `DESCRIPTORS`.

    Raises:
        ValueError: A set without a readable clip, or fewer readable training clips than neighbours.
    """
    gallery, queries = (describe_token_source(source, descriptor) for source in (train, validation))
    neighbours = search(queries.features, gallery.features, num_neighbours)
    probabilities, is_readable = np.zeros((len(validation), train.num_classes)), np.zeros(len(validation), dtype=bool)
    is_readable[queries.indices] = True
    probabilities[is_readable] = vote(
        neighbours, gallery.labels, num_classes=train.num_classes, temperature=temperature
    )
    return Predictions(probabilities=[probabilities], is_readable=is_readable)


# --- how good it is ---


@dataclass(frozen=True, eq=False, kw_only=True)
class Precision:
    """How often the nearest clips are of the query's class.

    Attributes:
        k: How many of the nearest count.
        value: Mean over queries of the share of the `k` nearest that have the query's class.
        interval: Ends of the 95 % interval of `value`, from a bootstrap over the queries.
        chance: What clips drawn at random from this gallery would give: mean over queries of their class's share.
        per_query: That share for each query, float64 `(num_queries,)`.
    """

    k: int
    value: float
    interval: tuple[float, float]
    chance: float
    per_query: np.ndarray


def precision_at_k(
    neighbours: Neighbours,
    query_labels: np.ndarray,
    gallery_labels: np.ndarray,
    *,
    k: int | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Precision:
    """Share of the nearest clips that are of the query's class.

    Args:
        neighbours: From `search`.
        query_labels: Classes of the queries, integers `(num_queries,)`.
        gallery_labels: Classes of the gallery, numbered alike, integers `(num_gallery,)`.
        k: How many of the nearest count; None: all that were searched.
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        ValueError: Labels that do not fit the search, or more neighbours than were searched.
    """
    query_labels, gallery_labels = np.asarray(query_labels), np.asarray(gallery_labels)
    num_queries, num_searched = neighbours.places.shape
    k = num_searched if k is None else k
    if query_labels.shape != (num_queries,) or neighbours.places.max() >= len(gallery_labels):
        raise ValueError(
            f"labels are those of {len(query_labels)} queries and {len(gallery_labels)} clips of the gallery, but "
            f"{num_queries} queries were searched in a gallery of at least {neighbours.places.max() + 1}; give one "
            "label for each descriptor: `ClipDescriptors.indices` says which videos have one"
        )
    if not 1 <= k <= num_searched:
        raise ValueError(f"k is {k}, but {num_searched} neighbours were searched; search more")
    is_same = gallery_labels[neighbours.places[:, :k]] == query_labels[:, None]  # (Q, k)
    per_query = is_same.mean(axis=1)
    return Precision(
        k=k,
        value=float(per_query.mean()),
        interval=_bootstrap_mean(per_query, num_resamples=num_resamples, seed=seed),
        chance=float((query_labels[:, None] == gallery_labels).mean()),
        per_query=per_query,
    )


def _bootstrap_mean(values: np.ndarray, *, num_resamples: int, seed: int) -> tuple[float, float]:
    """The 95 % percentile interval of a mean, from resamples of its values with replacement.

    Values are shares with few levels, so how often each level is drawn is drawn: no memory of resamples by queries.
    """
    levels, counts = np.unique(values, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=num_resamples)
    low, high = np.percentile(draws @ levels / len(values), INTERVAL_PERCENTILES)
    return float(low), float(high)
