"""The numbers of a run, from its rows."""

from __future__ import annotations

from leadfl_pl import AttackerDetection, BackdoorLifespan, RecoveryHalfLife
from leadfl_pl.records.rounds import DETAILS, PARTS, as_text, shown_columns, summary

ACCURACIES, MALICIOUS = [0.9, 0.8, 0.4, 0.2, 0.9, 0.8], [6, 6, 0, 2, 7, 0]


def row(t: int, **columns: float) -> dict[str, float]:
    counts = {"malicious_sampled": MALICIOUS[t]} | columns
    rest = {"val/backdoor_accuracy": ACCURACIES[t]}
    return {"round": t} | {f"round/{name}": count for name, count in counts.items()} | rest


def test_lifespan_and_half_life_are_those_of_the_metrics() -> None:
    numbers = summary([row(t) for t in range(6)], majority=5)
    lifespan, half_life = BackdoorLifespan(majority=5), RecoveryHalfLife(majority=5)
    for value, malicious in zip(ACCURACIES, MALICIOUS, strict=True):
        lifespan.update(value, malicious)
        half_life.update(value, malicious)
    names = ("backdoor lifespan", "bursts", "censored bursts")
    assert [numbers[name] for name in names] == [n.item() for n in lifespan.compute()]
    assert [numbers[name] for name in names] == [1, 2, 1]
    assert numbers["recovery half-life"] == half_life.compute().item()


def test_a_round_that_was_not_evaluated_keeps_its_place() -> None:
    rows = [row(t) for t in range(4)]
    del rows[2]["val/backdoor_accuracy"]
    assert summary(rows, majority=5)["backdoor lifespan"] == 2  # after the two rounds 2 and 3


def test_a_backdoor_that_no_image_counts_for_has_no_accuracy() -> None:
    rows = [row(t) | {"val/backdoor_accuracy": float("nan")} for t in range(3)]
    assert not [name for name in summary(rows, majority=5) if "backdoor" in name]


def test_without_a_burst_or_a_backdoor_there_is_no_lifespan() -> None:
    rows = [row(t) for t in range(6)]
    unmeasured = [{k: v for k, v in r.items() if not k.startswith("val")} for r in rows]
    for numbers in (summary(rows, majority=8), summary(unmeasured, majority=5)):
        assert not {"backdoor lifespan", "recovery half-life", "bursts"} & set(numbers)


def test_detection_is_that_of_the_metric_over_the_cohort() -> None:
    rows = [row(0, selected=5, malicious_selected=2), row(2, selected=6, malicious_selected=0)]
    metric = AttackerDetection()
    cohort = range(10)  # six attackers first
    metric.update(cohort, [True] * 6 + [False] * 4, selected=[0, 1, 6, 7, 8])
    metric.update(cohort, [False] * 10, selected=range(6))
    numbers = summary(rows, majority=5)
    names = ("precision", "recall", "false-positive rate")
    rates = [numbers[f"detection {name}"] for name in names]
    assert rates == [rate.item() for rate in metric.compute()[:3]]
    assert rates == [4 / 9, 4 / 6, 5 / 14]


def test_selected_attackers_are_shown_if_there_were_any_to_select() -> None:
    none, some = (summary([row(t, malicious_selected=0)], majority=5) for t in (2, 0))
    assert "attackers selected" not in none
    assert as_text(some, ["attackers selected"], 1) == ["0 of 6"]
    assert "detection recall" not in some  # the row does not say how many were selected


def test_lifespans_are_shown_with_what_is_censored() -> None:
    numbers = summary([row(t) for t in range(6)], majority=5)
    columns = ["backdoor lifespan", "recovery half-life"]
    assert as_text(numbers, columns, 6) == ["1.0 (1 of 2 censored)", "1.2"]
    assert as_text(summary([row(t) for t in range(4)], 5), columns[:1], 4) == ["1.0"]


def test_a_comparison_has_fewer_columns_than_the_table_of_one_run() -> None:
    numbers = summary([row(t, selected=5, malicious_selected=1) for t in range(6)], majority=5)
    of_one, of_several = shown_columns([numbers]), shown_columns([numbers], (*DETAILS, *PARTS))
    assert of_several[-2:] == ["backdoor lifespan", "attackers selected"]
    assert of_one == [*of_several, *DETAILS]
