"""Names, files and descriptions of the bundled recipes; nothing heavy is imported for them."""

from pathlib import Path

import yaml

_FOLDER = Path(__file__).parent


def recipe_names() -> list[str]:
    """Names of the bundled recipes."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def recipe_path(name: str) -> Path:
    """File of a bundled recipe."""
    return _FOLDER / f"{name}.yaml"


def recipe_descriptions() -> dict[str, str]:
    """One line about each bundled recipe, by its name."""
    return {
        name: yaml.safe_load(recipe_path(name).read_text(encoding="utf-8"))["description"] for name in recipe_names()
    }
