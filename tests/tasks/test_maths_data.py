"""Published layouts of maths data sets, from the sample files and from broken ones."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from passk_fast import tasks
from passk_fast.config.file import load_config
from passk_fast.errors import DataError
from passk_fast.tasks import load_prompts
from passk_fast.tasks.maths_data import INSTRUCTION, load_maths, published_row, write_prompts

SAMPLES = Path(__file__).parents[2] / "examples" / "data"
WANT = {
    "aime2024.jsonl": ["130", "17"],
    "aime2024.csv": ["100"],
    "aime2025.jsonl": ["206", "49"],
    "math.jsonl": ["\\frac{5}{2}", "[1,3)"],
    "math500.jsonl": ["x^2-x-6"],
    "olymmath.jsonl": ["4", "\\{(1,6),(2,3)\\}"],
    "dapo.jsonl": ["14", "144"],
    "gsm8k.jsonl": ["75", "1260"],
}


@pytest.mark.parametrize("name", WANT)
def test_sample_files(name: str) -> None:
    prompts = load_maths(str(SAMPLES / name))
    assert [prompt.answer for prompt in prompts] == WANT[name]
    assert {prompt.task for prompt in prompts} == {"maths"}
    assert len({prompt.id for prompt in prompts}) == len(prompts)
    assert all((INSTRUCTION in prompt.text) != name.startswith("dapo") for prompt in prompts)


def test_problems_that_repeat_are_taken_once() -> None:
    lines = (SAMPLES / "dapo.jsonl").read_text().splitlines()
    assert len(lines) == 3 > len(load_maths(str(SAMPLES / "dapo.jsonl")))


def test_further_columns_are_kept_and_solutions_are_not() -> None:
    (prompt,) = load_maths(str(SAMPLES / "math500.jsonl"))
    assert prompt.columns == {
        "subject": "Algebra",
        "level": 1,
        "unique_id": "sample/algebra/1.json",
    }
    assert prompt.id == "sample/algebra/1.json"


@pytest.mark.parametrize("name", ["olymmath.jsonl", "dapo.jsonl", "aime2024.jsonl"])
def test_parquet_reads_as_jsonl(name: str, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (SAMPLES / name).read_text().splitlines()]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert load_maths(str(tmp_path / "a.parquet")) == load_maths(str(SAMPLES / name))


def test_a_json_array_reads_as_lines(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (SAMPLES / "gsm8k.jsonl").read_text().splitlines()]
    (tmp_path / "a.json").write_text("\ufeff" + json.dumps(rows, indent=1))
    assert load_maths(str(tmp_path / "a.json")) == load_maths(str(SAMPLES / "gsm8k.jsonl"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"problem": "p"}', r"a\.jsonl:1: columns problem are of no known layout"),
        ("a.jsonl", '\n{"problem": "p", "answer": ""}', r"a\.jsonl:2: .* is empty"),
        ("a.jsonl", '{"problem": "p", "answer": [1]}', "'answer' must be text or a number"),
        ("a.jsonl", '{"problem": "p", "solution": "7"}', r"holds no \\boxed\{\} answer"),
        ("a.jsonl", '{"question": "p", "answer": "a long text without it"}', "holds no '####'"),
        ("a.jsonl", '{"prompt": [], "reward_model": {}}', "'ground_truth'"),
        ("a.jsonl", '{"prompt": "[", "reward_model": "{}"}', "a nested column is no JSON"),
        ("a.jsonl", "{", r"a\.jsonl:1: not JSON"),
        ("a.jsonl", "[]", r"a\.jsonl:1: must be an object"),
        ("a.jsonl", "", "holds no problems"),
        ("a.txt", "x", r"must be a \.jsonl, \.json, \.csv"),
        ("a.parquet", "x", "not a readable Parquet file"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        load_maths(str(tmp_path / name))


def test_a_missing_file_and_an_unreachable_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", _offline)
    with pytest.raises(DataError, match="no such file or folder, and no name on the Hub"):
        load_maths("nowhere.jsonl")
    with pytest.raises(DataError, match="data set owner/name cannot be loaded: no network"):
        load_maths("owner/name")


def _offline(*arguments: object, **more: object) -> object:
    raise ConnectionError("no network")


def test_a_data_set_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def load(name: str, subset: str | None, *, split: str) -> list[dict[str, object]]:
        asked.extend((name, subset, split))
        return [{"problem": "1 + 1?", "answer": "2", "unique_id": "x"}]

    monkeypatch.setattr("datasets.load_dataset", load)
    (prompt,) = load_maths("owner/name", split="train", subset="en-hard")
    assert (prompt.id, prompt.answer) == ("x", "2")
    assert asked == ["owner/name", "en-hard", "train"]


def test_written_prompts_hold_every_column(tmp_path: Path) -> None:
    prompts = load_maths(str(SAMPLES / "math500.jsonl"))
    write_prompts(prompts, tmp_path / "out.jsonl")
    (row,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert row == {
        "id": prompts[0].id,
        "prompt": prompts[0].text,
        "answer": "x^2-x-6",
        "task": "maths",
        **prompts[0].columns,
    }


def test_a_published_file_is_a_prompt_file(tmp_path: Path) -> None:
    path = tmp_path / "gsm8k.jsonl"
    rows = [
        {"question": f"1 + {n}?", "answer": f"It is <<1+{n}>> so\n#### {n + 1}"} for n in (1, 2)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = load_prompts(path)
    assert [(p.id, p.task, p.answer) for p in prompts] == [("0", "maths", "2"), ("1", "maths", "3")]
    assert prompts[0].text.startswith("1 + 1?\n\nReason step by step")


@pytest.mark.parametrize(
    "name", ["aime2024", "aime2025", "dapo", "gsm8k", "math", "math500", "olymmath"]
)
def test_each_published_layout_is_reached_from_the_configuration_of_a_run(
    tmp_path: Path, name: str
) -> None:
    file = tmp_path / "run.toml"
    rows = SAMPLES / f"{name}.jsonl"
    file.write_text(f"model.path = 'm'\ndata.train = '{rows}'\ndata.test = '{rows}'\n")
    data = load_config(file).data
    prompts = tasks.train_prompts(data)
    assert prompts
    assert tasks.test_prompts(data) == prompts
    for prompt in prompts:
        assert prompt.task == "maths"
        assert tasks.verify(prompt, f"So it is \\boxed{{{prompt.answer}}}.", config=data) == 1.0
        assert tasks.verify(prompt, "So it is \\boxed{-12345}.", config=data) == 0.0


@pytest.mark.parametrize(
    "row",
    [
        {"question": "x", "answer": "#### 1", "task": "exact"},
        {"prompt": "x", "answer": "1", "question": "y"},
        {"text": "x"},
        ["question", "answer"],
    ],
)
def test_other_rows_are_left_alone(row: object) -> None:
    assert published_row("f:1", row) is row
