"""Features of one clip, and their shape as a volume of tokens.

python examples/extract_features.py [VIDEO] [--model vjepa-vit-tiny]
"""

import argparse

import torch

from vjepa_hub.data.clip_sampling import sample_clip_indices
from vjepa_hub.data.samples import sample_clip_path
from vjepa_hub.data.video import open_video
from vjepa_hub.hub.loading import open_model


def main() -> None:
    """Decode a clip in the middle of the video, encode it, print the shapes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", nargs="?", default=sample_clip_path())
    parser.add_argument("--model", default="vjepa-vit-tiny")
    arguments = parser.parse_args()

    opened = open_model(arguments.model)
    clip = {"frames_per_clip": opened.model.config.frames_per_clip, "frame_step": opened.processor.frame_step or 4}
    with open_video(arguments.video) as video:
        indices = sample_clip_indices(video.num_frames, fps=video.average_fps, **clip)[0]
        frames = video.read_frames(indices)
    pixels = opened.processor(frames, do_sample_frames=False, return_tensors="pt")
    with torch.inference_mode():
        features = opened.model(**pixels).last_hidden_state
    volume = features.unflatten(1, opened.model.config.token_grid)
    print("tokens", tuple(features.shape), "as a volume", tuple(volume.shape))
    print("weights:", opened.weights)


if __name__ == "__main__":
    main()
