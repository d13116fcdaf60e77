"""Cards: what is made from facts, what a person wrote and keeps, and what is found wrong."""

import json
import random
import time

import pytest
import yaml
from huggingface_hub import ModelCard

from vjepa_hub.publishing.card_checks import python_blocks
from vjepa_hub.publishing.card_metadata import merge_model_index, read_metadata, split_card
from vjepa_hub.publishing.cards import (
    CardFacts,
    CardResult,
    check_card,
    is_ours,
    merge_card,
    render_card,
)

MEASURED = CardResult(
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
# What is made
# ---------------------------------------------------------------------------------------------------------------------


def test_card_is_read_by_the_hub_s_client_with_its_results(card):
    data = ModelCard(card).data
    assert (data.library_name, data.pipeline_tag, data.license) == ("transformers", "video-classification", "mit")
    (result,) = data.eval_results
    assert (result.dataset_name, result.dataset_type) == ("My gestures", "my-gestures")
    assert (result.metric_type, result.metric_value) == ("accuracy", 71.5)
    assert result.metric_args["protocol"] == "2 segments x 1 view"
    assert "| My gestures | top-1 accuracy (%) | 71.5 | 2 segments x 1 view | measured by vjepa-hub probe |" in card


def test_measured_and_published_results_on_one_data_set_keep_their_own_source(facts, small_config):
    published = CardResult(
        task="video-classification",
        dataset="My gestures",
        metric="top-1 accuracy (%)",
        value=80.8,
        protocol="8 x 3",
        source="the paper",
        source_address="https://arxiv.org/abs/2404.08471",
    )
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


@pytest.mark.parametrize(("field", "value"), [("kind", "encoder"), ("name", " "), ("name", "a\nb")])
def test_facts_that_cannot_be_are_refused_with_the_value(small_config, field, value):
    with pytest.raises(ValueError, match=f"{field} is "):
        CardFacts(**{"name": "m", "kind": "features", "config": small_config, field: value})


def test_extra_sections_and_a_title_of_one_s_own_appear(small_config):
    text = render_card(
        CardFacts(name="m", kind="pretraining", config=small_config, title="Mine", sections={"Health": "Good."})
    )
    assert "\n# Mine\n" in text
    assert "\n## Health\n\nGood.\n" in text


def test_folder_that_is_called_like_a_registered_model_is_not_taken_for_it(small_config):
    text = render_card(CardFacts(name="vjepa-vitl16", kind="pretraining", config=small_config))
    assert "torch.hub" not in text
    assert "load_classifier" not in text


# ---------------------------------------------------------------------------------------------------------------------
# What a person wrote
# ---------------------------------------------------------------------------------------------------------------------

PROSE = "# My model\n\nMy own words,  with two spaces,\ttabs and ümläuts. \n\n---\n\nA second part\n"
EDITED = {
    "prose alone": PROSE,
    "nothing between the lines": f"---\n---\n{PROSE}",
    "some metadata": f"---\nlicense: apache-2.0  # mine\ntags: [gestures]\nlanguage: de\n---\n{PROSE}",
    "comments and empty values": "---\n# what it is\nlibrary_name:\n\n# how it may be used\nlicense: mit\n---\n"
    + PROSE,
    "one line of YAML": f"---\n{{license: gpl-3.0, tags: [mine]}}\n---\n{PROSE}",
    "Windows line ends": f"---\nlicense: mit\ntags:\n- mine\n---\n{PROSE}".replace("\n", "\r\n"),
    "byte order mark": f"\ufeff---\nlicense: mit\n---\n{PROSE}",
    "byte order mark and prose": f"\ufeff{PROSE}",
    "no line end": "---\nlicense: mit\n---",
    "own result": "---\nmodel-index:\n- name: mine\n  results:\n  - task: {type: video-classification}\n"
    "    dataset: {name: My gestures, type: g}\n    metrics: [{type: accuracy, value: 50}]\nlicense: mit\n---\n"
    + PROSE,
    "model-index in no known form": f"---\nmodel-index: none\nlicense: mit\n---\n{PROSE}",
}


@pytest.mark.parametrize("existing", EDITED.values(), ids=EDITED.keys())
def test_merge_keeps_prose_to_the_letter_and_a_person_s_values_and_fills_the_gaps(existing, card):
    merged = merge_card(existing, card)
    assert split_card(merged).prose.endswith(split_card(existing).prose.removeprefix("\ufeff"))
    before, after, ours = read_metadata(existing), read_metadata(merged), read_metadata(card)
    assert after.keys() == before.keys() | ours.keys()
    for key, value in before.items():
        assert key == "model-index" or after[key] == (value or ours[key])
    assert not is_ours(merged)
    assert merged.startswith("\ufeff") == existing.startswith("\ufeff")


@pytest.mark.parametrize("existing", EDITED.values(), ids=EDITED.keys())
def test_merging_again_changes_nothing(existing, card):
    merged = merge_card(existing, card)
    assert merge_card(merged, card) == merged


PIECES = [*"ab #:'\"{}[]|>é\t\\*&!%\x85\u2028\ufeff", "\n", "\r\n", "---", "\n---\n", "- ", "- name: x\n"]
KEYS = ["license", "tags", "library_name", "model-index", "language", "pipeline_tag", "a:b", "größe", "1"]


def _random_card(draw: random.Random) -> str:
    def text(most: int) -> str:
        return "".join(draw.choices(PIECES, k=draw.randrange(most)))

    values = {
        key: draw.choice([None, 3, True, text(12), [text(6)], {text(4): text(6)}]) for key in draw.sample(KEYS, 4)
    }
    style = {"default_flow_style": draw.choice([True, False, None]), "width": draw.choice([20, 80])}
    card = f"---\n{yaml.safe_dump(values, allow_unicode=True, **style)}---\n{text(30)}"
    return card.replace("\n", "\r\n") if draw.random() < 0.2 else card


def test_merging_any_card_keeps_what_is_a_person_s_and_can_be_repeated(card):
    draw = random.Random(0)
    for _ in range(100):
        existing = _random_card(draw)
        merged = merge_card(existing, card)
        assert merge_card(merged, card) == merged, existing
        assert split_card(merged).prose == split_card(existing).prose, existing
        before, after = read_metadata(existing), read_metadata(merged)
        assert all(after[key] == value for key, value in before.items() if value not in (None, "", [], {})), existing
        assert after.keys() == before.keys() | read_metadata(card).keys(), existing


def test_merge_keeps_comments_and_the_form_of_a_person_s_metadata(card):
    merged = merge_card(EDITED["comments and empty values"], card)
    assert "# what it is\nlibrary_name: transformers\n\n# how it may be used\nlicense: mit\n" in merged
    assert "license: apache-2.0  # mine\ntags: [gestures]\nlanguage: de\n" in merge_card(EDITED["some metadata"], card)


def test_merged_windows_card_has_windows_line_ends_only(card):
    merged = merge_card(EDITED["Windows line ends"], card)
    assert "\n" not in merged.replace("\r\n", "")
    assert ModelCard(merged).data.library_name == "transformers"


def test_card_of_ours_and_an_empty_one_are_replaced(card, facts):
    other = render_card(CardFacts(name="other", kind="probe", config=facts.config))
    assert is_ours(other)
    assert merge_card(other, card) == card
    assert merge_card("\n", card) == card


@pytest.mark.parametrize("change", [("# me/gestures", "# Gestures"), ("license: mit", "license: gpl-3.0"), ("}", ")")])
def test_card_with_one_changed_word_is_no_longer_ours_and_keeps_it(card, facts, change):
    edited = card.replace(*change, 1)
    assert not is_ours(edited)
    newer = render_card(CardFacts(name="me/gestures", kind="probe", config=facts.config, license="mit"))
    assert merge_card(edited, newer) == edited


def test_new_value_replaces_ours_and_leaves_a_person_s_result_on_the_same_data(card, facts):
    edited = card.replace("# me/gestures", "# Gestures")
    metadata = read_metadata(edited)
    own = {"type": "accuracy", "name": "top-1 accuracy (%)", "value": 90.0}
    metadata["model-index"][0]["results"].append(
        {"task": {"type": "video-classification"}, "dataset": {"name": "My gestures", "type": "g"}, "metrics": [own]}
    )
    edited = f"---\n{yaml.safe_dump(metadata)}---\n{split_card(edited).prose}"
    newer = render_card(
        CardFacts(
            name="me/gestures",
            kind="probe",
            config=facts.config,
            results=(CardResult(**{**vars(MEASURED), "value": 75.0}),),
        )
    )
    merged = merge_card(edited, newer)
    assert [result.metric_value for result in ModelCard(merged).data.eval_results] == [90.0, 75.0]
    assert merge_card(merged, newer) == merged


def test_results_of_other_metrics_and_models_stay(facts):
    ours = read_metadata(render_card(facts))["model-index"]
    theirs = json.loads(json.dumps(ours))
    theirs[0]["results"][0]["metrics"][0]["name"] = "mean of classes (%)"
    theirs.append({"name": "another", "results": theirs[0]["results"]})
    merged = merge_model_index(theirs, ours)
    assert merged == [{"name": "me/gestures", "results": theirs[0]["results"] + ours[0]["results"]}, theirs[1]]


@pytest.mark.parametrize("metadata", ["license: [mit", "just words", "- a list", "date: 2024-02-30", "[" * 5000])
def test_metadata_that_cannot_be_read_stop_the_merge_and_are_named(card, metadata):
    existing = f"---\n{metadata}\n---\n{PROSE}"
    with pytest.raises(ValueError, match="the metadata of the card are"):
        merge_card(existing, card)


# ---------------------------------------------------------------------------------------------------------------------
# What is found wrong
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("license: mit\n", ""), "the metadata have no license: add"),
        (("library_name: transformers\n", ""), "the metadata have no library_name: add transformers"),
        (("license: mit\n", "license: [mit\n"), "the metadata of the card are no YAML"),
        (("license: mit\n", "license: 3\n"), "license is 3, but must be a text"),
        (("- vjepa\n", "- 2024\n"), "tags is [2024, "),
        (("    metrics:", "    measures:"), "Invalid `model_index`"),
        (("pipeline_tag: video-classification", "pipeline_tag: feature-extraction"), "write 'video-classification'"),
        (("| encoder | width 48, 2 layers |", "| encoder | width 1024, 24 layers |"), "configuration says 'width 48"),
        (("| classes | 3 |", "| classes | 400 |"), "the card says 'classes: 400', but the configuration says '3'"),
        (("## Use", "See [the plot](plots/loss.png)."), "the link 'plots/loss.png' leads to no file"),
        (("## Use", '<img width="9" src="loss.png">'), "the link 'loss.png' leads to no file"),
        (("## Use", "[loss]: loss.png"), "the link 'loss.png' leads to no file"),
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
    assert "the weights are 'untrained, seed 0', which the card does not say" in found
    assert check_card(card.replace("## Use", "It is untrained."), config) == []


def test_stated_shape_of_features_is_compared_with_the_configuration(small_config):
    text = render_card(CardFacts(name="m", kind="features", config=small_config, license="mit"))
    small_config.hidden_size = 96
    assert any(
        "features are (1, 32, 48), but by the configuration they are (1, 32, 96)" in p
        for p in check_card(text, small_config)
    )


@pytest.mark.parametrize(
    "link",
    [
        "[web](https://arxiv.org/abs/2404.08471)",
        "[mail](mailto:a@b.org)",
        "[below](#limits)",
        "[file](./plots/my%20loss.png?raw=true)",
        "[folder](plots)",
        "`[code](nowhere.png)`",
        "```\n[code](nowhere.png)\n```",
    ],
)
def test_links_that_lead_somewhere_are_no_problem(card, config, link):
    assert check_card(card.replace("## Use", link, 1), config, files=["plots/my loss.png"]) == []


def test_problem_with_a_huge_value_is_told_in_few_words(card, config):
    bomb = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    text = card.replace("license: mit\n", f"a0: &a0 [x]\n{bomb}license: *a11\n")
    (found,) = check_card(text, config)
    assert found.startswith("license is [[[")
    assert len(found) < 1000


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("```python\na\n```\n~~~py\n```\n~~~\n", ["a\n", "```\n"]),
        ("````python title\n```\n````\n", ["```\n"]),
        ("- item\n\n  ```python\n  if a:\n      b\n  ```\n", ["if a:\n    b\n"]),
        ("```\na\n```\n```bash\nb\n```\n", []),
        ("```python\r\na\r\n```\r\n", ["a\n"]),
        ("```python\nnever closed", ["never closed"]),
    ],
)
def test_python_blocks_are_found_as_markdown_fences_them(text, blocks):
    assert python_blocks(text) == blocks


def test_check_of_a_card_that_is_made_to_take_long_takes_a_moment(config):
    started = time.monotonic()
    for text in (
        "|" + " " * 50_000,
        "[" * 50_000,
        "```python\n" * 10_000,
        "---\n" * 20_000,
        "`" * 50_000,
        "](" * 50_000,
    ):
        check_card(text, config)
    assert time.monotonic() - started < 10
