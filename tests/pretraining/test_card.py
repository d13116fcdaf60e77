import pytest
from huggingface_hub import ModelCard

from vjepa_hub.pretraining.card import card_text, is_ours, write_card
from vjepa_hub.pretraining.recipe import load_recipe


@pytest.fixture
def trainer(make_trainer, blobs):
    trainer = make_trainer(blobs(), max_steps=2, health_steps=1, health_batch_size=4)
    trainer.data_description = "32 blobs"
    trainer.train()
    return trainer


def test_a_card_says_what_was_trained_on_what_and_how_it_went(trainer, tmp_path):
    write_card(tmp_path, trainer)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.license is None
    assert "| data | 32 blobs |" in card.text
    assert "| steps | 2 of 2 |" in card.text
    assert "| encoder | width 48, 2 layers |" in card.text
    assert "At step 2:" in card.text
    assert "Effective rank of the targets" in card.text
    assert "trust_remote_code=True" in card.text


def test_a_card_is_written_again_while_nobody_changed_it(trainer, tmp_path):
    write_card(tmp_path, trainer)
    trainer.data_description = "33 blobs"
    write_card(tmp_path, trainer)
    assert "33 blobs" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    "change", [lambda text: text.replace("# V-JEPA", "# My V-JEPA"), lambda text: "my own card\n"]
)
def test_a_card_that_a_person_changed_is_kept(trainer, tmp_path, change, caplog):
    write_card(tmp_path, trainer)
    path = tmp_path / "README.md"
    changed = change(path.read_text())
    path.write_text(changed)
    assert not is_ours(changed)
    write_card(tmp_path, trainer)
    assert path.read_text() == changed
    assert "stays as it is" in caplog.text


@pytest.mark.parametrize(
    ("initial", "licence"), [(None, None), ("vjepa-vitl16", "cc-by-nc-4.0"), ("vjepa-vit-tiny", None)]
)
def test_what_goes_on_from_released_weights_keeps_their_licence(trainer, tmp_path, initial, licence):
    recipe = load_recipe("tiny").with_inputs(initial=initial)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    card = ModelCard(card_text(tmp_path, trainer))
    assert card.data.license == licence
    assert ("The licence of" in card.text) == (initial is not None)
