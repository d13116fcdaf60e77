"""The smallest recipe that trains on made video, for tests of what stands on top of a training."""

SMALL_RECIPE = {
    "model": {
        "hidden_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "patch_size": 8,
        "crop_size": 32,
        "frames_per_clip": 4,
        "pred_hidden_size": 12,
        "pred_num_hidden_layers": 1,
        "pred_num_attention_heads": 2,
    },
    "masks": [{"kind": "multi-block", "num_blocks": 1, "spatial_scale": [0.5, 0.5]}],
    "clips": {"frame_step": 2},
    "synthetic": {"num_videos": 8, "size": 32, "num_frames": 8},
    "training": {
        "use_cpu": True,
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "warmup_steps": 1,
        "learning_rate": 1e-3,
        "momentum": 0.5,
        "logging_steps": 1,
        "save_steps": 1,
        "report": False,
    },
}
