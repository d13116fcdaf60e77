"""`vjepa-hub publish`: a model folder to the Hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..core.names import counted
from .common import usage_errors
from .options import complete_models, existing, known_model

if TYPE_CHECKING:
    from ..publishing.publishing import PublishResult


def publish(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER_OR_MODEL",
            help="Folder of pretrain, probe, finetune, convert or save_pretrained; or a registered name, such as "
            "vjepa-vitl16.",
            callback=known_model,
            autocompletion=complete_models,
        ),
    ],
    repo_id: Annotated[str, typer.Option(help="owner/name on the Hub; a name alone is your own account's.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[
        str | None, typer.Option(help="Branch to commit to; made if it is missing. Default: main.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be sent, check it and the card, and send nothing.")
    ] = False,
    weights_license: Annotated[
        str | None,
        typer.Option(
            "--license",
            help="Of the weights: apache-2.0, cc-by-4.0, cc-by-nc-4.0, ... Not needed for what comes from released "
            "weights, which keep theirs, nor where the card in the folder says it.",
        ),
    ] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(help="What it was trained on, a name of the Hub. May be repeated.")
    ] = None,
    base_model: Annotated[str | None, typer.Option(help="What it started from, a name of the Hub.")] = None,
    results: Annotated[
        list[Path] | None,
        typer.Option(
            help="results.json of an evaluation of this model, for its card. May be repeated.", callback=existing
        ),
    ] = None,
    with_plots: Annotated[bool, typer.Option("--with-plots", help="Send the plots of the run too.")] = False,
    extra_file: Annotated[
        list[Path] | None, typer.Option(help="One more file, such as a script. May be repeated.", callback=existing)
    ] = None,
    replace_card: Annotated[
        bool, typer.Option("--replace-card", help="Replace a card that was edited in the repository.")
    ] = False,
    commit_message: Annotated[str | None, typer.Option("--message", help="Title of the commit.")] = None,
) -> None:
    """Publish a model to the Hub, in one commit, with all that others need to load it.

    Weights, configuration, processor, the code for trust_remote_code, a card with results and their protocol, and the
    recipe, settings and log of the run are sent; checkpoints and videos are not. All is checked first. The same
    command again sends only what changed, and keeps what you wrote into the card meanwhile.

    Log in before by [bold]hf auth login[/bold], or set HF_TOKEN.
    """
    from ..publishing.hub_errors import HubAccessError
    from ..publishing.publishing import CardOptions, UnpublishableError
    from ..publishing.publishing import publish as publish_model

    options = CardOptions(
        license=weights_license, datasets=tuple(dataset or ()), base_model=base_model, results=tuple(results or ())
    )
    with usage_errors(), _exit_on(UnpublishableError, HubAccessError):
        result = publish_model(
            source,
            repo_id,
            private=private,
            revision=revision,
            dry_run=dry_run,
            commit_message=commit_message,
            card_options=options,
            replace_card=replace_card,
            with_plots=with_plots,
            extra_files=tuple(extra_file or ()),
        )
    _show_publication(result, is_dry_run=dry_run)
    if result.publication.problems:
        raise typer.Exit(1)


@contextmanager
def _exit_on(unpublishable: type[Exception], no_access: type[Exception]) -> Iterator[None]:
    """End with 1 where it is not the command that is wrong, but the model or the Hub."""
    try:
        yield
    except unpublishable as error:
        typer.echo("nothing was sent:", err=True)
        _show_problems(getattr(error, "problems", [str(error)]))
        raise typer.Exit(1) from error
    except no_access as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error


def _show_problems(problems: list[str]) -> None:
    for problem in problems:
        hint = " (--license)" if "no license" in problem else ""
        typer.echo(f"- {problem}{hint}", err=True)


def _show_publication(result: PublishResult, *, is_dry_run: bool) -> None:
    console = Console()
    table = Table("file", "size", "", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.columns[1].justify = "right"
    for file in result.publication.files:
        state = "sent" if file.path in result.sent else "unchanged"
        state = "to be sent" if is_dry_run and state == "sent" else state
        style = "dim" if state == "unchanged" else ""
        table.add_row(Text(file.path, style=style), _size(file.num_bytes), Text(state, style=style))
    for path in result.removed:
        table.add_row(path, "", "to be removed" if is_dry_run else "removed")
    console.print(table)
    for note in result.notes:
        console.print(Text(note, style="yellow"), soft_wrap=True)
    if is_dry_run:
        console.print(Text(f"\n{result.publication.card}"), soft_wrap=True)
        _show_card_checks(result, console)
        console.print("dry run: nothing was sent")
    elif result.commit is None:
        console.print(Text(f"nothing differs from {result.url}: no commit was made"), soft_wrap=True)
    else:
        console.print(Text(f"published {result.url} (commit {result.commit[:8]})"), soft_wrap=True)


def _show_card_checks(result: PublishResult, console: Console) -> None:
    problems = list(result.publication.problems)
    console.print(Text("checks: " + (counted(len(problems), "problem") if problems else "no problems")))
    _show_problems(problems)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes >= 1e5 else f"{num_bytes / 1e3:,.1f} kB"
