import fcntl
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from tests.small_recipe import SMALL_RECIPE
from vjepa_hub import VJEPAForPreTraining
from vjepa_hub.data.masking import RandomTubeMasking
from vjepa_hub.evaluation.label_efficiency import SplitSummary
from vjepa_hub.evaluation.made_tasks import TASKS, MadeTaskSettings
from vjepa_hub.evaluation.probe_run import SummaryRow
from vjepa_hub.pretraining.interruption import InterruptedRunError
from vjepa_hub.pretraining.recipe import Recipe, load_recipe

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "claims.py"
RECIPE = SMALL_RECIPE


@pytest.fixture(scope="module")
def claims():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("claims", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["claims"] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["claims"]


@pytest.fixture(scope="module")
def tiny():
    return load_recipe("tiny")


def quiet():
    return Console(file=io.StringIO())


# ------------------------------------------------------------------------------------------------ statistics


def make_results(claims, accuracies, ranks=(), num_test=1_000_000):
    """Results of variants with the same accuracy in both tasks and at all shares, one for each seed."""
    trainings = [
        claims.Training(
            variant=name,
            seed=seed,
            steps=3,
            seconds=1.0,
            seen=0.2,
            first_rank=20.0,
            rank=rank,
            events=["shrinking-rank"],
        )
        for name, values in dict(ranks).items()
        for seed, rank in enumerate(values)
    ]
    scores = [
        claims.Score(
            encoder=name, seed=seed, pooling=pooling, share=share, accuracies=dict.fromkeys(TASKS, value + 10 * share)
        )
        for name, values in accuracies.items()
        for pooling in ("attentive", "average")
        for share in (*claims.SHARES, 1.0)
        for seed, value in enumerate(values)
    ]
    return claims.Results(trainings=trainings, scores=scores, num_test=num_test)


def words_of(claims, results, name):
    return [verdict.word for verdict in claims.judge(results, claims.CLAIMS[name])]


def test_a_claim_holds_only_beyond_two_standard_errors(claims):
    reference = [48.0, 50.0, 52.0]  # deviation 2, error 2 / sqrt 3; of a difference of two such means 1.633
    for l2, word in (([44.5, 46.5, 48.5], "holds"), ([45.0, 47.0, 49.0], "undecided"), ([52.0, 54.0, 56.0], None)):
        results = make_results(claims, {"reference": reference, "l2": l2})
        assert words_of(claims, results, "loss") == [word or "does not hold here"] * 2
    verdict = claims.judge(results, claims.CLAIMS["loss"])[0]
    assert verdict.difference == pytest.approx(-4.0)
    assert verdict.error == pytest.approx(2 * (2 / 3) ** 0.5)


def test_equal_seeds_are_no_proof_where_the_test_videos_are_few(claims):
    accuracies = {"reference": [50.0, 50.0], "l2": [45.0, 45.0]}
    assert words_of(claims, make_results(claims, accuracies, num_test=100), "loss") == ["undecided"] * 2
    assert words_of(claims, make_results(claims, accuracies, num_test=10_000), "loss") == ["holds"] * 2


def test_one_seed_decides_on_a_rank_where_others_tell_the_deviation(claims):
    accuracies = {"reference": [50.0]}
    ranks = {"reference": [30.0, 31.0, 32.0], "no-ema": [28.0], "no-stop-gradient": [29.0]}  # 2 errors: 2.31
    found = claims.judge(make_results(claims, accuracies, ranks), claims.CLAIMS["collapse"])
    assert [verdict.error for verdict in found] == [pytest.approx((1 / 3 + 1) ** 0.5)] * 2
    assert [verdict.word for verdict in found] == ["holds", "undecided"]
    ranks["l2"] = [20.0, 40.0]  # no rank is known better than the one that is known worst
    words = words_of(claims, make_results(claims, accuracies, ranks), "collapse")
    assert words == ["undecided"] * 2


def test_one_seed_decides_on_an_accuracy_but_alone_never_on_a_rank(claims):
    names = ("reference", "l2", "no-ema", "no-stop-gradient")
    accuracies = dict(zip(names, ([50.0], [20.0], [20.0], [20.0]), strict=True))
    ranks = dict(zip(names, ([30.0], [29.0], [2.0], [2.0]), strict=True))
    results = make_results(claims, accuracies, ranks, num_test=1000)
    assert words_of(claims, results, "loss") == ["holds"] * 2
    assert words_of(claims, results, "collapse") == ["undecided"] * 2


def test_a_claim_needs_all_of_its_comparisons(claims):
    verdict = claims.Verdict(words="", measure="motion", difference=1.0, error=0.1, word=claims.HOLDS)
    other = [replace(verdict, word=word) for word in (claims.UNDECIDED, claims.FAILS)]
    assert claims.overall([verdict, verdict]) == "holds"
    assert claims.overall([verdict, other[0]]) == "undecided"
    assert claims.overall([verdict, *other]) == "does not hold here"


def test_the_fall_with_fewer_labels_is_compared_and_not_the_level(claims):
    """Both fall by 4.5; the lower one falls less when its accuracy at few labels is raised."""
    results = make_results(claims, {"reference": [50.0, 51.0], "pixel-targets": [80.0, 81.0]})
    verdict = claims.judge(results, claims.CLAIMS["labels"])[0]
    assert verdict.difference == pytest.approx(0.0)
    raised = [
        replace(score, accuracies={task: value + 3 for task, value in score.accuracies.items()})
        if (score.encoder, score.share) == ("reference", 0.05)
        else score
        for score in results.scores
    ]
    verdict = claims.judge(replace(results, scores=raised), claims.CLAIMS["labels"])[0]
    assert (verdict.difference, verdict.word) == (pytest.approx(3.0), "holds")


# ------------------------------------------------------------------------------------------------ variants


def test_half_the_cost_gives_twice_the_steps(claims, tiny):
    assert claims.equal_steps(300, reference=2.0, variant=1.0) == 600
    cost = claims.measure_cost(tiny).flops
    for variant in claims.VARIANTS.values():
        recipe = claims.vary(tiny, variant)
        own = claims.measure_cost(recipe, has_stop_gradient=variant.has_stop_gradient).flops
        assert recipe.training.max_steps * own == pytest.approx(300 * cost, rel=0.5 / recipe.training.max_steps)


def test_without_stop_gradient_a_step_costs_the_backward_pass_of_the_targets(claims, tiny):
    plain, full = (claims.measure_cost(tiny, has_stop_gradient=has).flops for has in (True, False))
    tokens, width = 256, 128
    layer = 2 * tokens * 12 * width**2 + 4 * tokens**2 * width
    patch = 2 * tokens * (3 * 2 * 8 * 8) * width
    assert full - plain == pytest.approx(2 * 6 * layer + patch)


def test_variants_of_the_recipe_tiny_change_what_they_say(claims, tiny):
    made = {name: claims.vary(tiny, variant) for name, variant in claims.VARIANTS.items()}
    assert made["pixel-targets"].training.targets == "pixels"
    assert made["l2"].training.objective == "l2"
    assert [type(kind) for kind in made["random-tube"].masks] == [RandomTubeMasking] * 2
    blocks = made["reference"].masks
    assert made["causal"].masks == tuple(kind.with_values(max_temporal_keep=0.75) for kind in blocks)
    for name in ("no-ema", "no-stop-gradient"):
        schedules = made[name].arguments("unused").schedules(100)
        assert {schedules.momentum_at(step) for step in (0, 50, 99)} == {0.0}
    seen = {name: claims.measure_cost(made[name]).seen for name in ("less-masked", "reference", "more-masked")}
    assert 1.5 * seen["more-masked"] < seen["reference"] < seen["less-masked"] / 1.5
    assert {recipe.training.probe for recipe in made.values()} == {"none"}
    assert all(0 < recipe.training.health_steps < 100 for recipe in made.values())


@pytest.mark.parametrize("name", ["tiny", "vit-tiny"])
def test_tubes_leave_as_much_context_as_the_blocks_of_the_recipe(claims, name):
    recipe = load_recipe(name)
    seen = [claims.seen_by_kind(made) for made in (recipe, claims.vary(recipe, claims.VARIANTS["random-tube"]))]
    num_patches = recipe.grid().rows * recipe.grid().columns
    for blocks, tubes in zip(*seen, strict=True):
        assert 0 <= blocks - tubes < 1 / num_patches


def test_blocks_that_span_some_frames_hide_more_and_fewer_of_them(claims):
    made = {name: claims.vary(load_recipe("vit-tiny"), claims.VARIANTS[name]) for name in claims.VARIANTS}
    found = {
        name: [(kind.num_blocks, kind.temporal_scale) for kind in made[name].masks]
        for name in ("less-masked", "more-masked")
    }
    assert found["less-masked"] == [(2, (1.0, 1.0)), (1, (0.25, 0.25))]
    assert found["more-masked"] == [(8, (1.0, 1.0)), (1, (0.75, 0.75))]


def test_variants_of_blocks_need_blocks(claims, tiny):
    with pytest.raises(
        ValueError, match="masks are random-tube, but must be multi-block; leave out --claims masks sh"
    ):
        claims.vary(tiny.with_overrides({"masks": "random-tube"}), claims.VARIANTS["causal"])


def test_a_warmup_in_steps_stays_the_same_share_of_the_run(claims, tiny):
    recipe = claims.vary(tiny.with_overrides({"training.warmup_steps": 30}), claims.VARIANTS["less-masked"])
    assert recipe.training.warmup_steps / recipe.training.max_steps == pytest.approx(0.1, abs=0.005)


def test_a_recipe_that_is_the_variant_already_is_an_error(claims, tiny):
    with pytest.raises(ValueError, match="has 'L2 loss' already; leave out --claims loss"):
        claims.vary(tiny.with_overrides({"training.objective": "l2"}), claims.VARIANTS["l2"])
    with pytest.raises(ValueError, match="max_steps is -1, but equal compute"):
        claims.vary(tiny.with_overrides({"training.max_steps": -1}), claims.VARIANTS["l2"])


def test_without_stop_gradient_the_loss_is_the_same_and_its_gradient_another(
    claims, small_config, small_clip, small_masks
):
    torch.manual_seed(0)
    model = VJEPAForPreTraining(small_config)
    masks = [[mask] for mask in small_masks]
    found = {}
    for model_class in (VJEPAForPreTraining, claims.VJEPAWithoutStopGradient):
        model.__class__ = model_class
        model.zero_grad()
        loss = model(small_clip, *masks).loss
        loss.backward()
        found[model_class] = loss.item(), model.encoder.layernorm.weight.grad.clone()
    (first, stopped), (second, whole) = found.values()
    assert first == pytest.approx(second, rel=1e-6)
    assert not torch.allclose(stopped, whole, rtol=0.1)
    assert all(parameter.grad is None for parameter in model.target_encoder.parameters())


# ------------------------------------------------------------------------------------------------ training


@pytest.fixture(scope="module")
def quick_probe(claims):
    """In place of heads, which cost more than all the rest: accuracies that the share of the labels decides."""

    def probe(encoders, videos, output_dir, settings, *, heads, seeds, label_fractions=(1.0,), progress):
        (output_dir / "features").mkdir(parents=True)
        rows = [
            SummaryRow(encoder=encoders[0], fraction=share, head=str(head), is_selected=False, top1=top1, top5=top1)
            for share in label_fractions
            for head in heads
            for top1 in [SplitSummary(mean=0.5 * share + head.learning_rate, deviation=None, num_splits=1)]
        ]
        return dict.fromkeys(TASKS, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims, "make_task_videos", lambda *arguments: None)
        patch.setattr(claims, "probe_tasks", probe)
        yield


def make_study(claims, folder, *names, seeds=(0,), recipe=RECIPE):
    return claims.Study(
        recipe=Recipe.from_tree({"name": "small", **recipe}),
        claims=[claims.CLAIMS[name] for name in names],
        seeds=seeds,
        folder=folder,
        tasks=MadeTaskSettings(num_test=100),
        console=quiet(),
    )


@pytest.fixture(scope="module")
def studied(claims, quick_probe, tmp_path_factory):
    """A folder with a finished study of one claim, and its results."""
    folder = tmp_path_factory.mktemp("studied")
    return folder, make_study(claims, folder, "collapse", "baselines").run()


def test_each_training_is_finished_with_its_facts(claims, studied):
    folder, results = studied
    assert [training.variant for training in results.trainings] == ["reference", "no-ema", "no-stop-gradient"]
    for training in results.trainings:
        run = folder / training.variant / "seed-0"
        assert json.loads((run / "finished.json").read_text()) == asdict(training)
        assert training.seconds > 0
        assert 1 < training.rank < 24
        assert training.rank != training.first_rank
        assert (run / "videos").resolve() == (folder / "videos").resolve()
    assert [training.steps for training in results.trainings] == [3, 3, 2]


def test_without_stop_gradient_the_same_recipe_trains_other_weights(claims, studied, tmp_path):
    variant = claims.VARIANTS["no-stop-gradient"]
    recipe = vary_small(claims, variant)
    stopped = replace(variant, has_stop_gradient=True)
    found = claims.train(stopped, recipe, tmp_path / "run", videos=tmp_path / "videos", console=quiet())
    whole = studied[1].trainings[2]
    assert (whole.variant, whole.steps, whole.first_rank) == (found.variant, found.steps, found.first_rank)
    assert whole.rank != found.rank


def test_a_score_is_the_best_head_of_its_pooling_and_share(claims, studied):
    scores = {(score.encoder, score.pooling, score.share): score.accuracies for score in studied[1].scores}
    assert set(scores) == {
        *((name, "attentive", 1.0) for name in ("reference", "no-ema", "no-stop-gradient", "untrained", "pixels")),
        ("reference", "average", 1.0),
    }
    assert scores["reference", "average", 1.0]["motion"] == pytest.approx(50.3)


def test_no_cache_of_features_is_left(studied):
    assert (studied[0] / "probes" / "reference-seed-0").is_dir()
    assert not list(studied[0].rglob("features"))


def test_a_finished_training_is_not_trained_again(claims, studied, monkeypatch):
    folder, results = studied
    monkeypatch.setattr(claims, "prepare_run", lambda *arguments, **keywords: pytest.fail("it is trained again"))
    assert make_study(claims, folder, "collapse", "baselines").run() == results


def test_what_another_process_is_at_is_left_to_the_end(claims, studied, tmp_path, monkeypatch):
    folder, results = studied
    shutil.copytree(folder, tmp_path / "copy", symlinks=True)
    study, order, train = make_study(claims, tmp_path / "copy", "collapse", "baselines"), [], claims.train
    lock = (tmp_path / "copy" / "locks" / "reference-seed-0").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)

    def trained(variant, *arguments, **keywords):
        order.append(variant.name)
        if variant.name == "no-stop-gradient":
            lock.close()
        return train(variant, *arguments, **keywords)

    monkeypatch.setattr(claims, "train", trained)
    assert study.run() == results
    assert order == ["no-ema", "no-stop-gradient", "reference"]
    assert "waits for other processes, which are at reference-seed-0" in study.console.file.getvalue()


def test_seeds_of_other_calls_count_too(claims, studied):
    study = make_study(claims, studied[0], "collapse", seeds=(1,))
    assert [(variant.name, seed) for variant, seed in study.jobs()] == [
        *((name, 1) for name in ("reference", "no-ema", "no-stop-gradient")),
        *((name, 0) for name in ("reference", "no-ema", "no-stop-gradient")),
    ]


def test_a_folder_of_another_recipe_is_refused(claims, studied):
    other = {**RECIPE, "training": {**RECIPE["training"], "learning_rate": 2e-3}}
    with pytest.raises(ValueError, match=r"another recipe, differing in training\.learning_rate"):
        make_study(claims, studied[0], "collapse", recipe=other).run()


def test_an_interrupted_training_goes_on_and_ends_as_the_whole(claims, studied, tmp_path, monkeypatch):
    class StopAfterOne(claims.Stopwatch):
        def on_step_end(self, args, state, control, **kwargs):
            os.kill(os.getpid(), 2)

    whole = studied[1].trainings[2]  # which has a model class of its own
    monkeypatch.setattr(claims, "Stopwatch", StopAfterOne)
    with pytest.raises(InterruptedRunError):
        train_alone(claims, whole.variant, tmp_path)
    run = tmp_path / "run"
    assert not (run / "finished.json").exists()
    (run / "seconds.json").write_text('{"1": 100.0}')
    monkeypatch.undo()
    begun, prepare = [], claims.prepare_run
    monkeypatch.setattr(claims, "prepare_run", lambda *a, **k: begun.append(prepare(*a, **k)) or begun[0])
    found = train_alone(claims, whole.variant, tmp_path)
    assert begun[0].checkpoint == run / "checkpoint-1"
    assert replace(found, seconds=whole.seconds) == whole
    assert 100 < found.seconds < 200


def test_a_training_that_was_killed_after_its_last_step_is_measured_there(claims, tmp_path):
    """Its last checkpoint knows health after step 2 of 3 only."""
    first = train_alone(claims, "reference", tmp_path, health_steps=2)
    (tmp_path / "run" / "finished.json").unlink()
    again = train_alone(claims, "reference", tmp_path, health_steps=2)
    assert replace(again, seconds=first.seconds) == first
    assert again.seconds > 0
    assert first.rank == train_alone(claims, "reference", tmp_path / "other", health_steps=1).rank


def vary_small(claims, variant, **training):
    overrides = {f"training.{key}": value for key, value in {"seed": 0, **training}.items()}
    return claims.vary(Recipe.from_tree({"name": "small", **RECIPE}), variant).with_overrides(overrides)


def train_alone(claims, name, folder, **training):
    variant = claims.VARIANTS[name]
    recipe = vary_small(claims, variant, **training)
    return claims.train(variant, recipe, folder / "run", videos=folder / "videos", console=quiet())


# ------------------------------------------------------------------------------------------------ files


def test_table_and_picture_say_what_was_found(claims, tmp_path):
    names = [*claims.VARIANTS, "untrained", "pixels"]
    accuracies = {name: [40.0, 41.0] for name in names} | {"l2": [60.0, 61.0], "random-tube": [20.0, 21.0]}
    ranks = {name: [20.0, 21.0] for name in claims.VARIANTS}
    study = make_study(claims, tmp_path, *claims.CLAIMS)
    claims.write(study, make_results(claims, accuracies, ranks), "python benchmarks/claims.py")
    text = (tmp_path / "claims.md").read_text()
    assert "| loss | L2 loss | 2 | 3 | 1 | 20% | 20.5 ± 0.7 | shrinking-rank 2/2 | 70.5 ± 0.7 | 70.5 ± 0.7 |" in text
    assert "- loss (L1 is better than L2): does not hold here. against L2 loss, appearance -20.0" in text
    assert "    python benchmarks/claims.py\n" in text
    assert len([line for line in text.splitlines() if line.startswith("| ")]) == 2 + 1 + 17
    numbers = json.loads((tmp_path / "claims.json").read_text())
    assert {name: found["verdict"] for name, found in numbers["claims"].items()} == {
        **dict.fromkeys(claims.CLAIMS, "undecided"),
        "loss": "does not hold here",
    }
    assert numbers["claims"]["masks"]["comparisons"][0]["word"] == "holds"
    assert numbers["scores"][0]["accuracies"] == dict.fromkeys(TASKS, 40.5)
    with Image.open(tmp_path / "claims.png") as picture:
        assert picture.format == "PNG"
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 10


def test_one_claim_alone_is_drawn(claims):
    results = make_results(claims, {"reference": [40.0], "l2": [41.0]})
    assert claims.draw(results, [claims.CLAIMS["loss"]])[:4] == b"\x89PNG"


def test_the_command_line_chooses_claims_and_settings(claims):
    given = "--claims masks loss --seeds 4 --set max_steps=7 momentum=0.9 --num-test 5"
    study = claims.plan(claims.parse_arguments(given.split()))
    assert [claim.name for claim in study.claims] == ["masks", "loss"]
    assert [variant.name for variant in study.variants] == ["reference", "random-tube", "causal", "l2"]
    assert (study.recipe.training.max_steps, study.recipe.training.momentum) == (7, 0.9)
    assert (study.tasks.num_test, study.tasks.has_pictures, study.tasks.size) == (5, False, 64)


@pytest.mark.slow
def test_the_command_trains_judges_and_writes(tmp_path):
    recipe = tmp_path / "small.yaml"
    recipe.write_text(json.dumps(RECIPE))
    given = "--claims collapse pooling --seeds 0 1 --num-train 80 --num-test 80 --num-epochs 1"
    command = [sys.executable, SCRIPT, "--recipe", recipe, "--output-dir", tmp_path / "out", *given.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "training 6 of 6: no EMA, no stop-gradient, seed 1, 2 steps" in done.stdout
    assert "| pooling | average pooling | 2 | 3 |" in (tmp_path / "out" / "claims.md").read_text()
    assert (tmp_path / "out" / "claims.png").stat().st_size > 10_000
    assert not list((tmp_path / "out").rglob("features"))
