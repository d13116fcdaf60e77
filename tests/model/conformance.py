"""Run transformers' own model test suite (ModelTesterMixin, ConfigTester) on the family; see test_conformance.py.

    python tests/model/conformance.py UNPACKED_SOURCE_OF_THE_INSTALLED_TRANSFORMERS [FIELDS_AS_JSON]

The fields are those in which another generation of the family differs.

The wheel of transformers has no tests/ folder, its source distribution has. Ends with one line: passed, failed,
skipped, and the names that failed.
"""

import importlib
import json
import sys
import types
import unittest
from pathlib import Path

import torch
import transformers

from vjepa_hub import VJEPAConfig, VJEPAForVideoClassification, VJEPAModel

TINY = {
    "crop_size": 16,
    "frames_per_clip": 2,
    "patch_size": 8,
    "hidden_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "mlp_ratio": 1.0,
    "pred_hidden_size": 24,
    "pred_num_attention_heads": 4,
    "pred_num_hidden_layers": 2,
}

TINY |= json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}


class NoSuite:
    """Stands for the suites that the source distribution leaves out; neither concerns a video encoder."""


def add_module(name: str, **attributes) -> None:
    """Put a module with these attributes where an import finds it."""
    module = types.ModuleType(name)
    module.__path__ = attributes.pop("path", [])
    vars(module).update(attributes)
    sys.modules[name] = module


def import_suite(source: Path):
    """transformers' common model tests, and what they need to know of a family that is not theirs."""
    add_module("tests", path=[str(source / "tests")])
    for package in ("tests.exporters", "tests.generation", "tests.utils"):
        add_module(package)
    add_module("tests.exporters.test_export", ExportTesterMixin=NoSuite)
    add_module("tests.generation.test_utils", GenerationTesterMixin=NoSuite)
    add_module("tests.utils.test_configuration_utils", config_common_kwargs={})
    # test_configuration_common imports the transformers that lies beside the tests: give it the installed one
    for module in (transformers.utils, importlib.import_module("transformers.utils.import_utils")):
        module.direct_transformers_import = lambda *args, **kwargs: transformers
    tables = importlib.import_module("transformers.models.auto.modeling_auto")
    tables.MODEL_MAPPING_NAMES["vjepa"] = VJEPAModel.__name__
    tables.MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES["vjepa"] = VJEPAForVideoClassification.__name__
    return (
        importlib.import_module("tests.test_modeling_common"),
        importlib.import_module("tests.test_configuration_common"),
    )


def build_case(modeling, configuration) -> type[unittest.TestCase]:
    """The test case of the family."""

    class Tester:
        def __init__(self):
            self.batch_size, self.is_training, self.num_labels = 2, True, 3
            self.hidden_size, self.num_hidden_layers = TINY["hidden_size"], TINY["num_hidden_layers"]
            self.num_attention_heads, self.seq_length = TINY["num_attention_heads"], 4

        def get_config(self):
            return VJEPAConfig(**TINY, num_labels=self.num_labels)

        def prepare_config_and_inputs_for_common(self):
            return self.get_config(), {"pixel_values_videos": modeling.floats_tensor([2, 2, 3, 16, 16])}

    class ModelTest(modeling.ModelTesterMixin, unittest.TestCase):
        all_model_classes = (VJEPAModel, VJEPAForVideoClassification)
        test_resize_embeddings = False
        additional_model_inputs = ()

        def setUp(self):
            self.model_tester = Tester()
            self.config_tester = configuration.ConfigTester(
                self, config_class=VJEPAConfig, has_text_modality=False, hidden_size=48, num_attention_heads=4
            )

        def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
            inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
            if return_labels and model_class is VJEPAForVideoClassification:
                inputs["labels"] = torch.zeros(2, dtype=torch.long)
            return inputs

        def test_config(self):
            self.config_tester.run_common_tests()

    for name in ("test_inputs_embeds", "test_model_get_set_embeddings"):
        setattr(ModelTest, name, unittest.skip("no token embeddings: the input is pixels")(lambda self: None))
    ModelTest.test_generation_tester_mixin_inheritance = unittest.skip("no generation")(lambda self: None)
    return ModelTest


class Result(unittest.TextTestResult):
    """Counts test methods: a method with a failing subtest is one failure."""

    @staticmethod
    def names(entries) -> set[str]:
        return {getattr(test, "test_case", test).id().split(".")[-1] for test, _ in entries}


def main() -> int:
    """Run the suite, print the line, and fail where a test failed."""
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(build_case(*import_suite(Path(sys.argv[1]))))
    result = unittest.TextTestRunner(verbosity=0, resultclass=Result).run(suite)
    failed = Result.names(result.failures + result.errors)
    skipped = Result.names(result.skipped) - failed
    passed = result.testsRun - len(failed) - len(skipped)
    print(f"{passed} passed, {len(failed)} failed, {len(skipped)} skipped; failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
