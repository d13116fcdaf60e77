"""`python -m vjepa_hub.pretraining`: the command `vjepa-hub pretrain`, for torchrun and accelerate launch to start."""

import typer

from ..cli import pretrain
from ..host_memory import reuse_freed_memory

if __name__ == "__main__":
    reuse_freed_memory()
    app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_show_locals=False)
    app.command()(pretrain)
    app(prog_name="python -m vjepa_hub.pretraining")
