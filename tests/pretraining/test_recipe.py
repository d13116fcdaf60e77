import re

import pytest

from vjepa_hub.data.masking import CAUSAL, LONG_RANGE, RANDOM_TUBE, SHORT_RANGE
from vjepa_hub.data.synthetic.moving_pictures import MovingPictureSettings
from vjepa_hub.data.synthetic.shapes import SyntheticVideoSettings
from vjepa_hub.hub.registry import MODELS
from vjepa_hub.pretraining.arguments import CHECKPOINTING
from vjepa_hub.pretraining.recipe import (
    DataShare,
    Recipe,
    accumulation_steps,
    differing_keys,
    load_recipe,
)
from vjepa_hub.pretraining.recipes import recipe_names, recipe_path
from vjepa_hub.pretraining.run import describe_momentum

RELEASED = {"vitl16": "vjepa-vitl16", "vith16": "vjepa-vith16", "vith16-384": "vjepa-vith16-384"}
SMALL = {"hidden_size": 48, "num_attention_heads": 4, "pred_hidden_size": 24, "pred_num_attention_heads": 4}
# DESIGN.md, section 3
RELEASED_VALUES = {
    "max_steps": 300 * 300,
    "steps_per_epoch": 300,
    "warmup_steps": 40 * 300,
    "clip_after_steps": 41 * 300,
    "start_learning_rate": 2e-4,
    "learning_rate": 6.25e-4,
    "final_learning_rate": 1e-6,
    "weight_decay": 0.04,
    "final_weight_decay": 0.4,
    "momentum": 0.998,
    "final_momentum": 1.0,
    "schedule_stretch": 1.25,
    "max_grad_norm": 10.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "bf16": True,
    "objective": "l1",
}


def small_recipe(**sections):
    return Recipe.from_tree({"name": "small", "model": SMALL, **sections})


def test_the_bundled_recipes_are_those_of_the_documentation():
    assert recipe_names() == ["base", "small", "tiny", "vit-tiny", "vith16", "vith16-384", "vitl16"]


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_recipe_has_the_released_values(name):
    recipe = load_recipe(name)
    assert {key: getattr(recipe.training, key) for key in RELEASED_VALUES} == RELEASED_VALUES
    assert recipe.masks == (SHORT_RANGE, LONG_RANGE)
    assert recipe.training.global_batch_size == (2400 if name == "vith16-384" else 3072)
    per_device, devices = recipe.published["per_device_batch_size"], recipe.published["num_devices"]
    assert per_device * devices == recipe.training.global_batch_size
    assert (recipe.clips.frame_step, recipe.clips.scale, recipe.clips.ratio) == (4, (0.3, 1.0), (0.75, 1.35))


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_recipe_trains_the_architecture_of_the_registry(name):
    built, registered = load_recipe(name).config().to_dict(), MODELS[RELEASED[name]].config().to_dict()
    assert built == registered


@pytest.mark.parametrize("name", RELEASED)
def test_every_released_value_names_its_source(name):
    """All lines with a value, but for the section of this machine and the lines that only begin a section."""
    lines = recipe_path(name).read_text().splitlines()
    first, last = lines.index("model:"), lines.index("  # this machine")
    for line in lines[first:last]:
        value = line.split("#")[0].partition(":")[2].strip()
        is_ours = line.startswith(("data:", "synthetic:")) or "- kind:" in line
        if value and not is_ours and not line.startswith("    "):  # masks name theirs in the line above them
            assert re.search(r"# .*\[[cpr]\]", line), line


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_read_back_as_it_was_written(name, tmp_path):
    recipe = load_recipe(name).with_overrides(["clip_duration=2.5", "training.run_name='no'", "data=[a.csv, b.csv]"])
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize("name", ["tiny", "base", "small", *RELEASED])
def test_the_target_encoder_of_a_recipe_forgets_within_a_third_of_the_run(name, tmp_path):
    recipe = load_recipe(name).with_overrides({"bf16": False, "use_cpu": True})
    args = recipe.arguments(tmp_path)
    facts = describe_momentum(args, args.max_steps)
    assert [fact.is_warning for fact in facts] == [False]
    assert re.search(r"half-life is (99|346|693) steps, [\d,]+ clips", facts[0].text)


@pytest.mark.parametrize(
    ("override", "section", "name", "value"),
    [
        ("learning_rate=1e-3", "training", "learning_rate", 1e-3),
        ("training.learning_rate=1e-3", "training", "learning_rate", 1e-3),
        ("hidden_size=96", "model", "hidden_size", 96),
        ("max_steps=1e3", "training", "max_steps", 1000),
        ("save_strategy=no", "training", "save_strategy", "no"),
        ("torch_compile=true", "training", "torch_compile", True),
        ("gradient_checkpointing=true", "training", CHECKPOINTING, True),
        ("activation_checkpointing=true", "training", CHECKPOINTING, True),
        ("gradient_accumulation_steps=4", "training", "gradient_accumulation_steps", 4),
        ("objective=l2", "training", "objective", "l2"),
        ("targets=pixels", "training", "targets", "pixels"),
        ("probe=average", "training", "probe", "average"),
    ],
)
def test_any_value_can_be_overridden(override, section, name, value):
    changed = getattr(getattr(small_recipe().with_overrides([override]), section), name)
    assert changed == value
    assert type(changed) is type(value)


@pytest.mark.parametrize(
    ("override", "masks"),
    [
        ("masks=random-tube", (RANDOM_TUBE,)),
        ("masks=causal", (CAUSAL,)),
        (
            "masks=[long-range, short-range]",
            (LONG_RANGE.with_values(mask_index=0), SHORT_RANGE.with_values(mask_index=1)),
        ),
        ("masks.1.num_blocks=3", (SHORT_RANGE, LONG_RANGE.with_values(num_blocks=3))),
        ("masks=[{kind: random-tube, ratio: 0.5}]", (RANDOM_TUBE.with_values(ratio=0.5),)),
    ],
)
def test_masks_have_names_and_settings(override, masks):
    assert small_recipe().with_overrides([override]).masks == masks


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learning_rat=1", "the nearest is 'learning_rate'"),
        ("model.hiden_size=3", "model has no 'hiden_size'; the nearest is 'hidden_size'"),
        ("modle.hidden_size=3", "the recipe has no 'modle.hidden_size'"),
        ("clips.frame_stp=3", "has no 'frame_stp'; the nearest is 'frame_step'"),
        ("masks=random-tubes", "the nearest is 'random-tube'"),
        ("masks.5.num_blocks=1", "the list has 2 entries"),
        ("hub_token=secret", "log in with"),
        ("lr_scheduler_type=cosine", "start_learning_rate"),
        ("training.output_dir=x", "--output-dir"),
    ],
)
def test_an_unknown_key_raises_and_names_the_nearest(override, message):
    with pytest.raises(KeyError) as caught:
        small_recipe().with_overrides([override])
    assert message in caught.value.args[0]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learning_rate=fast", "training.learning_rate is 'fast', but must be a number"),
        ("bf16=maybe", "training.bf16 is 'maybe', but must be true or false"),
        ("max_steps=1.5", "training.max_steps is 1.5, but must be an integer"),
        ("momentum=2", "training.momentum is '2', but must be less than or equal to 1"),
        ("hidden_size=true", "model.hidden_size is 'true', but must be an integer"),
        ("masks=[{kind: tube}]", "masks.0.kind is 'tube', but must be 'multi-block' or 'random-tube'"),
        ("masks=[]", "masks is"),
        ("hidden_size=50", "multiple of num_attention_heads"),
        ("masks=[short-range, long-range, causal]", "model.pred_num_mask_tokens=3"),
        ("masks.1.spatial_scale=[1, 1]", "without context"),
        ("scale=[0.3, 2]", "clips.scale.1 is '2'"),
        ("data=[{path: a.csv, weight: 0}]", "data.0.weight is '0', but must be greater than 0"),
        ("data=[{weight: 1}]", "data.0 has no 'path'"),
        ("data=[{path: a.csv, weight: 1}, b.csv]", "1 of 2 sources of data have a weight"),
        ("global_batch_size=8", "leave one of them out"),
        ("learning_rate", "write KEY=VALUE"),
        ("masks=[1", "no YAML"),
    ],
)
def test_a_wrong_value_raises_and_says_what_is_right(override, message):
    recipe = small_recipe(training={"gradient_accumulation_steps": 2})
    with pytest.raises(ValueError, match=re.escape(message)):
        recipe.with_overrides([override])


def test_a_key_of_two_sections_has_to_name_one():
    with pytest.raises(KeyError, match=r"write synthetic.seed or training.seed"):
        load_recipe("tiny").with_overrides(["seed=1"])
    assert load_recipe("vitl16").with_overrides(["seed=1"]).training.seed == 1


def test_made_video_of_pictures_is_asked_for_by_its_kind_and_read_back(tmp_path):
    shapes = load_recipe("tiny")
    pictures = shapes.with_overrides(["synthetic.kind=fashion-mnist", "num_videos=12"])
    assert type(shapes.synthetic) is SyntheticVideoSettings
    assert pictures.synthetic == MovingPictureSettings(num_videos=12, size=64, num_frames=32, fps=16)
    assert differing_keys(shapes, pictures) == ["synthetic.kind", "synthetic.num_videos", "synthetic.scene"]
    assert pictures.with_overrides(["synthetic.scene=grainy"]).synthetic.scene == "grainy"
    back = ["synthetic.scene=grainy", "synthetic.kind=shapes", "num_videos=640"]
    assert pictures.with_overrides(back) == shapes
    (tmp_path / "recipe.yaml").write_text(pictures.to_yaml())
    assert load_recipe(tmp_path / "recipe.yaml") == pictures


def test_a_recipe_from_before_there_were_kinds_makes_shapes():
    tree = load_recipe("tiny").to_tree()
    del tree["synthetic"]["kind"]
    assert Recipe.from_tree({"name": "tiny", **tree}) == load_recipe("tiny")


def test_an_unknown_kind_of_made_video_is_an_error_that_names_the_known_ones():
    with pytest.raises(ValueError, match=r"synthetic.kind is 'mnist', but must be 'shapes' or 'fashion-mnist'"):
        load_recipe("tiny").with_overrides(["synthetic.kind=mnist"])


def test_a_key_that_stands_twice_is_refused(tmp_path):
    file = tmp_path / "twice.yaml"
    file.write_text("model: {hidden_size: 48}\ntraining:\n  momentum: 0.9\n  momentum: 0.99\n")
    with pytest.raises(ValueError, match="the key 'momentum' stands twice"):
        load_recipe(file)


def test_an_unknown_recipe_is_answered_with_those_that_there_are():
    with pytest.raises(KeyError, match=r"recipes: base, small, .* the nearest is 'vitl16'"):
        load_recipe("vitl14")


def test_differing_keys_are_named_with_dots():
    recipe = small_recipe()
    changed = recipe.with_overrides({"momentum": 0.9, "masks.0.num_blocks": 3, "data": ["a.csv"]})
    differing = ["masks.0.num_blocks", "data.0.path", "data.0.weight", "training.momentum"]
    assert sorted(differing_keys(recipe, changed)) == sorted(differing)
    assert differing_keys(recipe, small_recipe()) == []


def test_the_global_batch_is_reached_by_accumulation(tmp_path):
    recipe = small_recipe(training={"global_batch_size": 96, "per_device_train_batch_size": 24, "use_cpu": True})
    args = recipe.arguments(tmp_path)
    assert args.gradient_accumulation_steps == 4
    assert args.clips_per_step == 96
    assert accumulation_steps(3072, batch_size=24, num_processes=128) == 1


@pytest.mark.parametrize(
    ("wanted", "batch_size", "num_processes", "remedies"),
    [
        (3072, 24, 100, "global_batch_size=2400"),
        (3072, 24, 256, "global_batch_size=6144 or per_device_train_batch_size=12"),
        (100, 32, 1, "global_batch_size=96 or per_device_train_batch_size=25"),
        (0, 4, 2, "global_batch_size=8"),
    ],
)
def test_a_global_batch_that_does_not_come_out_even_is_answered_with_one_that_does(
    wanted, batch_size, num_processes, remedies
):
    with pytest.raises(ValueError, match=f"set {remedies}$"):
        accumulation_steps(wanted, batch_size=batch_size, num_processes=num_processes)
    for remedy in remedies.split(" or "):
        name, _, value = remedy.partition("=")
        sizes = {"global_batch_size": wanted, "per_device_train_batch_size": batch_size} | {name: int(value)}
        whole, part = sizes.values()
        assert accumulation_steps(whole, batch_size=part, num_processes=num_processes) >= 1


def test_checkpointing_compile_and_accumulation_reach_the_arguments(tmp_path):
    overrides = ["torch_compile=true", "gradient_checkpointing=true", "gradient_accumulation_steps=4", "use_cpu=true"]
    args = small_recipe().with_overrides(overrides).arguments(tmp_path)
    assert args.torch_compile
    assert getattr(args, CHECKPOINTING)
    assert args.gradient_accumulation_steps == 4


def test_given_data_replaces_that_of_the_recipe_and_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "videos.csv").write_text("a.mp4 0\n")
    recipe = small_recipe(data=["old.csv"]).with_inputs(data=["videos.csv", "s3://bucket/a.tar"])
    assert recipe.data == (DataShare(path=str(tmp_path / "videos.csv")), DataShare(path="s3://bucket/a.tar"))
    assert small_recipe(data=["old.csv"]).with_inputs().data == (DataShare(path="old.csv"),)


def test_two_sets_of_first_weights_are_refused():
    with pytest.raises(ValueError, match=r"initial 'first'.*initial_checkpoint 'second'.*leave the other out"):
        load_recipe("tiny").with_overrides({"initial": "first", "initial_checkpoint": "second"})
