"""Rows of maths data sets: which columns are read, how rows are named, what is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from passk_fast.data.types import Prompt
from passk_fast.errors import DataError
from passk_fast.tasks.maths_data import INSTRUCTION, LAYOUTS, load_maths, write_prompts


def _load(tmp_path: Path, *rows: object) -> list[Prompt]:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return load_maths(str(path))


def _dapo(*messages: object, answer: object = "7") -> dict[str, object]:
    return {"prompt": list(messages), "reward_model": {"ground_truth": answer}}


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        (7, "7"),
        (-7.0, "-7"),
        (0.5, "0.5"),
        (" 7 ", "7"),
        (1e20, "100000000000000000000"),
        ("\\frac{1}{2}", "\\frac{1}{2}"),
    ],
)
def test_answers_are_texts_or_numbers(tmp_path: Path, value: object, answer: str) -> None:
    for row in ({"problem": "p", "answer": value}, {"Problem": "p", "Answer": value}):
        (prompt,) = _load(tmp_path, row)
        assert (prompt.text, prompt.answer) == ("p" + INSTRUCTION, answer)
    (prompt,) = _load(tmp_path, _dapo({"role": "user", "content": "p"}, answer=value))
    assert (prompt.text, prompt.answer) == ("p", answer)


@pytest.mark.parametrize("value", [True, None, ["7"], {"value": 7}])
def test_other_answers_are_refused_with_their_place(tmp_path: Path, value: object) -> None:
    want = r"rows\.jsonl:2: field 'answer' must be text or a number \(AIME, MATH-500 or OlymMATH\)"
    with pytest.raises(DataError, match=want):
        _load(tmp_path, {"problem": "p", "answer": 1}, {"problem": "q", "answer": value})


@pytest.mark.parametrize("row", [{"problem": " ", "answer": 1}, {"problem": "p", "answer": "\n"}])
def test_empty_texts_are_refused(tmp_path: Path, row: dict[str, object]) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:1: the problem or its answer is empty"):
        _load(tmp_path, row)


def test_a_stored_answer_stands_before_the_box_of_the_solution(tmp_path: Path) -> None:
    row = {"problem": "p", "answer": "7", "solution": "so \\boxed{8}"}
    assert _load(tmp_path, row)[0].answer == "7"
    del row["answer"]
    assert _load(tmp_path, row)[0].answer == "8"


def test_the_last_box_of_a_solution_is_its_answer(tmp_path: Path) -> None:
    row = {"problem": "p", "solution": "first \\boxed{1}, then \\boxed{\\frac{1}{\\sqrt{2}}}."}
    assert _load(tmp_path, row)[0].answer == "\\frac{1}{\\sqrt{2}}"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("half of 2,520 is 1,260\n#### 1,260", "1260"),
        ("first #### 1, then\n#### 2", "2"),
        ("####-3", "-3"),
        ("70", "70"),
        ("12345678901234567890", "12345678901234567890"),
    ],
)
def test_gsm8k_and_aime_2025_share_their_columns(tmp_path: Path, text: str, answer: str) -> None:
    assert _load(tmp_path, {"question": "p", "answer": text})[0].answer == answer


def test_dapo_takes_the_last_message_of_the_user(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "well"},
        {"role": "user", "content": " 3 + 4? "},
        {"role": "assistant", "content": "7"},
    ]
    row = _dapo(*messages)
    as_text = {name: json.dumps(value) for name, value in row.items()}
    for given in (row, as_text):
        assert _load(tmp_path, given)[0].text == "3 + 4?"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (_dapo(), "'prompt' holds no message of the user"),
        (_dapo({"role": "system", "content": "x"}), "'prompt' holds no message of the user"),
        (_dapo({"role": "user"}), "'prompt' holds no message of the user"),
        (_dapo({"role": "user", "content": ["x"]}), "'prompt' holds no message of the user"),
        (_dapo("x"), "'prompt' holds no message of the user"),
        ({"prompt": '"x"', "reward_model": '{"ground_truth": 1}'}, "holds no message of the user"),
        (_dapo({"role": "user", "content": "x"}, answer=[1]), "'ground_truth' must be text or a"),
        ({"prompt": [], "reward_model": [1]}, "'reward_model' holds no 'ground_truth'"),
        ({"prompt": [], "reward_model": "{'a': 1}"}, "a nested column is no JSON"),
    ],
)
def test_broken_rows_of_dapo(tmp_path: Path, row: object, message: str) -> None:
    with pytest.raises(DataError, match=rf"rows\.jsonl:1: .*{message}.* \(DAPO-Math-17k\)"):
        _load(tmp_path, row)


def test_unknown_columns_are_named_beside_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="columns task, text are of no known layout") as caught:
        _load(tmp_path, {"task": "t", "text": "x"})
    for layout in LAYOUTS:
        assert f"{layout.name}: {', '.join(sorted(layout.columns))}" in str(caught.value)


def test_names_of_rows_are_kept_where_they_are_unique(tmp_path: Path) -> None:
    rows = [
        {"problem": "a", "answer": 1, "unique_id": "x", "id": 5},
        {"problem": "b", "answer": 1, "id": 5},
        {"problem": "c", "answer": 1, "ID": "x"},
        {"problem": "d", "answer": 1},
        {"problem": "e", "answer": 1, "id": "6"},
        {"problem": "f", "answer": 1, "id": None},
        {"problem": "g", "answer": 1},
    ]
    assert [p.id for p in _load(tmp_path, *rows)] == ["x", "5", "2", "3", "6", "row-5", "row-6"]


def test_only_plain_columns_are_kept(tmp_path: Path) -> None:
    row = {
        "problem": "p",
        "answer": "7",
        "solution": "long",
        "url": "https://example.org",
        "level": 3,
        "share": 0.5,
        "hard": True,
        "topic": "Algebra",
        "tags": ["a"],
        "source": {"book": 1},
        "note": None,
    }
    (prompt,) = _load(tmp_path, row)
    assert prompt.columns == {"level": 3, "share": 0.5, "hard": True, "topic": "Algebra"}


def test_a_problem_that_repeats_keeps_its_first_answer(tmp_path: Path) -> None:
    rows = [{"problem": text, "answer": n} for n, text in enumerate(["a", "b", "a "], start=1)]
    assert [prompt.answer for prompt in _load(tmp_path, *rows)] == ["1", "2"]


def test_csv_fields_may_hold_lines_quotes_and_a_mark_of_their_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('\ufeffproblem,answer,level\n"Is ""a"",\nor b?",7,\n', encoding="utf-8")
    (prompt,) = load_maths(str(path))
    assert prompt.text == 'Is "a",\nor b?' + INSTRUCTION
    assert (prompt.answer, prompt.columns) == ("7", {"level": ""})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"a,b\n1,2,3\n", r"a\.csv:2: a row must have 2 fields, as line 1"),
        ("a.csv", b"problem,answer\np\n", r"a\.csv:2: a row must have 2 fields"),
        ("a.csv", b"problem,answer\n", "holds no problems"),
        ("a.json", b'[{"problem": "p", "answer": 1}, 3]', r"a\.json: row 1: must be an object"),
        ("a.json", b"[" * 100_000, r"a\.json: not JSON"),
        ("a.json", b"3", r"a\.json:1: must be an object"),
        ("a.jsonl", b"\xff\xfe{\x00}\x00", r"a\.jsonl:1: not UTF-8 text"),
        ("a", b"", r"a: must be a \.jsonl, \.json, \.csv"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_maths(str(tmp_path / name))


def test_a_folder_must_be_one_of_datasets(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a folder saved by `datasets`"):
        load_maths(str(tmp_path))


def test_integers_of_a_column_with_a_gap_stay_integers(tmp_path: Path) -> None:
    table = pyarrow.table({"problem": ["a", "b"], "answer": [7.0, None]})
    pyarrow.parquet.write_table(table.slice(0, 1), tmp_path / "a.parquet")
    assert [prompt.answer for prompt in load_maths(str(tmp_path / "a.parquet"))] == ["7"]
    pyarrow.parquet.write_table(table, tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet: row 1: field 'answer' must be text or a num"):
        load_maths(str(tmp_path / "b.parquet"))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("no split 'tset'\nand a long story"), "no split 'tset'$"),
        (ConnectionError(), "ConnectionError$"),
    ],
)
def test_the_first_line_of_what_the_hub_says(
    monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    def fail(*arguments: object, **more: object) -> object:
        raise error

    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(DataError, match=f"data set owner/name cannot be loaded: {words}"):
        load_maths("owner/name")


@pytest.mark.parametrize("source", ["owner/name/more/still", "owner/name.jsonl", "name", "a b/c"])
def test_what_is_neither_a_file_nor_a_name(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", lambda *arguments, **more: [])
    with pytest.raises(DataError, match="no such file or folder, and no name on the Hub"):
        load_maths(source)


def test_prompts_are_written_with_their_own_fields_last(tmp_path: Path) -> None:
    columns = {"level": 3, "answer": "of another", "id": "x"}
    prompt = Prompt(id="0", text="“p”\n", answer="7", task="maths", columns=columns)
    write_prompts([prompt, prompt], tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    want = {"level": 3, "id": "0", "prompt": "“p”\n", "answer": "7", "task": "maths"}
    assert rows == [want, want]
