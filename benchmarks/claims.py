"""The claims of the paper (Bardes et al. 2024, sections 4 and 5) in small: one command, one table, one picture.

Variants of one recipe are trained with several seeds, and attentive heads on the frozen encoders are judged in the two
tasks of `vjepa_hub.evaluation.made_tasks`. Compute is equal: the recipe has N steps, and a variant as many as come to
the same floating point operations, which are counted on the masks that it draws. Rows without training are the weights
that the trainings start from, and raw pixels.

Claims are judged from the numbers alone, by `RULE`, which claims.md repeats. Of shares of the labels the mean over
three splits is taken first, for each training.

The collapse is judged by the effective rank of the targets on fixed clips, as the health page shows it. The package
always stops the gradient at the targets; the variant without that is a subclass in this file.

    python benchmarks/claims.py                               # the recipe tiny, all claims, three seeds
    python benchmarks/claims.py --seeds 0                     # where the effects are plain, one may do
    python benchmarks/claims.py --claims targets masks --set max_steps=1000 synthetic.kind=fashion-mnist

The same command goes on where it was stopped, and run several times at once it shares the work, so start as many as
there are cores for. Seeds that other calls have finished in the folder count too, so that a claim can get more seeds
than the others. All of it lies in the folder: claims.md, claims.json, claims.png.
"""

import argparse
import fcntl
import json
import math
import shlex
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from pydantic_core import to_json
from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text
from torch.nn import functional as F
from transformers import TrainerCallback
from transformers.utils import logging as transformers_logging

from vjepa_hub import VJEPAForPreTraining, VJEPAModel
from vjepa_hub.core.files import write_whole
from vjepa_hub.core.progress import ProgressBar
from vjepa_hub.data.masking import CAUSAL
from vjepa_hub.data.synthetic.videos import make_videos
from vjepa_hub.evaluation.label_efficiency import summarise
from vjepa_hub.evaluation.made_tasks import ATTENTIVE_HEADS, TASKS, MadeTaskSettings, make_task_videos, probe_tasks
from vjepa_hub.model.modeling_vjepa import VJEPAForPreTrainingOutput, select_tokens
from vjepa_hub.pretraining.arguments import CHECKPOINTING
from vjepa_hub.pretraining.checkpoints import save_published
from vjepa_hub.pretraining.estimate import draw_token_counts, step_flops
from vjepa_hub.pretraining.health import PREFIX, SHORTEST_WARMUP, diagnose
from vjepa_hub.pretraining.interruption import InterruptedRunError
from vjepa_hub.pretraining.recipe import Recipe, differing_keys, load_recipe
from vjepa_hub.pretraining.run import build_model, build_processor, clear_folder, prepare_run
from vjepa_hub.pretraining.run_data import VIDEOS
from vjepa_hub.pretraining.trainer import VJEPATrainer
from vjepa_hub.publishing.machine_paths import shorten_machine_paths
from vjepa_hub.publishing.records import this_machine
from vjepa_hub.reproduction.retraining import share_videos, tasks_of
from vjepa_hub.reproduction.training import computing_with
from vjepa_hub.viz.style import AMBER, BLUE, INK, encode_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FINISHED, SECONDS = "finished.json", "seconds.json"
REFERENCE, UNTRAINED, PIXELS = "reference", "untrained", "pixels"
RANK = "rank"
SHARES = (0.05, 0.1, 0.5)  # of the labels
NUM_HEALTH = 8  # measurements of a training, besides that before its first step
HOLDS, FAILS, UNDECIDED = "holds", "does not hold here", "undecided"
NUM_ERRORS = 2
RULE = (
    "Means and standard deviations are over seeds. A comparison holds where the difference of the means is more than "
    f"{NUM_ERRORS} standard errors above 0, does not hold here where it is as far below, and is undecided between. "
    "The deviation behind an error is at least that of a share among so many test videos, and that of a rank at least "
    "the largest of any variant. A claim holds if all of its comparisons do, and does not hold here if one of them "
    "does not."
)


# ------------------------------------------------------------------------------------------------ variants and claims


@dataclass(frozen=True)  # by place, as rows of the table below
class Variant:
    """A training that differs from the recipe in one thing."""

    name: str  # of its folder
    claim: str  # that it belongs to
    words: str  # what it is, in the table
    overrides: Mapping[str, Any]  # of the recipe
    has_stop_gradient: bool = True
    masks: Callable[[Recipe], list[dict[str, Any]]] | None = None  # in place of the recipe's, made from them


def tubes(recipe: Recipe) -> list[dict[str, Any]]:
    """For each kind of masks random tubes that leave as much context."""
    seen = seen_by_kind(recipe)
    return [{"kind": "random-tube", "ratio": 1 - share} for share in seen]


def causal(recipe: Recipe) -> list[dict[str, Any]]:
    """The same blocks, but context from the first frames alone, as many as in the paper's ablation."""
    return [{**kind, "max_temporal_keep": CAUSAL.max_temporal_keep} for kind in _blocks_of(recipe)]


def hide_more(recipe: Recipe, factor: float) -> list[dict[str, Any]]:
    """More blocks, or blocks that last longer where they do not span all frames; fewer and shorter below 1."""
    return [_hide_more(kind, factor) for kind in _blocks_of(recipe)]


def _hide_more(kind: dict[str, Any], factor: float) -> dict[str, Any]:
    first, last = kind["temporal_scale"]
    if last == 1:
        return {**kind, "num_blocks": max(1, round(kind["num_blocks"] * factor))}
    return {**kind, "temporal_scale": [first * min(factor, 1.5), min(1.0, last * min(factor, 1.5))]}


def _blocks_of(recipe: Recipe) -> list[dict[str, Any]]:
    masks = recipe.to_tree()["masks"]
    if any(kind["kind"] != "multi-block" for kind in masks):
        kinds = ", ".join(kind["kind"] for kind in masks)
        raise ValueError(f"the recipe's masks are {kinds}, but must be multi-block; leave out --claims masks share")
    return masks


_NO_MOMENTUM = {"training.momentum": 0.0, "training.final_momentum": 0.0}
_ALL = (
    Variant(REFERENCE, "", "the recipe", {}),
    Variant("pixel-targets", "targets", "pixels predicted", {"training.targets": "pixels"}),
    Variant("random-tube", "masks", "random tube", {}, masks=tubes),
    Variant("causal", "masks", "causal multi-block", {}, masks=causal),
    Variant("no-ema", "collapse", "no EMA", _NO_MOMENTUM),
    Variant("no-stop-gradient", "collapse", "no EMA, no stop-gradient", _NO_MOMENTUM, has_stop_gradient=False),
    Variant("l2", "loss", "L2 loss", {"training.objective": "l2"}),
    Variant("less-masked", "share", "less masked", {}, masks=partial(hide_more, factor=0.5)),
    Variant("more-masked", "share", "more masked", {}, masks=partial(hide_more, factor=2.0)),
)
VARIANTS = {variant.name: variant for variant in _ALL}


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What is measured: an encoder, a head and a share of the labels."""

    encoder: str = REFERENCE  # a variant, or UNTRAINED or PIXELS
    pooling: str = "attentive"
    share: float = 1.0  # of the training labels
    fallen_from: float | None = None  # a larger share, whose accuracy is taken off


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim of the paper."""

    name: str
    statement: str
    rows: Mapping[str, Condition]  # of the table, besides the reference
    comparisons: Mapping[str, tuple[Condition, Condition]]  # the first is claimed to be better than the second
    measures: Sequence[str] = tuple(TASKS)  # that it is judged by: tasks, or the effective rank


def _claim(name: str, statement: str, rows: Mapping[str, Condition], measures: Sequence[str] = tuple(TASKS)) -> Claim:
    """That the reference is better than each of some rows."""
    compared = {f"against {words}": (Condition(), row) for words, row in rows.items()}
    return Claim(name=name, statement=statement, rows=rows, comparisons=compared, measures=measures)


def _variants_of(claim: str) -> dict[str, Condition]:
    return {variant.words: Condition(encoder=variant.name) for variant in _ALL if variant.claim == claim}


_LABEL_ENCODERS = {"features": REFERENCE, "pixels predicted": "pixel-targets"}
_FALLS = [Condition(encoder=name, share=SHARES[0], fallen_from=SHARES[-1]) for name in _LABEL_ENCODERS.values()]
_LABELS = Claim(
    name="labels",
    statement="with fewer labels, feature prediction loses less than pixel prediction",
    rows={
        f"{words}, {share:.0%} of the labels": Condition(encoder=name, share=share)
        for words, name in _LABEL_ENCODERS.items()
        for share in SHARES
    },
    comparisons={f"fall from {SHARES[-1]:.0%} to {SHARES[0]:.0%} of the labels": (_FALLS[0], _FALLS[1])},
)
_NO_TRAINING = {"untrained": Condition(encoder=UNTRAINED), "raw pixels": Condition(encoder=PIXELS)}
_AVERAGE = {"average pooling": Condition(pooling="average")}
CLAIMS = {
    claim.name: claim
    for claim in (
        _claim("baselines", "feature prediction learns: better than no training", _NO_TRAINING),
        _claim("targets", "predicting features is better than predicting pixels", _variants_of("targets")),
        _claim("pooling", "attentive pooling is better than average pooling", _AVERAGE),
        _claim("masks", "multi-block masks are better than random tubes and causal ones", _variants_of("masks")),
        _claim("collapse", "without EMA and stop-gradient the targets' rank falls", _variants_of("collapse"), (RANK,)),
        _claim("loss", "L1 is better than L2", _variants_of("loss")),
        _LABELS,
        _claim("share", "the recipe's masked share is better than less and more", _variants_of("share")),
    )
}


class VJEPAWithoutStopGradient(VJEPAForPreTraining):
    """Targets are made by the context encoder, and take gradients.

    Without gradients it is as its base, whose target encoder equals the encoder at momentum 0.
    """

    _auto_class = None  # it does not travel as remote code

    def forward(self, pixel_values_videos, context_mask, target_mask, **kwargs) -> Any:
        """As its base, of which it takes lists of masks only."""
        if not torch.is_grad_enabled():
            return super().forward(pixel_values_videos, context_mask, target_mask, **kwargs)
        base = cast(VJEPAModel, self)
        output = VJEPAModel.forward(base, pixel_values_videos, context_mask, target_mask, return_dict=True)
        features = self.encoder(pixel_values_videos, return_dict=True).last_hidden_state  # (B, N, D)
        features = F.layer_norm(features.float(), features.shape[-1:])
        targets = [select_tokens(features, mask.expand(len(features), -1)) for mask in target_mask]
        predictions = output.predictor_output.last_hidden_state
        losses = [F.l1_loss(p.float(), t) for p, t in zip(predictions, targets, strict=True)]
        return VJEPAForPreTrainingOutput(loss=torch.stack(losses).mean(), predictions=predictions, targets=targets)


# ------------------------------------------------------------------------------------------------ equal compute


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a clip costs in a training step, averaged over the first steps of a run."""

    flops: float  # of all matrix products
    seen: float  # share of its tokens that the context encoder sees, averaged over the kinds of masks


def measure_cost(recipe: Recipe, *, has_stop_gradient: bool = True) -> Cost:
    """Count on the masks that a run draws."""
    config, options = recipe.config(), {"is_checkpointed": bool(getattr(recipe.training, CHECKPOINTING))}
    draws = draw_token_counts(config, recipe.masks, recipe.training.per_device_train_batch_size)
    predicts_pixels = recipe.training.targets == "pixels"
    flops = [step_flops(config, counts, predicts_pixels=predicts_pixels, **options) for counts in draws]
    num_tokens = recipe.grid().num_tokens
    total = statistics.fmean(found.total for found in flops)
    if not has_stop_gradient:  # the pass over all tokens is the encoder's, and goes backward too
        total += step_flops(config, [(num_tokens, 0)], **options).encoder - flops[0].target_encoder
    return Cost(flops=total, seen=statistics.fmean(_seen_by_kind(draws, num_tokens)))


def seen_by_kind(recipe: Recipe) -> list[float]:
    """Share of tokens that the context encoder sees, for each kind of masks, over the first steps of a run."""
    draws = draw_token_counts(recipe.config(), recipe.masks, recipe.training.per_device_train_batch_size)
    return _seen_by_kind(draws, recipe.grid().num_tokens)


def _seen_by_kind(draws: Sequence[Sequence[tuple[int, int]]], num_tokens: int) -> list[float]:
    return [statistics.fmean(context / num_tokens for context, _ in kind) for kind in zip(*draws, strict=True)]


def equal_steps(num_steps: int, *, reference: float, variant: float) -> int:
    """Steps of a variant at the compute of `num_steps` of the reference; both costs are of one step."""
    return max(1, round(num_steps * reference / variant))


def vary(reference: Recipe, variant: Variant) -> Recipe:
    """The recipe of a variant, with steps at equal compute and a measurement of health after the last.

    Raises:
        ValueError: The recipe counts no steps, or is the variant already.
    """
    num_steps = int(reference.training.max_steps)
    if num_steps < 1:
        raise ValueError(f"max_steps is {num_steps}, but equal compute is counted in steps; --set max_steps=300")
    masks = {} if variant.masks is None else {"masks": variant.masks(reference)}
    changed = reference.with_overrides({"training.probe": "none", **variant.overrides, **masks})
    is_same = set(differing_keys(reference, changed)) <= {"training.probe"} and variant.has_stop_gradient
    if variant.name != REFERENCE and is_same:
        raise ValueError(f"the recipe has '{variant.words}' already; leave out --claims {variant.claim}")
    cost = measure_cost(changed, has_stop_gradient=variant.has_stop_gradient).flops
    steps = equal_steps(num_steps, reference=measure_cost(reference).flops, variant=cost)
    overrides = {"training.max_steps": steps, "training.health_steps": math.ceil(steps / NUM_HEALTH)}
    warmup = reference.training.warmup_steps
    if warmup >= 1:  # below 1 it is a share of the steps
        overrides["training.warmup_steps"] = round(warmup * steps / num_steps)
    return changed.with_overrides(overrides)


# ------------------------------------------------------------------------------------------------ training


@dataclass(frozen=True, kw_only=True)
class Training:
    """A finished training, as its `finished.json` has it."""

    variant: str
    seed: int
    steps: int
    seconds: float  # with reading of video and measuring of health
    seen: float  # as in `Cost`
    first_rank: float  # effective rank of the targets before the first step
    rank: float  # after the last
    events: Sequence[str]  # rules of health that held at some time


class Stopwatch(TrainerCallback):
    """Seconds of a training over its interruptions, without those of steps that were lost, in a file by step."""

    def __init__(self, file: Path):
        self.file, self._before, self._start = file, 0.0, 0.0

    def read(self, step: int) -> float:
        """Seconds to a step that was saved, or to the last one."""
        return self._kept().get(str(step), 0.0)

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self._before, self._start = self.read(state.global_step), time.monotonic()

    def on_save(self, args, state, control, **kwargs) -> None:
        seconds = self._before + time.monotonic() - self._start
        write_whole(self.file, json.dumps({**self._kept(), str(state.global_step): seconds}))

    on_train_end = on_save

    def _kept(self) -> dict[str, float]:
        return json.loads(self.file.read_text()) if self.file.is_file() else {}


def train(variant: Variant, recipe: Recipe, folder: Path, *, videos: Path, console: Console) -> Training:
    """Train a variant, or go on with it, or read what was found when it was finished.

    `recipe` is that of the variant, with the seed; video is made in `videos`, which all runs share.

    Raises:
        ValueError: The folder has a run of another recipe.
        InterruptedRunError: The run was told to stop, and saved.
    """
    file = folder / FINISHED
    if file.is_file():
        clear_folder(folder, recipe)  # refuses another recipe, and removes nothing
        return Training(**json.loads(file.read_text(encoding="utf-8")))
    share_videos(videos, folder)
    stopwatch = Stopwatch(folder / SECONDS)
    run = prepare_run(recipe, output_dir=folder, console=console, callbacks=[stopwatch])
    if not variant.has_stop_gradient:
        run.trainer.model.__class__ = VJEPAWithoutStopGradient  # which has no state of its own
    run.train()
    found = _describe(variant, recipe, run.trainer, stopwatch.read(run.trainer.state.global_step))
    write_whole(file, json.dumps(asdict(found), indent=1))
    return found


def _describe(variant: Variant, recipe: Recipe, trainer: VJEPATrainer, seconds: float) -> Training:
    args, state = trainer.args, trainer.state
    if trainer.health is not None:  # measures only where the last step is not measured yet
        trainer.health.on_train_end(args, state, trainer.control, model=trainer.model)
    warmup = max(args.get_warmup_steps(state.max_steps), state.max_steps // 5, SHORTEST_WARMUP)
    ranks = [row[f"{PREFIX}target_effective_rank"] for row in state.log_history if f"{PREFIX}fixed_loss" in row]
    return Training(
        variant=variant.name,
        seed=recipe.training.seed,
        steps=state.global_step,
        seconds=round(seconds, 1),
        seen=measure_cost(recipe).seen,
        rank=ranks[-1],
        first_rank=ranks[0],
        events=[warning.name for warning in diagnose(state.log_history, warmup_steps=warmup)],
    )


# ------------------------------------------------------------------------------------------------ evaluation


@dataclass(frozen=True, kw_only=True)
class Score:
    """What heads on one frozen encoder came to; the fields are those of `Condition`."""

    encoder: str
    seed: int  # of the training
    pooling: str
    share: float
    accuracies: Mapping[str, float]  # by task, per cent, the mean over splits of the labels


Work = Callable[[], tuple[Training | None, list[Score]]]  # a training and its scores, or scores alone


@dataclass(frozen=True, kw_only=True)
class Study:
    """All that is trained and judged."""

    recipe: Recipe  # the reference
    claims: Sequence[Claim]
    seeds: Sequence[int]  # of the trainings
    folder: Path
    tasks: MadeTaskSettings  # how frozen encoders are judged
    console: Console = field(default_factory=Console)

    @property
    def conditions(self) -> list[Condition]:
        """All that is shown or compared, the reference first."""
        pairs = [pair for claim in self.claims for pair in claim.comparisons.values()]
        rows = [row for claim in self.claims for row in claim.rows.values()]
        return list(dict.fromkeys([Condition(), *rows, *(condition for pair in pairs for condition in pair)]))

    @property
    def variants(self) -> list[Variant]:
        """Those that the claims need."""
        return [VARIANTS[name] for name in dict.fromkeys(c.encoder for c in self.conditions) if name in VARIANTS]

    def jobs(self) -> list[tuple[Variant, int]]:
        """Trainings, seed by seed; last those with other seeds that are finished in the folder already."""
        asked = [(variant, seed) for seed in self.seeds for variant in self.variants]
        found = [(variant, seed) for variant in self.variants for seed in _finished_seeds(self.folder / variant.name)]
        return asked + [job for job in found if job not in asked]

    def run(self) -> "Results":
        """Train and judge everything that is not done yet, together with other processes that do so in this folder."""
        with self._held("videos"), ProgressBar(self.console) as progress:
            make_task_videos(self.folder / "tasks", self.tasks, progress)
            if self.recipe.synthetic is not None:
                make_videos(self.folder / VIDEOS, self.recipe.synthetic, progress=progress)
        works, done = self._works(), {}
        for is_patient in (False, True):  # first what no other process is at, then what those have done by then
            missing = [name for name in works if name not in done]
            if is_patient and missing:
                self.console.print(Text(f"waits for other processes, which are at {', '.join(missing)}"))
            for name in missing:
                with self._held(name, is_patient=is_patient) as is_free:
                    if is_free:
                        done[name] = works[name]()
        trainings, scores = zip(*(done[name] for name in works), strict=True)
        return Results(
            trainings=[training for training in trainings if training is not None],
            scores=[score for found in scores for score in found],
            num_test=self.tasks.num_test,
        )

    def _works(self) -> dict[str, Work]:
        """What there is to do, by name; what is done already only reads what came of it."""
        asked = {condition.encoder for condition in self.conditions}
        recipes = {variant.name: vary(self.recipe, variant) for variant in self.variants}
        jobs = self.jobs()
        works: dict[str, Work] = {}
        if PIXELS in asked:
            spec = f"pixels:{self.recipe.config().crop_size}"
            works[PIXELS] = lambda: (None, list(self._judge(PIXELS, 0, spec)))
        for seed in [seed for variant, seed in jobs if variant.name == REFERENCE and UNTRAINED in asked]:
            works[f"{UNTRAINED}-seed-{seed}"] = partial(self._judge_untrained, seed)
        for number, (variant, seed) in enumerate(jobs, 1):
            recipe = recipes[variant.name].with_overrides({"training.seed": seed})
            title = f"training {number} of {len(jobs)}: {variant.words}, seed {seed}"
            works[f"{variant.name}-seed-{seed}"] = partial(self._train_and_judge, title, variant, recipe)
        return works

    def _train_and_judge(self, title: str, variant: Variant, recipe: Recipe) -> tuple[Training, list[Score]]:
        seed = recipe.training.seed
        self.console.print(Text(f"{title}, {recipe.training.max_steps} steps", style="bold"))
        folder = self.folder / variant.name / f"seed-{seed}"
        training = train(variant, recipe, folder, videos=self.folder / VIDEOS, console=self.console)
        return training, list(self._judge(variant.name, seed, str(folder)))

    def _judge_untrained(self, seed: int) -> tuple[None, list[Score]]:
        """The first weights of a training of the reference."""
        folder = self.folder / UNTRAINED / f"seed-{seed}"
        recipe = self.recipe.with_overrides({"training.seed": seed})
        model = build_model(recipe)
        build_processor(recipe).save_pretrained(folder)
        save_published(folder, model.config, model.state_dict())
        return None, list(self._judge(UNTRAINED, seed, str(folder)))

    @contextmanager
    def _held(self, name: str, *, is_patient: bool = True) -> Iterator[bool]:
        """Keep other processes from a piece of work in the block, which is told whether it may do it.

        A lock ends with its process, however that ends.
        """
        file = self.folder / "locks" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if is_patient else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
            else:
                yield True

    def _judge(self, encoder: str, seed: int, spec: str) -> Iterator[Score]:
        """Train heads on a frozen encoder, all on one cache of its tokens, which is removed afterwards."""
        folder = self.folder / "probes" / f"{encoder}-seed-{seed}"
        poolings = ("attentive", "average") if encoder == REFERENCE else ("attentive",)
        heads = [head.with_values(pooling=pooling) for pooling in poolings for head in ATTENTIVE_HEADS]
        videos = self.folder / "tasks"
        has_shares = any(condition.encoder == encoder and condition.share < 1 for condition in self.conditions)
        with ProgressBar(self.console) as progress:
            options = {"seeds": (0,), "progress": progress}
            rows = probe_tasks([spec], videos, folder, self.tasks, heads=heads, **options)
            tables = [(pooling, (1.0,), rows) for pooling in poolings]
            if has_shares:
                rows = probe_tasks([spec], videos, folder, self.tasks, label_fractions=SHARES, **options)
                tables.append(("attentive", SHARES, rows))
        shutil.rmtree(folder / "features", ignore_errors=True)
        for pooling, shares, rows in tables:
            for share in shares:
                accuracies = {task: _best(found, pooling, share) for task, found in rows.items()}
                yield Score(encoder=encoder, seed=seed, pooling=pooling, share=share, accuracies=accuracies)


def _finished_seeds(folder: Path) -> list[int]:
    return sorted(int(file.parent.name.removeprefix("seed-")) for file in folder.glob(f"seed-*/{FINISHED}"))


def _best(rows: Sequence[Any], pooling: str, share: float) -> float:
    """Per cent of the best head of a pooling."""
    return max(100 * row.top1.mean for row in rows if row.fraction == share and row.head.startswith(pooling))


# ------------------------------------------------------------------------------------------------ statistics


@dataclass(frozen=True, kw_only=True)
class Results:
    """All numbers."""

    trainings: Sequence[Training]
    scores: Sequence[Score]
    num_test: int  # test videos of each task

    def values(self, condition: Condition, measure: str) -> list[float]:
        """One number for each seed: per cent of a task, or the effective rank."""
        if measure == RANK:
            return [training.rank for training in self.trainings if training.variant == condition.encoder]
        accuracies = self._by_seed(condition, condition.share, measure)
        if condition.fallen_from is None:
            return list(accuracies.values())
        higher = self._by_seed(condition, condition.fallen_from, measure)
        return [accuracy - higher[seed] for seed, accuracy in accuracies.items()]

    def floor(self, condition: Condition, measure: str) -> float:
        """The least deviation of a value: of ranks that of any variant, else that of shares among the test videos."""
        if measure == RANK:
            ranks = [[training.rank for training in self.of_variant(name)] for name in VARIANTS]
            return max((statistics.stdev(values) for values in ranks if len(values) > 1), default=0.0)
        shares = [share for share in (condition.share, condition.fallen_from) if share is not None]
        means = [statistics.fmean(self._by_seed(condition, share, measure).values()) / 100 for share in shares]
        return 100 * math.sqrt(sum(mean * (1 - mean) for mean in means) / self.num_test)

    def of_variant(self, name: str) -> list[Training]:
        """Its trainings."""
        return [training for training in self.trainings if training.variant == name]

    def _by_seed(self, condition: Condition, share: float, task: str) -> dict[int, float]:
        key = (condition.encoder, condition.pooling, share)
        found = [score for score in self.scores if (score.encoder, score.pooling, score.share) == key]
        return {score.seed: score.accuracies[task] for score in found}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a comparison came to."""

    words: str  # what was compared
    measure: str
    difference: float  # of the means, above 0 where it goes as claimed
    error: float | None  # standard error of that; None: one seed, and nothing else tells its deviation
    word: str  # HOLDS, FAILS or UNDECIDED


def standard_error(values: Sequence[float], floor: float) -> float | None:
    """Standard error of a mean over seeds, from a deviation of at least `floor`; None where one value has no floor."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return None if len(values) == 1 and floor == 0 else max(deviation, floor) / math.sqrt(len(values))


def decide(difference: float, error: float | None) -> str:
    """The rule of a comparison."""
    if error is None or not abs(difference) > NUM_ERRORS * error:
        return UNDECIDED
    return HOLDS if difference > 0 else FAILS


def compare(results: Results, words: str, better: Condition, worse: Condition, measure: str) -> Verdict:
    """Whether one condition is better than another."""
    sides = [results.values(condition, measure) for condition in (better, worse)]
    floors = [results.floor(condition, measure) for condition in (better, worse)]
    errors = [standard_error(values, floor) for values, floor in zip(sides, floors, strict=True)]
    known = [error for error in errors if error is not None]
    error = math.hypot(*known) if len(known) == len(errors) else None
    difference = statistics.fmean(sides[0]) - statistics.fmean(sides[1])
    return Verdict(words=words, measure=measure, difference=difference, error=error, word=decide(difference, error))


def judge(results: Results, claim: Claim) -> list[Verdict]:
    """All comparisons of a claim."""
    return [
        compare(results, words, better, worse, measure)
        for words, (better, worse) in claim.comparisons.items()
        for measure in claim.measures
    ]


def overall(verdicts: Sequence[Verdict]) -> str:
    """The rule of a claim: all have to hold, and one that does not is enough."""
    words = {verdict.word for verdict in verdicts}
    return FAILS if FAILS in words else UNDECIDED if UNDECIDED in words else HOLDS


def verdict_line(claim: Claim, verdicts: Sequence[Verdict]) -> str:
    """A claim, what becomes of it, and the numbers that say so."""
    parts = []
    for verdict in verdicts:
        error = "?" if verdict.error is None else f"{verdict.error:.1f}"
        numbers = f"{verdict.difference:+.1f} (standard error {error})"
        parts.append(f"{verdict.words}, {verdict.measure} {numbers}: {verdict.word}")
    return f"{claim.name} ({claim.statement}): {overall(verdicts)}. {'; '.join(parts)}"


# ------------------------------------------------------------------------------------------------ table


COLUMNS = ("claim", "what", "seeds", "steps", "seconds", "seen", "rank", "health", *(f"{task} %" for task in TASKS))


def table_rows(results: Results, claims: Sequence[Claim]) -> list[tuple[str, ...]]:
    """The cells, those of the reference first."""
    rows = [_row(results, "", VARIANTS[REFERENCE].words, Condition())]
    for claim in claims:
        rows += [_row(results, claim.name, words, condition) for words, condition in claim.rows.items()]
    return rows


def _row(results: Results, claim: str, words: str, condition: Condition) -> tuple[str, ...]:
    accuracies = [results.values(condition, task) for task in TASKS]
    facts = _facts(results.of_variant(condition.encoder))
    return (claim, words, str(len(accuracies[0])), *facts, *(in_words(values) for values in accuracies))


def _facts(trainings: Sequence[Training]) -> tuple[str, ...]:
    if not trainings:
        return ("",) * 5
    events = [event for training in trainings for event in training.events]
    health = [f"{event} {events.count(event)}/{len(trainings)}" for event in dict.fromkeys(events)]
    seconds = statistics.fmean(training.seconds for training in trainings)
    ranks = [training.rank for training in trainings]
    return (
        f"{trainings[0].steps:,}",
        f"{seconds:,.0f}",
        f"{trainings[0].seen:.0%}",
        in_words(ranks),
        ", ".join(health) or "healthy",
    )


def in_words(values: Sequence[float]) -> str:
    """Mean and deviation."""
    summary = summarise(values)
    return f"{summary.mean:.1f}" + ("" if summary.deviation is None else f" ± {summary.deviation:.1f}")


def show(console: Console, rows: Sequence[Sequence[str]], lines: Sequence[str]) -> None:
    """The table and the verdicts on the terminal."""
    table = Table(*(Column(name, overflow="fold") for name in COLUMNS), box=box.SIMPLE)
    for row in rows:
        table.add_row(*map(Text, row))
    if not console.is_terminal:
        console.width = 160  # nothing tells how wide a log may be
    console.print(table)
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def to_markdown(rows: Sequence[Sequence[str]], lines: Sequence[str], command: str, machine: str) -> str:
    """The same, with what made it."""
    cells = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    table = "\n".join(f"| {' | '.join(row)} |" for row in cells)
    verdicts = "\n".join(f"- {line}" for line in lines)
    made = f"Made on {machine}. Seeds that other calls finished in the folder are in it too."
    return f"{table}\n\n{verdicts}\n\n{RULE}\n\n    {command}\n\n{made}\n"


# ------------------------------------------------------------------------------------------------ picture


@style()
def draw(results: Results, claims: Sequence[Claim]) -> bytes:
    """A panel for each claim, as a PNG: dots are means, bars standard deviations, colours the tasks."""
    from matplotlib.figure import Figure

    pairs = [claims[first : first + 2] for first in range(0, len(claims), 2)]
    heights = [0.9 + 0.26 * max(1 + len(claim.rows) for claim in pair) for pair in pairs]  # inches
    figure = Figure(figsize=(11, sum(heights) + 0.4), layout="constrained")
    panels = figure.subplots(len(pairs), 2, sharex=True, squeeze=False, height_ratios=heights).flat
    for axes, claim in zip(panels, claims, strict=False):
        _draw_panel(axes, results, claim)
    for axes in panels[len(claims) :]:
        axes.set_visible(False)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower left", ncols=2)
    return encode_figure(figure, "png")


def _draw_panel(axes: "Axes", results: Results, claim: Claim) -> None:
    rows = {VARIANTS[REFERENCE].words: Condition(), **claim.rows}
    for task, colour, shift in zip(TASKS, (BLUE, AMBER), (-0.13, 0.13), strict=True):
        found = [summarise(results.values(condition, task)) for condition in rows.values()]
        places = [place + shift for place in range(len(found))]
        bars = [summary.deviation or 0.0 for summary in found]
        means = [summary.mean for summary in found]
        axes.errorbar(means, places, xerr=bars, fmt="o", ms=4, color=colour, lw=1.2, label=f"{task}, top-1 in %")
    axes.set_yticks(range(len(rows)), [_label(results, claim, *row) for row in rows.items()])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(labelcolor=INK, labelbottom=True)
    axes.grid()
    axes.spines[:].set_visible(False)
    verdict = overall(judge(results, claim))
    axes.set_title(f"{claim.name}: {verdict}\n{claim.statement}", fontsize=8.5)


def _label(results: Results, claim: Claim, words: str, condition: Condition) -> str:
    if RANK not in claim.measures:
        return words
    return f"{words} (rank {in_words(results.values(condition, RANK))})"


# ------------------------------------------------------------------------------------------------ command


def write(study: Study, results: Results, command: str) -> None:
    """Show the table, and write it with the picture and all numbers."""
    rows = table_rows(results, study.claims)
    verdicts = {claim.name: judge(results, claim) for claim in study.claims}
    lines = [verdict_line(claim, verdicts[claim.name]) for claim in study.claims]
    machine = this_machine()
    words = f"{machine.processor}, torch {machine.torch}, {machine.num_threads} threads"
    show(study.console, rows, lines)
    numbers = {
        "command": command,
        "machine": machine,
        "recipe": study.recipe.to_tree(),
        "tasks": {name: value for name, value in study.tasks.to_tree().items() if name != "pictures"},
        **asdict(results),
        "claims": {name: {"verdict": overall(found), "comparisons": found} for name, found in verdicts.items()},
    }
    files = {
        "claims.md": to_markdown(rows, lines, command, words).encode(),
        "claims.json": to_json(numbers, indent=1, inf_nan_mode="null", fallback=lambda value: value.tolist()),
        "claims.png": draw(results, study.claims),
    }
    for name, content in files.items():
        study.console.print(Text(f"wrote {write_whole(study.folder / name, content)}"), soft_wrap=True)


def parse_arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="tiny", help="the reference: a bundled recipe or a file, with max_steps")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="of the recipe, for all variants")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--claims", nargs="+", choices=CLAIMS, default=list(CLAIMS))
    parser.add_argument("--output-dir", type=Path, default=Path("runs/claims"))
    parser.add_argument("--num-threads", type=int, default=1)
    parser.add_argument("--num-train", type=int, default=1000, help="labelled videos that heads learn from")
    parser.add_argument("--num-test", type=int, default=1000, help="labelled videos that they are judged on")
    parser.add_argument("--num-epochs", type=int, default=20, help="of the heads")
    return parser.parse_args(given)


def plan(arguments: argparse.Namespace) -> Study:
    """What a command line asks for."""
    recipe = load_recipe(arguments.recipe).with_overrides(arguments.set)
    tasks = tasks_of(
        recipe, num_train=arguments.num_train, num_test=arguments.num_test, num_epochs=arguments.num_epochs
    )
    claims = [claim for name, claim in CLAIMS.items() if name in arguments.claims]
    return Study(recipe=recipe, claims=claims, seeds=arguments.seeds, folder=arguments.output_dir, tasks=tasks)


def main() -> None:
    transformers_logging.disable_progress_bar()
    arguments = parse_arguments()
    study = plan(arguments)
    command = shorten_machine_paths(f"python benchmarks/claims.py {shlex.join(sys.argv[1:])}".strip())
    with computing_with(arguments.num_threads):
        try:
            results = study.run()
        except InterruptedRunError as stop:
            # Its own remedy would resume the run outside of this script
            study.console.print("stopped, and saved; the same command goes on")
            sys.exit(128 + stop.signal_number)
        write(study, results, command)


if __name__ == "__main__":
    main()
