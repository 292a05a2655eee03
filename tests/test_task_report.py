"""Tables and lines of results for people."""

from task_report import format_answer, format_scores, metrics_of

TASKS = {
    "ner": {"kind": "feature-extraction"},
    "ner_old": {"kind": "feature-extraction"},
    "topic": {"kind": "text-classification", "labels": ["a", "b"], "problem_type": "single_label_classification"},
}
METRICS = {
    "test_ner_mean_cosine": 0.25,
    "test_ner_rows": 3,
    "test_ner_old_mean_cosine": 0.75,
    "test_ner_old_rows": 4,
    "test_mean_score": 0.5,
}


def test_the_scores_of_a_task_are_not_those_of_one_whose_name_begins_alike() -> None:
    assert metrics_of("ner", TASKS, METRICS, "test") == {"mean_cosine": 0.25, "rows": 3}
    assert metrics_of("ner_old", TASKS, METRICS, "test") == {"mean_cosine": 0.75, "rows": 4}
    assert metrics_of("topic", TASKS, METRICS, "test") == {}


def test_the_table_has_a_line_for_each_scored_task_and_the_mean() -> None:
    lines = format_scores(TASKS, METRICS).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["ner", "ner_old", "mean"]
    assert lines[1].split()[1:] == ["3", "mean_cosine", "0.2500"]
    assert lines[3].split()[-1] == "0.5000"


def test_an_answer_is_one_line_whatever_its_kind() -> None:
    assert format_answer({"label": "a", "score": 0.5, "scores": {}}) == "a 0.50"
    assert format_answer({"labels": [], "scores": {"x": 0.1}}) == "-"
    assert format_answer([{"word": "Oslo", "entity_group": "LOC"}]) == "Oslo LOC"
    assert format_answer({"score": 0.25}) == "0.250"
