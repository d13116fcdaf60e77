from functools import partial
from itertools import pairwise

import pytest
from huggingface_hub import ModelCard

from vjepa_hub.core.run_files import read_run
from vjepa_hub.pretraining.recipe import load_recipe
from vjepa_hub.pretraining.run_record import record_recipe
from vjepa_hub.pretraining.trainer import VJEPATrainer
from vjepa_hub.publishing.card import is_ours, render_card
from vjepa_hub.publishing.facts import CardOptions, card_command, find_run, gather_facts


@pytest.fixture
def trainer(make_trainer, blobs):
    described = partial(VJEPATrainer, data_description="32 blobs")
    trainer = make_trainer(blobs(), trainer_class=described, max_steps=2, health_steps=1, health_batch_size=4)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    return trainer


def test_card_of_a_trainer_tells_data_steps_and_health(trainer):
    card = ModelCard.load(trainer.output_dir / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.license is None
    for row in ("| data | 32 blobs |", "| steps | 2 of 2 |", "| encoder | width 48, 2 layers |", "At step 2:"):
        assert row in card.text
    assert "Effective rank of the targets" in card.text


def test_record_of_a_trainer_has_its_numbers(trainer):
    record = read_run(trainer.output_dir)
    assert (record.steps, record.max_steps) == (2, 2)
    assert record.settings["training"]["momentum"] == trainer.args.momentum
    assert record.measures["Effective rank of the targets"] > 0


def test_card_is_written_again_while_nobody_changed_it(trainer):
    path = trainer.output_dir / "README.md"
    path.unlink()
    trainer.create_model_card()
    assert is_ours(path.read_text())


@pytest.mark.parametrize(
    "change", [lambda text: text.replace("# output", "# My V-JEPA"), lambda text: "my own card\n"]
)
def test_card_that_a_person_changed_is_kept(trainer, change, caplog):
    path = trainer.output_dir / "README.md"
    changed = change(path.read_text().replace(f"# {trainer.output_dir.name}", "# output"))
    path.write_text(changed)
    assert not is_ours(changed)
    trainer.create_model_card()
    assert path.read_text() == changed
    assert "stays as it is" in caplog.text


@pytest.mark.parametrize(
    ("initial", "licence"), [(None, None), ("vjepa-vitl16", "cc-by-nc-4.0"), ("vjepa-vit-tiny", None)]
)
def test_weights_that_go_back_to_released_ones_keep_their_licence(trainer, initial, licence):
    recipe = load_recipe("tiny").with_inputs(initial=initial).with_overrides(["learning_rate=0.25"])
    record = record_recipe(recipe, trainer.output_dir, (), weights_origin=f"initialised from {initial}")
    assert record.changed == {"training.learning_rate": 0.25}
    trainer.run_file.record = record
    trainer.create_model_card()
    run = find_run(trainer.output_dir)
    card = ModelCard(render_card(gather_facts(run, "me/model", trainer.model.config, CardOptions())))
    assert card.data.license == licence
    assert (f"initialised from {initial}" in card.text) == (initial is not None)


def test_checkpoint_that_a_run_begins_with_is_on_its_record_with_its_licence(trainer):
    recipe = load_recipe("tiny").with_overrides({"initial_checkpoint": "vjepa-vitl16"})
    trainer.run_file.record = record_recipe(recipe, trainer.output_dir, (), weights_origin="untrained, seed 0")
    trainer.create_model_card()
    assert read_run(trainer.output_dir).model.name == "vjepa-vitl16"
    run = find_run(trainer.output_dir)
    card = ModelCard(render_card(gather_facts(run, "me/model", trainer.model.config, CardOptions())))
    assert card.data.license == "cc-by-nc-4.0"
    assert "initialised from vjepa-vitl16" in card.text


def test_card_does_not_name_the_folder_of_a_first_checkpoint(tmp_path):
    recipe = load_recipe("tiny").with_overrides({"initial_checkpoint": str(tmp_path)})
    command = card_command(record_recipe(recipe, tmp_path / "run", (), weights_origin="untrained, seed 0"))
    assert "training.initial_checkpoint=MODEL" in command
    assert str(tmp_path) not in command


def test_command_of_a_call_from_python_gives_the_same_recipe(tmp_path):
    recipe = load_recipe("tiny").with_overrides(["masks.0.num_blocks=3", "learning_rate=0.25", "probe=none"])
    command = record_recipe(recipe, tmp_path, (), weights_origin="").command
    assignments = [word for before, word in pairwise(command) if before == "--set"]
    assert load_recipe(command[1]).with_overrides(assignments) == recipe
