"""Predict the features of the second half of a clip from its first half, and compare with what came.

python examples/predict_the_future.py [VIDEO] [--model vjepa-vit-tiny]
"""

import argparse

import torch
from torch.nn import functional as F

from vjepa_hub.data.clip_sampling import sample_clip_indices
from vjepa_hub.data.masking import TokenGrid, mask_future
from vjepa_hub.data.samples import sample_clip_path
from vjepa_hub.data.video import open_video
from vjepa_hub.hub.loading import open_model


def main() -> None:
    """Print the mean absolute error of the prediction, as in the training objective."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", nargs="?", default=sample_clip_path())
    parser.add_argument("--model", default="vjepa-vit-tiny")
    arguments = parser.parse_args()

    opened = open_model(arguments.model)
    clip = {"frames_per_clip": opened.model.config.frames_per_clip, "frame_step": opened.processor.frame_step or 4}
    with open_video(arguments.video) as video:
        indices = sample_clip_indices(video.num_frames, fps=video.average_fps, **clip)[0]
        frames = video.read_frames(indices)
    pixels = opened.processor(frames, do_sample_frames=False, return_tensors="pt")["pixel_values_videos"]
    _, num_frames, _, height, width = pixels.shape
    grid = TokenGrid.from_config(opened.model.config, num_frames=num_frames, height=height, width=width)
    masks = mask_future(grid, num_frames // 2)
    with torch.inference_mode():
        predicted = opened.model.predict(pixels, masks.context_mask, masks.target_mask, mask_index=masks.mask_index)
        features = opened.model.get_vision_features(pixels)
    targets = F.layer_norm(features, features.shape[-1:])[:, masks.target_mask[0]]
    print(f"{masks.context_mask.shape[1]} visible tokens, {masks.target_mask.shape[1]} predicted")
    print(f"mean absolute error {F.l1_loss(predicted, targets):.3f}; weights: {opened.weights}")


if __name__ == "__main__":
    main()
