"""Features of boxes: a frozen encoder's tokens, averaged over time and pooled in each box, and stored on disk.

The encoder is frozen and a key frame is seen in two ways only, as it is and mirrored. So its boxes are computed once,
and every epoch reads them from a file; that equals encoding anew each time, up to the rounding to half precision.

Shapes: B clips, T frames, N = d x h x w tokens (depth, height, width), D features of a token, L layers.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision.ops import roi_align

from ...core.files import write_whole
from ...core.fingerprints import hash_weights
from ...core.progress import Progress, no_progress
from ...model.modeling_vjepa import VJEPAModel
from .key_frames import KeyFrame, KeyFrameDataset, KeyFrameItem
from .protocol import LocalisationProtocol

logger = logging.getLogger(__name__)

FORMAT = "vjepa_hub.box_features/1"
FEATURES_FILE, STATE_FILE = "features.npy", "state.json"
# Key frames between two writes of the state: what a kill costs
SAVED_AT_ONCE = 256

"""Called with (what is being done, how many are done, how many there are)."""


class LayerFeatures(nn.Module):
    """A frozen encoder whose tokens of several layers become one map of the picture.

    Args:
        model: Its encoder is used. It is put into eval mode.
        layers: Blocks whose outputs are taken, numbered from 1. Each goes through the encoder's last norm, which the
            last block's output goes through anyway.
    """

    def __init__(self, model: VJEPAModel, layers: Sequence[int]):
        super().__init__()
        self.encoder = model.encoder.eval().requires_grad_(False)
        self.layers = tuple(layers)
        self.num_features = len(self.layers) * model.config.hidden_size

    @torch.no_grad()
    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Encode clips.

        Args:
            clips: `(batch_size, num_frames, 3, height, width)`, normalised.

        Returns:
            `(batch_size, num_layers * hidden_size, height / patch, width / patch)` float32, the mean over time.
        """
        patch_size = self.encoder.config.patch_size
        rows, columns = clips.shape[-2] // patch_size, clips.shape[-1] // patch_size
        outputs = self.encoder(clips, output_hidden_states=True, return_dict=True).hidden_states
        maps = []
        for layer in self.layers:
            tokens = self.encoder.layernorm(outputs[layer])  # (B, N, D); outputs[0] is the first block's input
            maps.append(tokens.float().unflatten(1, (-1, rows, columns)).mean(dim=1))  # (B, h, w, D)
        return torch.cat(maps, dim=-1).permute(0, 3, 1, 2)  # (B, L * D, h, w)


def pool_boxes(maps: torch.Tensor, boxes: Sequence[torch.Tensor], *, roi_size: int) -> torch.Tensor:
    """Pool maps in boxes: RoIAlign to a grid, then the maximum over it.

    Over time the mean was taken before. RoIAlign is linear, so that equals aligning each time step and averaging then.

    Args:
        maps: `(batch_size, num_features, rows, columns)`.
        boxes: Of each map, `(num_boxes, 4)`, `x1, y1, x2, y2` relative to the picture; what reaches over its edge is
            cut off.
        roi_size: Side of the grid.

    Returns:
        `(num_boxes of all maps, num_features)`.
    """
    rows, columns = maps.shape[-2:]
    scale = maps.new_tensor([columns, rows, columns, rows])
    in_tokens = [of_map.to(maps).clamp(0, 1) * scale for of_map in boxes]
    # aligned: the token (0, 0) covers [0, 1], so its centre is at 0.5 and not at 0
    pooled = roi_align(maps, in_tokens, output_size=roi_size, spatial_scale=1.0, aligned=True)
    return pooled.amax(dim=(-2, -1))


def mirror_boxes(boxes: torch.Tensor) -> torch.Tensor:
    """Boxes of the mirrored picture, `(..., 4)`: the right edge becomes the left one."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([1 - x2, y1, 1 - x1, y2], dim=-1)


@dataclass(frozen=True)
class BoxFeatures:
    """The stored features of key frames.

    Attributes:
        values: `(num_boxes, num_views, num_features)` float16, on disk; the second view is the mirrored one.
        first_boxes: The rows of key frame `i` are `first_boxes[i]` to `first_boxes[i + 1]`, `(num_key_frames + 1,)`.
        failures: Why a key frame could not be read, by its place; its rows hold nothing.
        fingerprint: Of the settings, the encoder and the failures.
    """

    values: np.ndarray
    first_boxes: np.ndarray
    failures: dict[int, str]
    fingerprint: str

    @property
    def num_features(self) -> int:
        """Features of a box."""
        return self.values.shape[-1]

    @property
    def num_views(self) -> int:
        """1, or 2 with the mirrored one."""
        return self.values.shape[1]

    def usable_key_frames(self) -> np.ndarray:
        """Places of the key frames that were read and have boxes."""
        has_boxes = np.diff(self.first_boxes) > 0
        has_boxes[list(self.failures)] = False
        return np.flatnonzero(has_boxes)

    def read(self, key_frames: np.ndarray, views: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
        """Read the boxes of some key frames.

        Args:
            key_frames: Their places, `(num,)`.
            views: Which view of each, `(num,)`, 0 or 1.

        Returns:
            Features, `(num_boxes, num_features)` float32, and the rows that they are, `(num_boxes,)`.
        """
        counts = self.first_boxes[key_frames + 1] - self.first_boxes[key_frames]
        ends = np.cumsum(counts)
        within = np.arange(counts.sum()) - np.repeat(ends - counts, counts)
        rows = np.repeat(self.first_boxes[key_frames], counts) + within
        values = self.values[rows, np.repeat(views, counts)]
        return torch.from_numpy(np.asarray(values, dtype=np.float32)), rows


def extract_box_features(
    features: LayerFeatures,
    dataset: KeyFrameDataset,
    folder: str | Path,
    *,
    has_mirrored: bool = False,
    batch_size: int = 8,
    num_workers: int = 0,
    device: str | torch.device = "cpu",
    compute_dtype: torch.dtype = torch.float32,
    stage: str = "features",
    progress: Progress = no_progress,
) -> BoxFeatures:
    """Compute the features of all boxes, or go on where an earlier call was stopped.

    Args:
        features: The encoder.
        dataset: The key frames; their boxes are pooled.
        folder: Where to store them. What is there must be of the same encoder, key frames and settings.
        has_mirrored: Whether to compute the mirrored view as well.
        batch_size: Clips that the encoder sees at a time.
        num_workers: Processes that read videos.
        device: Where the encoder runs.
        compute_dtype: float32, or a half precision for autocast.
        stage: What the progress calls it.
        progress: Called after each batch.

    Raises:
        ValueError: the folder holds features of something else, or none of the key frames can be read.
    """
    settings = _describe(features, dataset, has_mirrored=has_mirrored, compute_dtype=compute_dtype)
    store = _Store(Path(folder), settings, _shape(features, dataset, has_mirrored))
    features.to(device)
    autocast = _autocast(torch.device(device), compute_dtype)
    for items in _load(dataset, store.num_done, batch_size=batch_size, num_workers=num_workers):
        readable = [item for item in items if item.is_readable]
        if readable:
            with autocast:
                pooled = _encode(features, readable, dataset.protocol, has_mirrored=has_mirrored, device=device)
            store.write(readable, pooled, _first_boxes(dataset.key_frames))
        store.advance(items)
        progress(stage, store.num_done, len(dataset))
    return store.finish(dataset.key_frames)


def _describe(
    features: LayerFeatures, dataset: KeyFrameDataset, *, has_mirrored: bool, compute_dtype: torch.dtype
) -> dict[str, Any]:
    """Plain values that the features depend on, besides the videos."""
    boxes = hashlib.sha256()
    for key_frame in dataset.key_frames:
        boxes.update(f"{key_frame.id}\n".encode() + key_frame.boxes.tobytes())
    protocol = dataset.protocol
    return {
        "format": FORMAT,
        "encoder": hash_weights(features.encoder.state_dict()),
        "layers": list(features.layers),
        "key frames and boxes": boxes.hexdigest(),
        "frames_per_clip": protocol.frames_per_clip,
        "frame_step": protocol.frame_step,
        "clip_fps": protocol.clip_fps,
        "roi_size": protocol.roi_size,
        "crop_size": dataset.crop_size,
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        "start_second": dataset.start_second,
        "has_mirrored": has_mirrored,
        "compute_dtype": str(compute_dtype).removeprefix("torch."),
    }


def _shape(features: LayerFeatures, dataset: KeyFrameDataset, has_mirrored: bool) -> tuple[int, int, int]:
    return int(_first_boxes(dataset.key_frames)[-1]), 1 + has_mirrored, features.num_features


def _first_boxes(key_frames: Sequence[KeyFrame]) -> np.ndarray:
    return np.cumsum([0, *(len(frame.boxes) for frame in key_frames)])


def _autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)


def _keep_items(items: list[KeyFrameItem]) -> list[KeyFrameItem]:
    return items


def _load(
    dataset: KeyFrameDataset, num_done: int, *, batch_size: int, num_workers: int
) -> Iterator[list[KeyFrameItem]]:
    """The key frames that are left, in order; those without boxes are not decoded."""
    left = Subset(_OnlyWithBoxes(dataset), range(num_done, len(dataset)))
    yield from DataLoader(left, batch_size=batch_size, num_workers=num_workers, collate_fn=_keep_items)


class _OnlyWithBoxes(torch.utils.data.Dataset):
    def __init__(self, dataset: KeyFrameDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> KeyFrameItem:
        frame = self.dataset.key_frames[index]
        if len(frame.boxes):
            return self.dataset[index]
        return KeyFrameItem(index, None, torch.from_numpy(frame.boxes), torch.from_numpy(frame.labels), None)


def _encode(
    features: LayerFeatures,
    items: Sequence[KeyFrameItem],
    protocol: LocalisationProtocol,
    *,
    has_mirrored: bool,
    device: str | torch.device,
) -> torch.Tensor:
    """Features of the boxes of some key frames, `(num_boxes, num_views, num_features)`."""
    clips = torch.stack([item.pixel_values_videos for item in items if item.pixel_values_videos is not None])
    clips, boxes = clips.to(device), [item.boxes for item in items]
    views = [pool_boxes(features(clips).float(), boxes, roi_size=protocol.roi_size)]
    if has_mirrored:
        mirrored = [mirror_boxes(of_item) for of_item in boxes]
        views.append(pool_boxes(features(clips.flip(-1)).float(), mirrored, roi_size=protocol.roi_size))
    return torch.stack(views, dim=1)


class _Store:
    """Features on their way to disk. The state is written after the values that it speaks of."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], shape: tuple[int, int, int]):
        self._folder, self._settings, self._shape = folder, dict(settings), shape
        self.num_done, self._failures = 0, {}  # type: int, dict[int, str]
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / STATE_FILE).exists():
            self._read_state()
        self._num_saved = self.num_done
        mode = "r+" if self.num_done else "w+"
        # A file of no bytes cannot be mapped
        mapped = (max(shape[0], 1), *shape[1:])
        self._values = np.lib.format.open_memmap(folder / FEATURES_FILE, mode=mode, dtype=np.float16, shape=mapped)

    def write(self, items: Sequence[KeyFrameItem], pooled: torch.Tensor, first_boxes: np.ndarray) -> None:
        values = pooled.float().cpu().numpy().astype(np.float16)
        if not np.isfinite(values).all():
            raise ValueError(
                "the encoder's features are not finite: it has diverged, or overflows in half precision; "
                "use float32 or bfloat16"
            )
        start = 0
        for item in items:
            end = start + len(item.boxes)
            self._values[first_boxes[item.place] : first_boxes[item.place + 1]] = values[start:end]
            start = end

    def advance(self, items: Sequence[KeyFrameItem]) -> None:
        self._failures |= {item.place: item.cause for item in items if item.cause is not None}
        self.num_done += len(items)
        if self.num_done - self._num_saved >= SAVED_AT_ONCE:
            self.save()

    def save(self) -> None:
        self._values.flush()
        state = {"settings": self._settings, "num_done": self.num_done, "failures": self._failures}
        write_whole(self._folder / STATE_FILE, json.dumps(state))
        self._num_saved = self.num_done

    def finish(self, key_frames: Sequence[KeyFrame]) -> BoxFeatures:
        self.save()
        for cause, num in Counter(self._failures.values()).items():
            logger.warning("%d of %d key frames cannot be read: %s", num, len(key_frames), cause)
        features = BoxFeatures(
            self._values[: self._shape[0]], _first_boxes(key_frames), self._failures, self._fingerprint()
        )
        if self._failures and not len(features.usable_key_frames()):
            raise ValueError(
                f"none of the {len(key_frames)} key frames can be read, the first because: "
                f"{next(iter(self._failures.values()))}. Mend that, delete {self._folder}, and call again"
            )
        return features

    def _fingerprint(self) -> str:
        content = json.dumps([self._settings, sorted(self._failures)], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def _read_state(self) -> None:
        state = json.loads((self._folder / STATE_FILE).read_text(encoding="utf-8"))
        check_same_settings(self._folder, state["settings"], self._settings)
        self.num_done = state["num_done"]
        self._failures = {int(index): cause for index, cause in state["failures"].items()}


def check_same_settings(place: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse to go on with what was made with other settings.

    Args:
        place: The file or folder, for the error.
        found: The settings there.
        wanted: The settings now.

    Raises:
        ValueError: they differ; the message says where.
    """
    names = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
    if names:
        listed = "; ".join(f"{name} is {found.get(name)} there and {wanted.get(name)} now" for name in names)
        raise ValueError(f"{place} was made with other settings ({listed}): name another folder, or delete it")
