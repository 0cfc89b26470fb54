"""Prompt files: what is read, and how a bad one is named."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from passk_fast.config import ColumnsConfig, DataConfig
from passk_fast.data.types import Prompt
from passk_fast.errors import DataError
from passk_fast.tasks import load_prompts, test_prompts, verify
from passk_fast.tasks.files import is_on_hub
from passk_fast.tasks.maths_data import write_prompts
from passk_fast.tasks.sandbox import unavailable_reason

MAZE = "*****\n*S.E*\n*.*.*\n*...*\n*****"
ROWS: list[dict[str, Any]] = [
    {"prompt": "1 + 1?", "answer": "2", "task": "exact", "id": "sum"},
    {"prompt": MAZE, "answer": "RR", "task": "maze", "id": "m"},
    {"prompt": "“ü\u2028” 日本", "answer": "本", "task": "exact", "id": "unicode"},
]
WANT = [Prompt(id=r["id"], text=r["prompt"], answer=r["answer"], task=r["task"]) for r in ROWS]


def _jsonl(path: Path, rows: list[Any]) -> Path:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


def test_jsonl(tmp_path: Path) -> None:
    assert load_prompts(_jsonl(tmp_path / "a.jsonl", ROWS)) == WANT


def test_parquet_leaves_nothing_beside_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(ROWS).to_parquet(str(tmp_path / "a.parquet"))
    capfd.readouterr()
    assert load_prompts(tmp_path / "a.parquet") == WANT
    assert [p.name for p in tmp_path.iterdir()] == ["a.parquet"]
    assert capfd.readouterr() == ("", "")


def test_parquet_is_read_anew_after_it_changed(tmp_path: Path) -> None:
    datasets.disable_progress_bars()
    path = tmp_path / "a.parquet"
    for rows, want in ((ROWS, WANT), (ROWS[:1], WANT[:1])):
        datasets.Dataset.from_list(rows).to_parquet(str(path))
        assert load_prompts(path) == want


def test_saved_folder(tmp_path: Path) -> None:
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "set"))
    before = sorted(p.name for p in (tmp_path / "set").iterdir())
    assert load_prompts(str(tmp_path / "set")) == WANT
    assert sorted(p.name for p in (tmp_path / "set").iterdir()) == before


def test_folder_of_splits_names_them(tmp_path: Path) -> None:
    datasets.disable_progress_bars()
    one = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": one, "extra": one}).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(DataError, match=r"several splits \(extra, train\); name one"):
        load_prompts(tmp_path / "set")
    assert load_prompts(tmp_path / "set" / "train") == WANT


LEVELED = [{**row, "level": i, "tags": ["a", row["task"]]} for i, row in enumerate(ROWS)]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "folder"])
def test_further_columns_are_kept(kind: str, tmp_path: Path) -> None:
    datasets.disable_progress_bars()
    path = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        _jsonl(path, LEVELED)
    elif kind == "parquet":
        datasets.Dataset.from_list(LEVELED).to_parquet(str(path))
    else:
        datasets.Dataset.from_list(LEVELED).save_to_disk(str(path))
    prompts = load_prompts(path)
    assert [prompt.columns for prompt in prompts] == [
        {"level": row["level"], "tags": row["tags"]} for row in LEVELED
    ]
    assert [replace(prompt, columns={}) for prompt in prompts] == WANT


def test_columns_of_a_row_are_its_own(tmp_path: Path) -> None:
    rows = [{**ROWS[0], "id": 0, "hint": None}, {**ROWS[0], "id": 1, "deep": {"a": [1.5, True]}}]
    first, second = load_prompts(_jsonl(tmp_path / "a.jsonl", rows))
    assert first.columns == {"hint": None}
    assert second.columns == {"deep": {"a": [1.5, True]}}
    assert pickle.loads(pickle.dumps(second)) == second


REWARDS = """
def leveled(prompt, response, answer, level):
    return level * (response == answer)
"""


def test_a_verifier_is_given_the_columns_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"leveled_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(REWARDS)
    monkeypatch.syspath_prepend(str(tmp_path))
    row = {"prompt": "1 + 1?", "answer": "2", "task": f"{name}:leveled"}
    (prompt,) = load_prompts(_jsonl(tmp_path / "a.jsonl", [{**row, "level": 0.25}]))
    assert verify(prompt, "2", config=DataConfig()) == 0.25
    with pytest.raises(DataError, match=r"b\.jsonl:1: field 'level' is missing, which .* takes"):
        load_prompts(_jsonl(tmp_path / "b.jsonl", [row]))


def test_prepared_maths_is_read_back_with_its_columns(tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    columns = {"level": 3, "subject": "Algebra"}
    prompts = [Prompt(id="x", text="1 + 1?", answer="2", task="maths", columns=columns)]
    write_prompts(prompts, tmp_path / "out.jsonl")
    assert load_prompts(tmp_path / "out.jsonl") == prompts


def test_code_is_tested_by_columns_of_the_file(tmp_path: Path) -> None:
    row = {"prompt": "Double it.", "answer": "-", "task": "code", "test_list": ["assert f(1) == 2"]}
    if unavailable_reason() is not None:
        with pytest.raises(DataError, match="nothing can contain them on this machine"):
            load_prompts(_jsonl(tmp_path / "a.jsonl", [row]))
        return
    (prompt,) = load_prompts(_jsonl(tmp_path / "a.jsonl", [row]))
    assert verify(prompt, "def f(n): return 2 * n", config=DataConfig()) == 1.0


def test_blank_lines_and_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\r\n".join(json.dumps(row).encode() for row in ROWS) + b"\r\n\r\n")
    assert load_prompts(path) == WANT


def test_ids_default_to_the_row(tmp_path: Path) -> None:
    rows = [{**ROWS[0], "id": None}, {**ROWS[0], "id": 7}, {**ROWS[2], "extra": [1]}]
    assert [p.id for p in load_prompts(_jsonl(tmp_path / "a.jsonl", rows))] == ["0", "7", "unicode"]


GOOD = ROWS[0]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "x"', "a.jsonl:2: not JSON"),
        ("[1]", "a.jsonl:2: must be an object"),
        ({"answer": "2", "task": "exact"}, "a.jsonl:2: field 'prompt' is missing"),
        ({"prompt": "p", "task": "exact"}, "a.jsonl:2: field 'answer' is missing"),
        ({"prompt": "p", "answer": "2"}, "a.jsonl:2: field 'task' is missing"),
        ({**GOOD, "answer": None, "id": 1}, "a.jsonl:2: field 'answer' is missing"),
        ({**GOOD, "answer": [2], "id": 1}, "a.jsonl:2: field 'answer' must be text, got list"),
        ({**GOOD, "answer": "", "id": 1}, "a.jsonl:2: field 'answer' is empty"),
        ({**GOOD, "prompt": 3, "id": 1}, "a.jsonl:2: field 'prompt' must be text, got int"),
        ({**GOOD, "prompt": ["p"], "id": 1}, "a.jsonl:2: field 'prompt': message 0 has no role"),
        ({**GOOD, "prompt": "", "id": 1}, "a.jsonl:2: field 'prompt' is empty"),
        (
            {**GOOD, "task": "chess", "id": 1},
            "a.jsonl:2: field 'task': task 'chess' is unknown; known: maze, exact, maths",
        ),
        (
            {**GOOD, "task": "no_such_module:TASK", "id": 1},
            "a.jsonl:2: field 'task': .* no_such_module cannot be imported",
        ),
        ({**GOOD, "task": "maze", "id": 1}, "a.jsonl:2: field 'prompt' holds no maze"),
        ({**GOOD, "id": True}, "a.jsonl:2: field 'id' must be text or a whole number, got bool"),
        ({**GOOD, "id": [1]}, "a.jsonl:2: field 'id' must be text or a whole number, got list"),
        (GOOD, "a.jsonl:2: id 'sum' was used before, in .*a.jsonl:1"),
    ],
)
def test_bad_line(tmp_path: Path, line: str | dict[str, Any], words: str) -> None:
    second = line if isinstance(line, str) else json.dumps(line)
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + second + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=words):
        load_prompts(path)


def test_bad_row_of_parquet(tmp_path: Path) -> None:
    datasets.disable_progress_bars()
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_list([{"prompt": 2, "answer": 2, "task": "exact"}]).to_parquet(str(path))
    with pytest.raises(DataError, match=r"a.parquet: row 0: field 'prompt' must be text, got int"):
        load_prompts(path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("no.jsonl", None, "no such file"),
        ("a.jsonl", b"", "holds no prompts"),
        ("a.jsonl", b"\n \n", "holds no prompts"),
        ("a.jsonl", b"\xff\xfe", "a.jsonl:1: not UTF-8"),
        ("a.parquet", b"not parquet", "not a readable Parquet file"),
        ("a.csv", b"prompt,answer\n", "holds no prompts"),
        ("a.txt", b"prompt,answer\n", "must be a .jsonl, .json, .csv"),
    ],
)
def test_bad_file(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        load_prompts(tmp_path / name)


def test_folder_that_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a folder saved by `datasets`"):
        load_prompts(tmp_path)


@settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=200))
def test_any_bytes_load_or_are_a_data_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "fuzz.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"fuzz\.jsonl"):
        load_prompts(path)


values = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.none())


@settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(GOOD, values)), max_size=4))
def test_any_rows_load_or_are_a_data_error(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    path = _jsonl(tmp_path / "rows.jsonl", [{**GOOD, "id": None, **row} for row in rows])
    try:
        prompts = load_prompts(path)
    except DataError:
        return  # that the message names the place is the business of the tests above
    else:
        assert len({p.id for p in prompts}) == len(rows) > 0


EXAMPLES = Path(__file__).parents[2] / "examples" / "data"


def test_columns_of_other_names_and_one_task_for_all_rows() -> None:
    columns = ColumnsConfig(prompt="question", answer="answer")
    source = str(EXAMPLES / "questions.jsonl")
    prompts = load_prompts(source, DataConfig(train=source, columns=columns, task="exact"))
    assert [prompt.answer for prompt in prompts] == ["28", "8", "29", "95"]
    assert prompts[0].text.startswith("Which number follows 7")
    assert prompts[0].columns == {"level": "easy"}
    assert prompts[1].place == f"{source}:2"
    columns = ColumnsConfig(prompt="problem")
    with pytest.raises(
        DataError, match=r":1: no column 'problem' \(data\.columns\.prompt\); there"
    ):
        load_prompts(source, DataConfig(train=source, columns=columns, task="exact"))


def test_prompts_of_chat_messages() -> None:
    first, second = load_prompts(EXAMPLES / "chat.jsonl")
    assert first.text == "What is the capital of Norway?"
    assert [message["role"] for message in second.messages] == [
        "system",
        "user",
        "assistant",
        "user",
    ]


def test_a_function_of_ones_own_may_do_without_an_answer(tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text("def score(prompt, response, answer):\n    return 1.0\n")
    path = _jsonl(tmp_path / "a.jsonl", [{"prompt": "Write a poem."}])
    place = f"{tmp_path / 'rewards.py'}:score"
    (prompt,) = load_prompts(path, DataConfig(train=str(path), verifier=place))
    assert (prompt.answer, prompt.task) == ("", place)


@pytest.mark.parametrize(
    ("answer", "text"), [(3, "3"), (3.0, "3"), (0.5, "0.5"), (True, "True"), (-1e-7, "-1e-07")]
)
def test_numbers_as_answers(tmp_path: Path, answer: float, text: str) -> None:
    (prompt,) = load_prompts(_jsonl(tmp_path / "a.jsonl", [{**ROWS[0], "answer": answer}]))
    assert prompt.answer == text


@pytest.mark.parametrize(
    ("name", "on_hub"),
    [
        ("owner/name", True),
        ("owner/name/subset:test", True),
        ("owner/name.jsonl", False),
        ("examples/nothing", False),
        ("/owner/name", False),
        ("name", False),
        ("a/b/c/d", False),
    ],
)
def test_what_may_be_a_name_on_the_hub(
    name: str, on_hub: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(EXAMPLES.parents[1])
    assert is_on_hub(name) is on_hub


def test_a_data_set_of_the_hub_is_asked_for_by_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def load(name: str, subset: str | None, *, split: str) -> list[dict[str, Any]]:
        asked.extend((name, subset, split))
        return ROWS

    monkeypatch.setattr("datasets.load_dataset", load)
    assert load_prompts("owner/name/main:dev") == WANT
    assert test_prompts(DataConfig(test="owner/name")) == WANT
    assert asked == ["owner/name", "main", "dev", "owner/name", None, "test"]
