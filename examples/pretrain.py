"""Pretrain from a recipe: by default a few steps of `tiny`, on video that the package makes itself.

python examples/pretrain.py [RECIPE] [--data PATH] [--output-dir runs/example] [--overwrite] [--set KEY=VALUE ...]
"""

import argparse

from vjepa_hub.pretraining.recipe import load_recipe
from vjepa_hub.pretraining.run import pretrain

SHORT = {
    "max_steps": 10,
    "momentum": 0.8,
    "global_batch_size": 8,
    "per_device_train_batch_size": 8,
    "num_videos": 32,
    "probe": "none",
}


def main() -> None:
    """Train, and print what the last measurement of health was."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?")
    parser.add_argument("--data")
    parser.add_argument("--output-dir", default="runs/example")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--overwrite", action="store_true")
    arguments = parser.parse_args()

    recipe = load_recipe(arguments.recipe or "tiny").with_overrides({} if arguments.recipe else SHORT)
    recipe = recipe.with_overrides(arguments.set)
    folder, overwrite = arguments.output_dir, arguments.overwrite
    trainer = pretrain(recipe, data=arguments.data, output_dir=folder, overwrite=overwrite)
    print({name: value for name, value in trainer.state.log_history[-1].items() if name.startswith("health/")})


if __name__ == "__main__":
    main()
