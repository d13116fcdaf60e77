"""`vjepa-hub verify`: a published model against its own statements."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..core.progress import ProgressBar
from .common import usage_errors
from .options import complete_models, complete_protocols, existing, known_model, known_protocol, output_folder

if TYPE_CHECKING:
    from ..publishing.verification import Check, VerificationReport


_STYLES = {"passed": "green", "failed": "bold red", "remark": "yellow", "skipped": "dim"}


def verify(
    name: Annotated[
        str,
        typer.Argument(
            metavar="REPO_OR_FOLDER",
            help="owner/name on the Hub, a folder, or a model that the package carries.",
            callback=known_model,
            autocompletion=complete_models,
        ),
    ],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit. Default: main.")] = None,
    run_code: Annotated[
        bool,
        typer.Option(
            "--run-code",
            help="Run the first Python block of the card, in a process of its own: read it first, it can do anything.",
        ),
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(
            help="Validation set of a classifier: a slice of the stated evaluation is run again.", callback=existing
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Videos of that slice, drawn at random.")] = 50,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="Of that slice. Default: the one that the model's records state.",
            callback=known_protocol,
            autocompletion=complete_protocols,
        ),
    ] = None,
    num_workers: Annotated[int, typer.Option(min=0, help="Processes that decode.")] = 0,
    device: Annotated[str, typer.Option(help="Where the slice is evaluated.")] = "cpu",
    retrain: Annotated[
        bool,
        typer.Option(
            "--retrain", help="Train the model again by the recipe of its reproduction.json, and compare with that."
        ),
    ] = False,
    short: Annotated[bool, typer.Option("--short", help="Of that training, the first part only.")] = False,
    seed: Annotated[int | None, typer.Option(help="Of that training. Default: the model's own.")] = None,
    output_dir: Annotated[
        Path,
        typer.Option(
            help="Folder for that training; the same command goes on where it was stopped.", callback=output_folder
        ),
    ] = Path("runs/retrained"),
) -> None:
    """Download a published model and check what it says of itself.

    Hashes against the server's; weights complete, with the keys and shapes of their configuration; processor; no
    pickles needed; the code for trust_remote_code against this package's; card against configuration. Ends with 1
    where a check fails. Nothing of the repository is run, but for --run-code.

    --retrain: a model that was made by `vjepa-hub reproduce` carries the record of several trainings. It
    is trained again; the loss has to run within their spread, the accuracies have to lie within two standard
    deviations, and with the same seed on the same machine the weights have to be equal to the bit. For a model that
    the package carries, such as vjepa-vit-tiny, this is what is done without asking.
    """
    from ..hub.registry import MODELS, find_bundled

    is_registered = name in MODELS and not Path(name).is_dir()
    retrain = retrain or (is_registered and find_bundled(name) is not None)
    if data is None and protocol is not None:
        raise typer.BadParameter("--protocol was given, but no --data to evaluate on: give both or neither")
    if not retrain and (short or seed is not None):
        raise typer.BadParameter("--short and --seed are about a training: give --retrain too, or leave them out")
    if is_registered and find_bundled(name) is None:
        raise typer.BadParameter(
            f"{name} is a name of the registry, not a repository: released files are checked when they are "
            "converted; give owner/name or a folder"
        )
    if revision is not None and (is_registered or Path(name).is_dir()):
        raise typer.BadParameter(f"--revision is of a repository of the Hub, and {name} has none: leave it out")

    from ..publishing.hub_errors import HubAccessError
    from ..publishing.verification import verify_model

    with usage_errors():
        try:
            report = verify_model(name, revision=revision)
        except HubAccessError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(1) from error
        if run_code:
            report = report.with_check(_run_code(report))
        if data is not None:
            report = report.with_check(_check_accuracy(report, data, limit, protocol, num_workers, device))
        if retrain:
            for check in _retrain(report, output_dir, is_short=short, seed=seed):
                report = report.with_check(check)
    _show_report(report)
    if not report.passed:
        raise typer.Exit(1)


def _run_code(report: VerificationReport) -> Check:
    from ..data.samples import sample_clip_path
    from ..publishing.verification import run_card_code

    return run_card_code(report, sample_clip_path())


def _check_accuracy(
    report: VerificationReport, data: str, limit: int, protocol: str | None, num_workers: int, device: str
) -> Check:
    from ..evaluation.protocols import find_protocol
    from ..evaluation.slice_evaluation import check_stated_accuracy

    with ProgressBar() as progress:
        return check_stated_accuracy(
            report,
            data,
            protocol=find_protocol(protocol) if protocol else None,
            limit=limit,
            device=device,
            num_workers=num_workers,
            progress=progress,
        )


def _retrain(report: VerificationReport, output_dir: Path, *, is_short: bool, seed: int | None) -> list[Check]:
    from ..reproduction.retraining import verify_training

    return verify_training(report.folder, output_dir, is_short=is_short, seed=seed)


def _show_report(report: VerificationReport) -> None:
    table = Table("check", "", "found", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for check in report.checks:
        table.add_row(check.name, Text(check.state, style=_STYLES[check.state]), Text(check.detail, overflow="fold"))
    console = Console()
    console.print(table)
    num_failed = sum(not check.passed for check in report.checks)
    place = report.name + (f" at {report.commit[:8]}" if report.commit else "")
    verdict = f"{num_failed} checks failed" if num_failed else "what it says of itself holds"
    console.print(Text(f"{place}: {verdict}", style="bold red" if num_failed else "bold green"), soft_wrap=True)
