"""The lecture notebook: runs green, teaches what it claims, and its committed outputs are fresh.

python tests/test_notebook.py --execute     full run in place: new outputs, stamped metadata
"""

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import venv
from importlib.metadata import version
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "sac_walkthrough.ipynb"
PACKAGES = ("torch", "gymnasium", "mujoco", "numpy", "matplotlib")
SECTIONS = {"A": 4, "B": 6, "C": 9, "D": 8, "E": 9, "F": 10, "G": 7, "H": 8, "I": 9, "J": 3, "K": 6}
IMAGES = 16  # and one more where MuJoCo can draw
PATHS = re.compile(
    r"(?<![\w./~-])(/(tmp|home|root|usr|opt|work|var|mnt|content|private|Users)/|[A-Z]:\\)"
)


def hashes(notebook):
    """What the outputs depend on: the code cells, and sac.py."""
    code = "\0".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return {
        "code_sha256": hashlib.sha256(code.encode()).hexdigest(),
        "sac_py_sha256": hashlib.sha256((ROOT / "sac.py").read_bytes()).hexdigest(),
    }


def run(notebook, folder, fast, timeout):
    """Executes the notebook in a fresh kernel, in place; raises on an error or a slow cell."""
    before = os.environ.copy()
    os.environ.update(SAC_NB_FAST="1" if fast else "", PYTHONDONTWRITEBYTECODE="1")
    try:
        NotebookClient(
            notebook,
            timeout=timeout,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": str(folder)}},
        ).execute()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return notebook


def execute():
    """One full run, written over the notebook only if every check passed."""
    notebook, start = nbformat.read(NOTEBOOK, 4), time.monotonic()
    fingerprint = hashes(notebook)
    run(notebook, ROOT, fast=False, timeout=1200)
    stamp = {"versions": {name: version(name) for name in PACKAGES}}
    stamp |= {"python": sys.version.split()[0], "wall_seconds": round(time.monotonic() - start)}
    notebook.metadata["sac"] = fingerprint | stamp
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    problems = faults(notebook)
    draft = NOTEBOOK.with_suffix(".ipynb.tmp")
    nbformat.write(notebook, draft)
    size = draft.stat().st_size / 1e6
    print(f"{stamp['wall_seconds']} s, {len(images(notebook))} images, {size:.2f} MB")
    print(streams(notebook).split("\n\n")[-1])
    if problems:
        rejected = Path(os.environ.get("TMPDIR", "/tmp"), "sac_walkthrough-rejected.ipynb")
        shutil.move(draft, rejected)
        print(f"not kept ({rejected}):", *problems, sep="\n  ")
        return 1
    os.replace(draft, NOTEBOOK)
    return 0


def outputs(notebook):
    return [
        output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    ]


def images(notebook):
    return [o for o in outputs(notebook) if "image/png" in o.get("data", {})]


def streams(notebook):
    return "".join(o.text for o in outputs(notebook) if o.output_type == "stream")


def faults(notebook):
    """What may not stand in committed outputs."""
    found = []
    for output in outputs(notebook):
        if output.output_type == "error":
            found.append(f"error: {output.ename}")
        if output.output_type == "stream" and output.name == "stderr":
            found.append(f"warning: {output.text[:200]}")
        texts = [output.get("text", "")]
        texts += [str(v) for k, v in output.get("data", {}).items() if k.startswith("text/")]
        for text in texts:
            text = re.sub(r"data:image/\w+;base64,[\w+/=]+", "", text)
            if match := PATHS.search(text):
                found.append(f"path: {text[max(0, match.start() - 40) : match.end() + 40]!r}")
    text = streams(notebook)
    if "OFF  " in text or " 0 off" not in text:
        found.append("a concept check is off, or did not run")
    if "FAST MODE" in text or "MISSED" in text or text.count(": reached") < 2:
        found.append("no full run, or a training missed its goal")
    return found


@pytest.fixture(scope="session")
def notebook():
    return nbformat.read(NOTEBOOK, 4)


def solutions(notebook):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    pattern = r"<summary>Solution (\w)</summary>\s+```python\n(.*?)```\s+</details>"
    return dict(re.findall(pattern, text, re.S))


REPORT = """
import json
print("REPORT" + json.dumps({
    "checks": CHECKS, "grades": GRADES, "caught": CAUGHT, "goals": GOALS, "gl": MUJOCO_VIDEO}))
"""

INTERRUPTED = """
class Interrupted(sac.Run):
    def __iter__(self):
        for row in super().__iter__():
            yield row
            raise KeyboardInterrupt

stopped = Interrupted(lander.config)
train(stopped)
kept = stopped.step
rows = list(sac.Run.__iter__(stopped))
print("REPORT" + json.dumps([kept, stopped.step, len(rows)]))
"""


@pytest.fixture(scope="session")
def executed(notebook, tmp_path_factory):
    """(the notebook after a fast run, its reports, the folder, seconds)."""
    folder, start = tmp_path_factory.mktemp("alone"), time.monotonic()
    shutil.copy(ROOT / "sac.py", folder)
    fast = nbformat.from_dict(json.loads(json.dumps(notebook)))
    for cell in fast.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    count = len(fast.cells)
    extra = [REPORT]
    for name, source in solutions(notebook).items():
        function = re.match(r"def (\w+)", source)[1]
        extra.append(f'{source}\ngrade("{name}", {function})')
    extra += [REPORT, INTERRUPTED]
    fast.cells += [nbformat.v4.new_code_cell(source) for source in extra]
    run(fast, folder, fast=True, timeout=600)
    reports = [json.loads(text) for text in re.findall(r"REPORT(.*)", streams(fast))]
    fast.cells = fast.cells[:count]
    return fast, reports, folder, time.monotonic() - start


# The fast run


def test_every_concept_check_ran_and_passed(executed):
    checks = executed[1][0]["checks"]
    assert [name for name, state in checks if state == "OFF"] == []
    counts = {s: sum(name.startswith(s + " ") for name, _ in checks) for s in SECTIONS}
    assert counts == SECTIONS


def test_images_are_there(executed):
    fast, reports = executed[:2]
    assert len(images(fast)) == IMAGES + reports[0]["gl"]


def test_no_warnings_and_no_paths(executed):
    found = [fault for fault in faults(executed[0]) if not fault.startswith("no full run")]
    assert found == []


def test_returns_are_not_judged_in_fast_mode(executed):
    assert "FAST MODE" in streams(executed[0])
    assert {state for _, state in executed[1][0]["goals"]} == {"not judged (fast mode)"}


def test_exercises_pass_unattempted_and_solved(executed):
    before, after = executed[1][0]["grades"], executed[1][1]["grades"]
    assert len(before) >= 8 and set(before.values()) == {"not attempted"}
    assert after == dict.fromkeys(before, "right")


def test_planted_bugs_are_caught(executed):
    assert executed[1][0]["caught"] == [True] * 5


def test_an_interrupted_training_goes_on(executed):
    kept, end, rows = executed[1][2]
    assert 0 < kept < end and rows > 0


def test_it_needs_nothing_but_sac_py_and_leaves_nothing_behind(executed):
    left = {path.name for path in executed[2].iterdir()} - {"__pycache__"}
    assert left == {"sac.py"}


# The text


def test_limits(notebook):
    assert 80 <= len(notebook.cells) <= 95
    for cell in notebook.cells:
        if cell.cell_type == "code":
            lines = cell.source.split("\n")
            assert len(lines) <= 25 and max(map(len, lines)) <= 100, cell.source
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    prose = re.sub(r"```.*?```|\$\$.*?\$\$|\$[^$]*\$", "", text, flags=re.S)
    assert 3000 <= len(re.findall(r"\w[\w'-]*", prose)) <= 4000


def test_every_name_of_sac_exists(notebook):
    sys.path.insert(0, str(ROOT))
    import sac

    names = set()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("sac."):
                    names.add(ast.unparse(node))
        else:
            names |= set(re.findall(r"`(sac\.(?!py\b|csv\b)[\w.]+)", cell.source))
    assert len(names) > 20
    for name in names:
        thing = sac
        for part in name.split(".")[1:]:
            if not part.isidentifier() or "(" in name:
                break
            assert hasattr(thing, part), name
            thing = getattr(thing, part)


def test_solutions_and_stubs_match(notebook):
    assert list(solutions(notebook)) == list("ABCEFGHJ")


# The committed outputs


def test_committed_outputs_are_fresh(notebook):
    stamp = notebook.metadata.get("sac", {})
    stale = "stale: python tests/test_notebook.py --execute"
    assert {key: stamp.get(key) for key in hashes(notebook)} == hashes(notebook), stale
    assert set(stamp["versions"]) == set(PACKAGES) and 0 < stamp["wall_seconds"] < 900


def test_committed_outputs_are_one_clean_full_run(notebook):
    assert faults(notebook) == []
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert len(images(notebook)) >= IMAGES
    assert NOTEBOOK.stat().st_size < 3e6


# Colab: a bare environment with stand-ins for what Colab has


def bootstrap(notebook, tmp_path, colab, upload=True):
    """Runs the bootstrap cell in an empty virtual environment; (process, what pip was asked)."""
    cell = next(c for c in notebook.cells if "bootstrap" in c.metadata.get("tags", []))
    home = tmp_path / "venv"
    venv.create(home, with_pip=False, symlinks=os.name != "nt")
    site = next(home.glob("Lib/site-packages"), None) or next(home.glob("lib/*/site-packages"))
    asked, work = tmp_path / "asked.json", tmp_path / "content"
    work.mkdir()
    stand_ins = {"torch/__init__.py": "", "numpy/__init__.py": ""}
    stand_ins["pip/__main__.py"] = (
        f"import json, sys; json.dump(sys.argv[1:], open({str(asked)!r}, 'w'))"
    )
    if colab:
        source = "open('sac.py', 'w').close()" if upload else "pass"
        stand_ins["google/colab/__init__.py"] = ""
        stand_ins["google/colab/files.py"] = f"def upload():\n    {source}\n"
    for name, source in stand_ins.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(source)
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    command = [python, "-c", cell.source]
    done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True, timeout=60)
    return done, json.loads(asked.read_text()) if asked.exists() else []


def test_colab_installs_what_is_missing_and_asks_for_sac_py(notebook, tmp_path):
    done, asked = bootstrap(notebook, tmp_path, colab=True)
    assert done.returncode == 0, done.stderr
    assert "Choose sac.py" in done.stdout and (tmp_path / "content/sac.py").exists()
    assert asked[0] == "install" and "gymnasium[box2d,mujoco]" in asked and "matplotlib" in asked
    assert not any(word.startswith(("torch", "numpy")) for word in asked)


def test_colab_without_an_upload_says_so(notebook, tmp_path):
    done, _ = bootstrap(notebook, tmp_path, colab=True, upload=False)
    assert done.returncode != 0 and "sac.py is still missing" in done.stderr


def test_elsewhere_nothing_is_installed(notebook, tmp_path):
    done, asked = bootstrap(notebook, tmp_path, colab=False)
    assert done.returncode != 0 and asked == [] and "requirements.txt" in done.stderr


if __name__ == "__main__":
    sys.exit(execute() if sys.argv[1:] == ["--execute"] else __doc__)
