from __future__ import annotations

from flows.seeds import spread_table


def report(teacher: float, warmup: tuple[float, float], student: tuple[float, float]) -> dict[str, dict[str, float]]:
    return {
        "teacher": {"rougeL": teacher},
        "warmup": {"rougeL": warmup[0], "reverse_kl": warmup[1]},
        "student": {"rougeL": student[0], "reverse_kl": student[1]},
    }


def test_the_table_has_a_line_a_seed_and_the_spread_over_them() -> None:
    """By hand: means of (60, 62), (40, 44), (1.5, 1.3), (50, 51), (1.0, 1.2) and their deviations with n - 1."""
    table = spread_table({2: report(62, (44, 1.3), (51, 1.2)), 1: report(60, (40, 1.5), (50, 1.0))})
    lines = [line.split() for line in table.splitlines()]
    assert [line[0] for line in lines] == ["seed", "1", "2", "mean", "std"]
    assert lines[1][1:] == ["60.000", "40.000", "1.500", "50.000", "1.000"]
    assert lines[3][1:] == ["61.000", "42.000", "1.400", "50.500", "1.100"]
    assert lines[4][1:] == ["1.414", "2.828", "0.141", "0.707", "0.141"]


def test_one_seed_has_no_spread() -> None:
    assert "std" not in spread_table({1: report(60, (40, 1.5), (50, 1.0))})
