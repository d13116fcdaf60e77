"""Cards: rendered from facts, completed where a person wrote one, and checked."""

import json
import time

import pytest
import yaml
from huggingface_hub import ModelCard

from vjepa_hub.core.run_files import DataFacts, ModelFacts, Result, RunRecord
from vjepa_hub.publishing.card import check_card, complete_card, is_ours, python_blocks, read_card, render_card
from vjepa_hub.publishing.facts import CardFacts, card_command, stated_results, training_rows

MEASURED = Result(
    task="video-classification",
    dataset="My gestures",
    metric="top-1 accuracy (%)",
    value=71.5,
    protocol="2 segments x 1 view",
    source="measured by vjepa-hub probe",
    command="vjepa-hub probe me/gestures --eval-only --val val.csv",
)


@pytest.fixture
def facts(small_config) -> CardFacts:
    return CardFacts(name="me/gestures", kind="probe", config=small_config, license="mit", results=(MEASURED,))


@pytest.fixture
def card(facts) -> str:
    return render_card(facts)


@pytest.fixture
def config(small_config):
    small_config.architectures = ["VJEPAForVideoClassification"]
    return small_config


# ---------------------------------------------------------------------------------------------------------------------
# From facts
# ---------------------------------------------------------------------------------------------------------------------


def test_card_is_read_by_the_hub_s_client_with_its_results(card):
    data = ModelCard(card).data
    assert (data.library_name, data.pipeline_tag, data.license) == ("transformers", "video-classification", "mit")
    (result,) = data.eval_results
    assert (result.dataset_name, result.dataset_type) == ("My gestures", "my-gestures")
    assert (result.metric_type, result.metric_value) == ("accuracy", 71.5)
    assert result.metric_args["protocol"] == "2 segments x 1 view"
    assert "| My gestures | top-1 accuracy (%) | 71.5 | 2 segments x 1 view | measured by vjepa-hub probe |" in card


def test_measured_and_published_results_on_one_data_set_keep_their_own_source(small_config):
    published = MEASURED.model_copy(update={"value": 80.8, "source": "the paper", "source_address": "https://a.org"})
    text = render_card(CardFacts(name="m", kind="probe", config=small_config, results=(published, MEASURED)))
    found = {result.metric_value: result.source_name for result in ModelCard(text).data.eval_results}
    assert found == {80.8: "the paper", 71.5: None}


@pytest.mark.parametrize("kind", ["features", "pretraining", "classifier", "probe"])
def test_card_of_every_kind_has_no_problem_beside_its_own_configuration(small_config, kind):
    is_classifier = kind in ("classifier", "probe")
    small_config.architectures = ["VJEPAForVideoClassification" if is_classifier else "VJEPAModel"]
    text = render_card(CardFacts(name="me/model", kind=kind, config=small_config, license="mit"))
    assert check_card(text, small_config) == []
    assert text.count("trust_remote_code=True)") == 2
    for heading in ("Use", "Intended use", "Training", "Results", "Limits", "Licence", "Citation"):
        assert f"\n## {heading}\n" in text


@pytest.mark.parametrize("name", ['my "best"\\model', "Ordner/größer"])
def test_name_with_quotation_marks_or_other_letters_still_gives_code_that_compiles(small_config, name):
    text = render_card(CardFacts(name=name, kind="classifier", config=small_config, license="mit"))
    assert check_card(text, small_config) == []
    assert all(json.dumps(name, ensure_ascii=False) in block for block in python_blocks(text))


@pytest.mark.parametrize("name", [" ", "a\nb"])
def test_name_that_is_no_line_is_refused(small_config, name):
    with pytest.raises(ValueError, match="name is "):
        CardFacts(name=name, kind="features", config=small_config)


def test_folder_that_is_called_like_a_registered_model_is_not_taken_for_it(small_config):
    text = render_card(CardFacts(name="vjepa-vitl16", kind="pretraining", config=small_config))
    assert "torch.hub" not in text
    assert "load_classifier" not in text


@pytest.fixture
def record(tmp_path) -> RunRecord:
    for name in ("model", "train.csv", "val.csv"):
        (tmp_path / name).touch()
    model, train, validation = (str(tmp_path / name) for name in ("model", "train.csv", "val.csv"))
    return RunRecord(
        kind="probe",
        command=(
            "probe",
            model,
            "--train",
            train,
            f"--val={validation}",
            "--output-dir",
            str(tmp_path),
            "--set",
            "a=1",
        ),
        changed={"num_epochs": 2, "crop_size": 64},
        model=ModelFacts.of(model, sha256="ab" * 32),
        data=(
            DataFacts.of("train", train, num_videos=9, num_classes=3, share=0.1, split=2, sha256="cd" * 32),
            DataFacts.of("validation", validation, num_videos=4, num_classes=3),
        ),
        results=(MEASURED.model_copy(update={"command": None}),),
    )


def test_command_of_a_card_names_no_path_of_the_machine(record):
    assert card_command(record) == (
        "vjepa-hub probe MODEL --train TRAIN_LABELS.csv --val=VALIDATION_LABELS.csv --output-dir RUN --set a=1"
    )


def test_protocol_of_a_result_tells_the_share_of_labels_and_every_changed_setting(record):
    (stated,) = stated_results(record)
    for part in (MEASURED.protocol, "10 % of the training labels, split 2", "num_epochs=2", "crop_size=64"):
        assert part in stated.protocol
    assert stated.command == card_command(record)


def test_training_facts_have_counts_and_fingerprints_in_place_of_paths(record, tmp_path):
    rows = training_rows(record)
    assert rows["started from"] == "MODEL (sha256 abababababab)"
    assert rows["train"] == "TRAIN_LABELS.csv, 9 videos, 3 classes, 10 % of the labels (sha256 cdcdcdcdcdcd)"
    assert str(tmp_path) not in str(rows)


# ---------------------------------------------------------------------------------------------------------------------
# A card that a person wrote
# ---------------------------------------------------------------------------------------------------------------------

PROSE = "# My model\n\nMy own words,  with two spaces,\ttabs and ümläuts. \n\n---\n\nA second part\n"
EDITED = {
    "prose alone": PROSE,
    "nothing between the lines": f"---\n\n---\n{PROSE}",
    "some metadata": f"---\nlicense: apache-2.0  # mine\ntags: [gestures]\nlanguage: de\n---\n{PROSE}",
    "empty values": f"---\nlibrary_name:\n\nlicense: mit\n---\n{PROSE}",
    "one line of YAML": f"---\n{{license: gpl-3.0, tags: [mine]}}\n---\n{PROSE}",
    "Windows line ends": f"---\nlicense: mit\ntags:\n- mine\n---\n{PROSE}".replace("\n", "\r\n"),
    "byte order mark": f"\ufeff---\nlicense: mit\n---\n{PROSE}",
    "own result": "---\nmodel-index:\n- name: mine\n  results:\n  - task: {type: video-classification}\n"
    "    dataset: {name: My gestures, type: g}\n    metrics: [{type: accuracy, value: 50}]\nlicense: mit\n---\n"
    + PROSE,
}


@pytest.mark.parametrize("existing", EDITED.values(), ids=EDITED.keys())
def test_completing_keeps_prose_to_the_letter_and_a_person_s_values_and_fills_the_gaps(existing, card):
    completed = complete_card(existing, card)
    before, after = read_card(existing), read_card(completed)
    assert after.text == before.text
    values = after.data.to_dict()
    assert values.keys() >= read_card(card).data.to_dict().keys()
    for key, value in before.data.to_dict().items():
        assert key == "model-index" or values[key] == value
    assert not is_ours(completed)
    assert complete_card(completed, card) == completed


def test_completed_windows_card_has_windows_line_ends_only(card):
    completed = complete_card(EDITED["Windows line ends"], card)
    assert "\n" not in completed.replace("\r\n", "")


def test_card_of_ours_and_an_empty_one_are_replaced(card, facts):
    other = render_card(CardFacts(name="other", kind="probe", config=facts.config))
    assert is_ours(other)
    assert complete_card(other, card) == card
    assert complete_card("\n", card) == card


@pytest.mark.parametrize("change", [("# me/gestures", "# Mine"), ("license: mit", "license: gpl-3.0"), ("}", ")")])
def test_card_with_one_changed_word_is_no_longer_ours_and_keeps_it(card, change):
    edited = card.replace(*change, 1)
    assert not is_ours(edited)
    assert complete_card(edited, card) == edited


def test_new_value_replaces_ours_and_leaves_a_person_s_result_on_the_same_data(card, facts):
    edited = ModelCard(card.replace("# me/gestures", "# Gestures"))
    own = ModelCard(card).data.eval_results[0]
    own.metric_value, own.metric_args = 90.0, None
    edited.data.eval_results.append(own)
    measured = MEASURED.model_copy(update={"value": 75.0})
    newer = render_card(CardFacts(name="me/gestures", kind="probe", config=facts.config, results=(measured,)))
    completed = complete_card(str(edited), newer)
    assert [result.metric_value for result in ModelCard(completed).data.eval_results] == [90.0, 75.0]


@pytest.mark.parametrize(
    "metadata",
    [
        "license: [mit",
        "just words",
        "- a list",
        "date: 2024-02-30",
        "[" * 5000,
        "a: &a [x]\nb: *a",
        "model-index: none",
    ],
)
def test_metadata_that_cannot_be_read_are_refused(card, config, metadata):
    existing = f"---\n{metadata}\n---\n{PROSE}"
    with pytest.raises(ValueError, match="metadata of the card cannot be read"):
        complete_card(existing, card)
    (problem,) = check_card(existing, config)
    assert len(problem) < 1000


# ---------------------------------------------------------------------------------------------------------------------
# Checks
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("license: mit\n", ""), "no license: add"),
        (("library_name: transformers\n", ""), "no library_name: add transformers"),
        (("license: mit\n", "license: 3\n"), "license is 3"),
        (("- vjepa\n", "- 2024\n"), "tags is [2024, "),
        (("    metrics:", "    measures:"), "model_index"),
        (("pipeline_tag: video-classification", "pipeline_tag: feature-extraction"), "write 'video-classification'"),
        (("import pipeline", "import"), "Python block 1 does not compile"),
        (("import pipeline", f"{'(' * 3000}"), "Python block 1 does not compile"),
    ],
)
def test_problem_of_a_card_is_found_and_told(card, config, change, problem):
    assert change[0] in card
    (found,) = check_card(card.replace(*change, 1), config)
    assert problem in found


def test_card_that_hides_that_its_model_is_untrained_is_a_problem(card, config):
    config.weights_origin = "untrained, seed 0"
    (found,) = check_card(card, config)
    assert "untrained, seed 0" in found
    assert check_card(card.replace("## Use", "It is untrained."), config) == []


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("```python\na\n```\n~~~py\n```\n~~~\n", ["a\n", "```\n"]),
        ("````python title\n```\n````\n", ["```\n"]),
        ("- item\n\n  ```python\n  if a:\n      b\n  ```\n", ["if a:\n    b\n"]),
        ("```\na\n```\n```bash\nb\n```\n", []),
        ("---\na: 1\n---\n```python\na\n```\n", ["a\n"]),
    ],
)
def test_python_blocks_of_a_card(text, blocks):
    assert python_blocks(text) == blocks


LAUGHS = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else 'x'] * 10)}]\n" for i in range(10))


@pytest.mark.parametrize(
    "text",
    [
        *("[" * 20_000, "`" * 20_000, "* " * 20_000, "---\n" * 10_000, "> " * 10_000),
        f"---\n{LAUGHS}tags: *a9\n---\n",
    ],
    ids=lambda text: text[:6],
)
def test_card_made_to_be_slow_is_checked_in_seconds(text, config):
    began = time.monotonic()
    check_card(text, config)
    assert time.monotonic() - began < 10


def test_yaml_of_a_card_is_that_of_the_hub(card):
    assert yaml.safe_load(card.split("---\n")[1])["model-index"][0]["name"] == "me/gestures"
