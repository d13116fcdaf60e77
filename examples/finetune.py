"""Tune the last blocks of a model to classify videos, with transformers' own Trainer.

python examples/finetune.py MODEL --train train.csv --validation validation.csv [--output-dir runs/tuned]

The lists have a line 'path label' for each video; a folder with a folder of videos for each class does too. Without
them, a few videos are made, whose classes are motions. `vjepa_hub.evaluation.finetuning.run.finetune` and `vjepa-hub
finetune` do the same in one call, and can be resumed.
"""

import argparse
from pathlib import Path

import torch
from transformers import Trainer, TrainingArguments

from vjepa_hub.data.synthetic.shapes import SyntheticVideoSettings, make_synthetic_videos
from vjepa_hub.evaluation.finetuning.data import FineTuningCollator, classification_loss, classification_metrics
from vjepa_hub.evaluation.finetuning.modes import layerwise_parameter_groups, set_trainable
from vjepa_hub.evaluation.finetuning.run import FineTuneSettings, build_classifier, build_clips, open_sets


def main() -> None:
    """Train, and print the accuracy on the validation videos."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="vjepa-vit-tiny")
    parser.add_argument("--train")
    parser.add_argument("--validation")
    parser.add_argument("--output-dir", default="runs/tuned")
    parser.add_argument("--num-blocks", type=int, default=2)
    parser.add_argument("--num-epochs", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    options = parser.parse_args()

    settings = FineTuneSettings(mode="last-k", num_blocks=options.num_blocks, allow_missing_classes=True)
    train, validation = open_sets(
        options.train or make_few_videos(options.output_dir, "train"),
        options.validation or make_few_videos(options.output_dir, "test"),
        allow_missing_classes=settings.allow_missing_classes,
    )
    model, processor = build_classifier(options.model, train, settings)
    set_trainable(model, settings.mode, num_blocks=settings.num_blocks)
    print(f"{model.num_parameters(only_trainable=True):,} of {model.num_parameters():,} parameters are trained")
    groups = layerwise_parameter_groups(model, learning_rate=options.learning_rate, weight_decay=0.05, decay=0.75)
    trainer = Trainer(
        model,
        TrainingArguments(
            options.output_dir,
            remove_unused_columns=False,  # the clips would be taken for unused
            num_train_epochs=options.num_epochs,
            per_device_train_batch_size=8,
            eval_strategy="epoch",
            dataloader_num_workers=2,
            report_to="none",
        ),
        data_collator=FineTuningCollator(train.num_classes, settings),
        train_dataset=build_clips(model, processor, train, settings, "training"),
        eval_dataset=build_clips(model, processor, validation, settings, "validation"),
        processing_class=processor,
        compute_loss_func=classification_loss,  # the model's own takes soft labels for several labels of a clip
        compute_metrics=classification_metrics,
        optimizers=(torch.optim.AdamW(groups), None),
    )
    trainer.train()
    trainer.save_model()
    print(trainer.evaluate())


def make_few_videos(output_dir: str, split: str) -> Path:
    """Make a set to try with, and return its list of motions."""
    settings = SyntheticVideoSettings(num_videos=16, split=split)
    return make_synthetic_videos(Path(output_dir, f"{split}-videos"), settings).with_name("motion.csv")


if __name__ == "__main__":
    main()
