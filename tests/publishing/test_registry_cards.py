"""Cards of the registry's models: made from its facts, and checked against the files."""

import pytest
from huggingface_hub import ModelCard

from vjepa_hub.hub.class_names import UNCERTAIN
from vjepa_hub.hub.registry import EVALUATION_SETS, MODELS
from vjepa_hub.publishing.card import render_card
from vjepa_hub.publishing.registry_cards import main, registered_facts


@pytest.mark.parametrize(
    ("name", "dataset"),
    [*(("vjepa-vitl16", dataset) for dataset in MODELS["vjepa-vitl16"].probes), ("vjepa2-vitl16", "diving48")],
)
def test_card_of_a_released_probe_says_why_its_labels_are_numbers(name, dataset):
    text = render_card(registered_facts(name, dataset))
    assert ("## Labels" in text) == (dataset in UNCERTAIN)
    assert UNCERTAIN.get(dataset, "") in text
    assert f"| classes | {EVALUATION_SETS[dataset].num_classes:,} |" in text
    (result,) = ModelCard(text).data.eval_results
    assert result.metric_value == MODELS[name].results[dataset]


def test_probe_that_there_is_not_is_told_with_those_there_are():
    with pytest.raises(KeyError, match=r"'vjepa-vitl16' has no probe for 'k600'; there are: k400, ssv2"):
        registered_facts("vjepa-vitl16", "k600")


def test_command_writes_all_cards_and_its_check_names_the_one_that_differs(tmp_path):
    folder = tmp_path / "cards"
    main(["--output-dir", str(folder)])
    assert {path.stem for path in folder.iterdir()} == set(MODELS)
    main(["--check", "--output-dir", str(folder)])
    (folder / "vjepa-vith16.md").write_text("changed")
    (folder / "vjepa-gone.md").write_text("left over")
    with pytest.raises(SystemExit, match=r"vjepa-gone\.md, vjepa-vith16\.md; run python -m .*registry_cards"):
        main(["--check", "--output-dir", str(folder)])
    assert (folder / "vjepa-vith16.md").read_text() == "changed"
