"""Nearest neighbours over clips: which videos of a gallery a frozen encoder holds to be the most similar, untrained.

Nothing is learned from labels: a clip becomes one vector, its descriptor, and labels only tell how often the nearest
clips are of the query's class. What a descriptor keeps decides what it can find: the mean over tokens tells what is in
the clip, the deviation over tokens how unevenly, and the means of each time and their changes when.

All descriptors are standardised before they are compared, each number of them by its mean and deviation in the
gallery: without the mean the part that all clips share makes every cosine nearly 1, and without the deviation a few
numbers that vary much outweigh the others.

Shapes: B clips, N tokens of a clip, T times (token layers), D features of a token, F of a descriptor, Q queries.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch

from ..core.progress import Progress, no_progress
from ..data.clip_order import ClipRequest
from ..heads.metrics import INTERVAL_PERCENTILES
from .clips import EvaluationClips
from .encoders.opening import FrozenEncoder, ImageEncoder, VJEPAClipEncoder
from .labelled import LabelledSet
from .probe_run import clip_format_of
from .protocols import Protocol
from .tokens import EncodedClips, EncodingSettings, TokenSource

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


def count_times(encoder: FrozenEncoder) -> int:
    """Token layers along time that an encoder makes of a clip; 1 where that is not known.

    Args:
        encoder: Each frame of an image model is a layer, each tubelet of V-JEPA.
    """
    if isinstance(encoder, ImageEncoder):
        return encoder.frames_per_clip
    if isinstance(encoder, VJEPAClipEncoder):
        return encoder.frames_per_clip // int(encoder.model.config.tubelet_size)
    return 1


@dataclass(frozen=True, eq=False, kw_only=True)
class ClipDescriptors:
    """The videos of a set that could be read, as vectors.

    Attributes:
        features: float32 `(num_videos, num_features)`, on the CPU, not centred.
        indices: Places of the videos in their set, int64 `(num_videos,)`.
        num_unreadable: Videos that could not be decoded; they are in neither.
    """

    features: torch.Tensor
    indices: np.ndarray
    num_unreadable: int

    def __len__(self) -> int:
        return len(self.features)


def describe_set(
    encoder: FrozenEncoder,
    labelled: LabelledSet,
    protocol: Protocol,
    descriptor: str = "mean-std",
    *,
    encoding: EncodingSettings | None = None,
    progress: Progress = no_progress,
) -> ClipDescriptors:
    """Descriptors of a labelled set, as a validation of the protocol sees its videos.

    Args:
        encoder: The frozen encoder.
        labelled: The videos; their labels are not looked at.
        protocol: Which clips of each. The tokens of all its segments and views count together.
        descriptor: One of `DESCRIPTORS`.
        encoding: How clips are encoded.
        progress: Called with the videos that are described, and all videos, after each batch.

    Raises:
        KeyError: There is no such descriptor.
        ValueError: The set holds other media than the protocol, or no video can be read; or "temporal" is asked of
            several segments or views, or of an encoder whose tokens have no known order in time.
    """
    num_times = _require_times(encoder, protocol) if descriptor == "temporal" else 1
    clips = EvaluationClips(labelled, protocol, clip_format_of(encoder))
    source = EncodedClips(encoder, clips, encoding or EncodingSettings())
    return describe_token_source(source, descriptor, num_times=num_times, progress=progress)


def _require_times(encoder: FrozenEncoder, protocol: Protocol) -> int:
    num_times = count_times(encoder)
    if protocol.media == "image" or (protocol.num_segments, protocol.num_views) != (1, 1) or num_times < 2:
        raise ValueError(
            f"the descriptor 'temporal' follows one clip through time, but {encoder.name} has {num_times} known times "
            f"and the protocol {protocol.num_segments} segments x {protocol.num_views} views of a {protocol.media}; "
            "take 'mean' or 'mean-std', or one segment and view of videos"
        )
    return num_times


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
    num_videos = len(source.labelled)
    places = np.arange(num_videos)
    requests = [
        [ClipRequest(int(index), int(index)) for index in places[start : start + batch_size]]
        for start in range(0, num_videos, batch_size)
    ]
    features, is_readable = [], []
    for batch in source.batches(requests):
        assert batch is not None
        readable = batch.is_readable
        is_readable.append(readable.cpu().numpy())
        if readable.any():
            tokens = batch.tokens[readable].flatten(1, 3)  # (B, V S N, D)
            features.append(compute_descriptors(tokens, descriptor, num_times=num_times).cpu())
        progress("describing", sum(map(len, is_readable)), num_videos)
    if not features:
        raise ValueError(f"none of {num_videos} videos of {source.labelled.description or 'the set'} could be read")
    found = np.concatenate(is_readable)
    return ClipDescriptors(features=torch.cat(features), indices=places[found], num_unreadable=int((~found).sum()))


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
