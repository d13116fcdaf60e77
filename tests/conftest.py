from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# One thread a worker, told before torch is imported. The fixtures import what they use: the process that hands out the
# tests to the workers needs neither torch nor transformers, which take it seconds.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if TYPE_CHECKING:
    import torch

    from vjepa_hub import VJEPAConfig, VJEPAForPreTraining

    from .hub_server import HubServer

NUM_SLOW = 20  # times as many changed files with -m slow
REFERENCE = Path(__file__).parent / "reference_cases"
FEW_VIDEOS = {"train": 40, "test": 24}


@pytest.fixture(scope="session")
def reference_config() -> VJEPAConfig:
    """The tiny model of the reference cases (their README)."""
    from vjepa_hub import VJEPAConfig

    return VJEPAConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        crop_size=64,
        frames_per_clip=8,
        pred_hidden_size=40,
        pred_num_hidden_layers=2,
        pred_num_attention_heads=4,
    )


@pytest.fixture
def reference_model(reference_config) -> VJEPAForPreTraining:
    """The released tiny checkpoint, freshly converted."""
    from vjepa_hub.hub.conversion import convert_original_checkpoint

    return convert_original_checkpoint(REFERENCE / "official_tiny.pth.tar", reference_config).eval()


@pytest.fixture(scope="session")
def forward_case() -> dict[str, torch.Tensor]:
    """forward.safetensors with its frames as normalised pixels (batch_size, num_frames, channels, height, width)."""
    import torch
    from safetensors.torch import load_file

    case = load_file(REFERENCE / "forward.safetensors")
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    frames = case["frames_uint8"].permute(0, 2, 1, 3, 4)
    return case | {"pixel_values_videos": (frames.float() / 255 - mean) / std}


@pytest.fixture
def small_config() -> VJEPAConfig:
    """Small enough for any test: 2 x 4 x 4 tokens. A new one each time: transformers writes into configurations."""
    from vjepa_hub import VJEPAConfig

    return VJEPAConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        patch_size=8,
        crop_size=32,
        frames_per_clip=4,
        pred_hidden_size=24,
        pred_num_hidden_layers=2,
        pred_num_attention_heads=4,
        num_labels=3,
    )


# Fields in which V-JEPA 2 and 2.1 differ from V-JEPA, for models of two blocks
GENERATIONS = {
    "1": {},
    "2": {
        "position_embedding": "rotary_tiled",
        "mask_token_selection": "clip_length",
        "rescale_initial_weights": True,
    },
    "2.1": {
        "position_embedding": "rotary",
        "rotary_reference_grid": 16,
        "pred_rotary_reference_grid": 16,
        "image_tokenizer": True,
        "modality_embeddings": True,
        "feature_levels": [0, 1],
        "pred_num_feature_levels": 2,
        "pred_predicts_context": True,
        "mask_token_selection": "clip_length",
        "rescale_initial_weights": True,
    },
}


@pytest.fixture(params=GENERATIONS)
def family_config(request, small_config) -> VJEPAConfig:
    """The small configuration in each generation of the family."""
    return type(small_config)(**{**small_config.to_diff_dict(), **GENERATIONS[request.param]})


@pytest.fixture
def small_clip() -> torch.Tensor:
    import torch

    return torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def small_masks() -> tuple[torch.Tensor, torch.Tensor]:
    """Context (2, 10) and target (2, 22) of the 32 tokens of a small clip, random and disjoint."""
    import torch

    generator = torch.Generator().manual_seed(1)
    order = torch.stack([torch.randperm(32, generator=generator) for _ in range(2)])
    return order[:, :10].sort().values, order[:, 10:].sort().values


@pytest.fixture(scope="session")
def labelled_folder(tmp_path_factory) -> Path:
    """A folder with a tiny model (`model`) and labelled videos (`train`, `test`; appearance.csv and motion.csv)."""
    import torch

    from vjepa_hub import VJEPAConfig, VJEPAModel, VJEPAVideoProcessor
    from vjepa_hub.data.synthetic.shapes import SyntheticVideoSettings, make_synthetic_videos

    folder = tmp_path_factory.mktemp("labelled")
    for split, num_videos in FEW_VIDEOS.items():
        settings = SyntheticVideoSettings(num_videos=num_videos, size=32, num_frames=12, split=split)
        make_synthetic_videos(folder / split, settings)
    torch.manual_seed(0)
    config = VJEPAConfig(
        patch_size=8,
        crop_size=32,
        frames_per_clip=4,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        pred_hidden_size=24,
        pred_num_hidden_layers=1,
        pred_num_attention_heads=3,
        weights_origin="untrained, seed 0",
    )
    VJEPAModel(config).save_pretrained(folder / "model")
    VJEPAVideoProcessor(crop_size=32).save_pretrained(folder / "model")
    return folder


@pytest.fixture
def hub_server() -> Iterator[HubServer]:
    """An empty Hub of its own for one test."""
    from .hub_server import HubServer

    with HubServer() as server:
        yield server


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A worker a processor, up to eight; tests that are named one by one, or in one file, run in this process."""
    if all("::" in name for name in config.args) or (len(config.args) == 1 and config.args[0].endswith(".py")):
        return 0
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(processors, 8)


def pytest_terminal_summary(terminalreporter) -> None:
    """Print the share of each folder of tests in the time of the run."""
    seconds: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[report.nodeid.split("::")[0].split("/")[1]] += report.duration
    total = sum(seconds.values()) or 1.0
    shares = ", ".join(f"{room} {100 * part / total:.0f} %" for room, part in seconds.most_common())
    terminalreporter.write_line(f"{total:.0f} s of tests: {shares}")


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["few", "many"])
def seeds(request) -> Callable[[int], range]:
    """The seeds of a test of changed files that has `num` cases in the default run."""
    return lambda num: range(num, num * NUM_SLOW) if request.param else range(num)
