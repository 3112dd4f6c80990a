"""What docs/tinker.md tells people to write, as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

from tests.sdk_matrix.table import BEGIN, END
from tests.support.hub_folder import tinker_environment
from tests.support.processes import KEY
from tests.support.tinker_processes import ENDS

PAGE = Path(__file__).parents[3] / "docs" / "tinker.md"


def test_both_sdks_on_one_run(tinker_url, tmp_path):
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    paths = [path for path in sys.path if path]
    ours = {"FARSTEP_BASE_URL": tinker_url, "FARSTEP_API_KEY": KEY, "PYTHONPATH": ":".join(paths)}
    told = "\nprint(ours.run_id == theirs.model_id, ours.get_info().base_model, flush=True)"
    done = subprocess.run(
        [sys.executable, "-c", program + told],
        env=tinker_environment(tinker_url, KEY, **ours),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in ENDS, done.stderr
    assert done.stdout.split() == ["True", "Qwen/Qwen3-8B"]


def test_the_page_has_a_place_for_the_table():
    before, _, after = PAGE.read_text().partition(BEGIN)
    assert before
    assert END in after
