import json

import pytest

from vjepa_hub.publishing.machine_paths import find_machine_paths, shorten_machine_paths


@pytest.mark.parametrize(
    ("text", "shortened"),
    [
        ("from the folder /home/me/runs/x (pretrained)", "from the folder x (pretrained)"),
        ("/data/k400/train.csv", "train.csv"),
        ("- path: ~/videos/cats.csv", "- path: cats.csv"),
        ("file:///home/me/a.csv", "a.csv"),
        (r"C:\Users\me\x.csv", "x.csv"),
        ("--val=/data/sets/v.csv --train=/data/sets/t.csv", "--val=v.csv --train=t.csv"),
        ("/home/me/x/; attentive probe", "x; attentive probe"),
        ("a.csv,/home/me/b.csv", "a.csv,b.csv"),
    ],
)
def test_absolute_paths_keep_their_last_name_alone(text, shortened):
    assert find_machine_paths(text)
    assert shorten_machine_paths(text) == shortened
    assert not find_machine_paths(shortened)


@pytest.mark.parametrize(
    "text",
    [
        "https://arxiv.org/abs/2404.08471",
        "and/or, 2 x 3 / 4, ViT-L/16",
        "probe/appearance_accuracy,health/fixed_loss",
        "me/model, train/videos/a.mp4, ./here/there, ../up/there",
        "<br/></a>",
    ],
)
def test_what_is_no_path_of_a_machine_stays(text):
    assert find_machine_paths(text) == []
    assert shorten_machine_paths(text) == text


def test_json_stays_json():
    content = {"origin": r"C:\Users\me\x.csv", "data": ["/a/b/c.csv", "/d/e f/g.csv"]}
    assert json.loads(shorten_machine_paths(json.dumps(content)))["data"][0] == "c.csv"
