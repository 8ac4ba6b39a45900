"""Gemini with host memory as device memory: saved weights, resuming, non-finite steps."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.distributed

CASES = (
    "chunks",
    "chunks_accumulated",
    "whole_accumulated",
    "offloaded_accumulated",
    "fp16_accumulated",
    "chunks_new_rows",
    "chunks_accumulated_new_rows",
    "offloaded_accumulated_faster_rows",
)


@pytest.fixture(scope="module")
def found(project_root):
    command = [sys.executable, "-W", "ignore", "-m", "tests.support.gemini_on_host", "2"]
    done = subprocess.run(command, cwd=project_root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", CASES)
def test_saved_weights_are_the_rounded_master_weights(found, case):
    assert found[case]["not_the_masters"] == []
    assert found[case]["dtypes"] == ["torch.float16" if case.startswith("fp16") else "torch.bfloat16"]


@pytest.mark.parametrize("case", CASES)
def test_questions_are_answered_from_the_weights_of_all_ranks(found, case):
    """Between two steps; the restored run, which answers none, continues equally."""
    assert found[case]["answers"] == found[case]["answers_by_transformers"]


@pytest.mark.parametrize("case", CASES)
def test_a_restored_run_continues_bit_for_bit(found, case):
    assert found[case]["continues_equally"]


@pytest.mark.parametrize("case", CASES)
def test_a_nonfinite_step_changes_nothing_and_the_next_one_is_finite(found, case):
    assert found[case]["overflowed"] is case.startswith("fp16")
    assert found[case]["refuses"]
    assert found[case]["recovers"]


@pytest.mark.parametrize("case", ["whole_accumulated", "offloaded_accumulated"])
def test_gradients_are_the_same_however_they_are_kept(found, case):
    assert found[case]["norms"] == pytest.approx(found["chunks_accumulated"]["norms"], rel=1e-2)


@pytest.mark.parametrize("case", ["chunks_new_rows", "chunks_accumulated_new_rows"])
def test_new_rows_are_trained_alone(found, case):
    rows = list(range(70, 95))
    assert found[case]["changed_rows"] == {"model.embed_tokens.weight": rows, "lm_head.weight": rows}


def test_faster_rows_are_trained_with_the_others(found):
    assert found["offloaded_accumulated_faster_rows"]["changed_rows"].keys() == found["chunks"]["changed_rows"].keys()


def test_finished_runs_stay_in_memory_until_the_caches_are_cleared(found):
    assert found["kept"] > 0, "Gemini frees them by itself: clear_gemini_caches is no longer needed"
    assert found["kept_after_clearing"] == 0
