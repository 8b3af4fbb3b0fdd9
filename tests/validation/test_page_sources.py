"""Evaluations and attacks are read tolerantly; those of another artifact, or with a field missing, are refused by name."""

import copy
import json

import pytest

from saeuron.editor.errors import SaeuronError
from saeuron.validation.page.sources import Rate, read_attack, read_evaluation

RECORD = {"edit": {"sha256": "a" * 64}}
RATE = {"rate": 0.9, "low": 0.8, "high": 0.95, "trials": 40, "rule": "x"}
EVALUATION = {"edit_sha256": "a" * 64, "judge": {"name": "demo"}, "backends": {"onnx": {"concepts": {"Neon": {"ua": RATE}}}}}
ATTACK = {
    "edit_sha256": "a" * 64,
    "judge": {"name": "demo"},
    "through": "checkpoint",
    "concepts": {"Neon": {"tokens": {**RATE, "successes": 4}}},
}


def put(folder, content, name="evaluation.json"):
    (folder / name).write_text(json.dumps(content))
    return folder / name


def test_what_is_there_is_read(tmp_path):
    put(tmp_path, EVALUATION)
    assert read_evaluation(tmp_path, RECORD)[:2] == ("demo", {"onnx": {"Neon": {"ua": Rate(0.9, 0.8, 0.95, 40)}}})
    found = read_attack(put(tmp_path, ATTACK, "attack.json"), RECORD)
    assert found[:3] == ("demo", "checkpoint", {"Neon": {"tokens": Rate(0.9, 0.8, 0.95, 40)}})


@pytest.mark.parametrize(
    "keys", [["edit_sha256"], ["judge"], ["judge", "name"], ["backends"], ["backends", "onnx", "concepts", "Neon", "ua", "low"]]
)
def test_a_missing_field_is_named(tmp_path, keys):
    content = copy.deepcopy(EVALUATION)
    at = content
    for key in keys[:-1]:
        at = at[key]
    del at[keys[-1]]
    put(tmp_path, content)
    with pytest.raises(SaeuronError, match=rf"lacks the field '(.*\.)?{keys[-1]}'"):
        read_evaluation(tmp_path, RECORD)


def test_another_artifact_and_no_file_are_refused(tmp_path):
    with pytest.raises(SaeuronError, match="does not exist"):
        read_evaluation(tmp_path, RECORD)
    with pytest.raises(SaeuronError, match="another artifact"):
        read_attack(put(tmp_path, {**ATTACK, "edit_sha256": "b" * 64}, "attack.json"), RECORD)
    with pytest.raises(SaeuronError, match="is no table"):
        read_attack(put(tmp_path, {**ATTACK, "concepts": []}, "attack.json"), RECORD)
